package main

import (
	"fmt"

	"github.com/spf13/pflag"
)

// configFlag is a flag that overrides a key of the configuration.
type configFlag struct {
	name, short string
	key         string
	// field points to the key's field: a *string, *bool or *int.
	field func(*Config) any
}

// configFlags are the stable flags of the daemon, besides --config.
var configFlags = []configFlag{
	{name: "address", key: "address", field: func(c *Config) any { return &c.Address }},
	{name: "root", key: "root", field: func(c *Config) any { return &c.Root }},
	{name: "state", key: "state", field: func(c *Config) any { return &c.State }},
	{name: "cni-conf-dir", key: "cni.conf_dir", field: func(c *Config) any { return &c.CNI.ConfDir }},
	{name: "cni-bin-dir", key: "cni.bin_dir", field: func(c *Config) any { return &c.CNI.BinDir }},
	{name: "registry-config-dir", key: "image.registry_config_dir",
		field: func(c *Config) any { return &c.Image.RegistryConfigDir }},
	{name: "cgroup-driver", key: "cgroup_driver", field: func(c *Config) any { return &c.CgroupDriver }},
	{name: "embedded-network", key: "embedded_network.enabled",
		field: func(c *Config) any { return &c.EmbeddedNetwork.Enabled }},
	{name: "keeper", key: "keeper", field: func(c *Config) any { return &c.Keeper }},
	{name: "v", short: "v", key: "verbosity", field: func(c *Config) any { return &c.Verbosity }},
	{name: "log-format", key: "log_format", field: func(c *Config) any { return &c.LogFormat }},
}

// addConfigFlags declares the flags; their values land in target, whose present values are the defaults in the help.
func addConfigFlags(flags *pflag.FlagSet, target *Config) {
	for _, f := range configFlags {
		usage := fmt.Sprintf("%s (%s)", summary(f.key), f.key)
		switch field := f.field(target).(type) {
		case *string:
			flags.StringVarP(field, f.name, f.short, *field, usage)
		case *bool:
			flags.BoolVarP(field, f.name, f.short, *field, usage)
		case *int:
			flags.IntVarP(field, f.name, f.short, *field, usage)
		}
	}
}

// overrideByFlags copies to config the values of the flags that were given.
func overrideByFlags(config *Config, flags *pflag.FlagSet, fromFlags *Config) {
	for _, f := range configFlags {
		if !flags.Changed(f.name) {
			continue
		}
		switch field := f.field(config).(type) {
		case *string:
			*field = *f.field(fromFlags).(*string)
		case *bool:
			*field = *f.field(fromFlags).(*bool)
		case *int:
			*field = *f.field(fromFlags).(*int)
		}
	}
}

// flagOf returns the flag of a key, with its dashes, or "".
func flagOf(key string) string {
	for _, f := range configFlags {
		switch {
		case f.key != key:
		case f.short != "":
			return "-" + f.short
		default:
			return "--" + f.name
		}
	}
	return ""
}
