package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
	"github.com/spf13/pflag"
)

// loadConfig resolves the configuration: defaults, file, files of conf.d beside it in lexical order, flags. A file
// that is named explicitly must exist; the default one need not.
func loadConfig(file string, explicit bool, flags *pflag.FlagSet, fromFlags *Config) (*Config, error) {
	config := defaultConfig()
	files, err := configFiles(file, explicit)
	if err != nil {
		return nil, err
	}
	for _, name := range files {
		if err := mergeFile(config, name); err != nil {
			return nil, err
		}
	}
	overrideByFlags(config, flags, fromFlags)
	if err := config.validate(); err != nil {
		return nil, fmt.Errorf("flags and configuration: %w", err)
	}
	return config, nil
}

// configFiles lists the files to read, in order.
func configFiles(file string, explicit bool) ([]string, error) {
	var files []string
	switch _, err := os.Stat(file); {
	case err == nil:
		files = append(files, file)
	case !errors.Is(err, os.ErrNotExist) || explicit:
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	dir := filepath.Join(filepath.Dir(file), "conf.d")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	var dropIns []string
	for _, e := range entries {
		if name := e.Name(); strings.HasSuffix(name, ".toml") && !strings.HasPrefix(name, ".") && !e.IsDir() {
			dropIns = append(dropIns, filepath.Join(dir, name))
		}
	}
	sort.Strings(dropIns)
	return append(files, dropIns...), nil
}

// mergeFile reads a file over config. Its errors begin with file:line and name the key.
func mergeFile(config *Config, name string) error {
	document, err := os.ReadFile(name)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	decoder := toml.NewDecoder(bytes.NewReader(document)).DisallowUnknownFields()
	if err := decoder.Decode(config); err != nil {
		return locateDecodeError(name, err)
	}
	// Everything was valid before this file, so what is wrong now is wrong in it.
	if err := config.validate(); err != nil {
		var wrong *valueError
		if errors.As(err, &wrong) {
			return fmt.Errorf("%s:%d: %w", name, keyLine(document, wrong.Key), err)
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// locateDecodeError turns what the TOML decoder says into one line: file:line: key: reason.
func locateDecodeError(name string, err error) error {
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) && len(unknown.Errors) > 0 {
		var all []error
		for i := range unknown.Errors {
			row, _ := unknown.Errors[i].Position()
			key := strings.Join(unknown.Errors[i].Key(), ".")
			all = append(all, fmt.Errorf("%s:%d: %s: unknown key, expected one of `gantryd config default`", name, row, key))
		}
		return errors.Join(all...)
	}
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		row, _ := bad.Position()
		text := strings.TrimPrefix(bad.Error(), "toml: ")
		if key := strings.Join(bad.Key(), "."); key != "" {
			text = key + ": " + text
		}
		return fmt.Errorf("%s:%d: %s", name, row, text)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// keyLine returns the line on which a dotted key is set, or that of the table that it is in; 1 when neither is found.
func keyLine(document []byte, key string) int {
	line, best := 1, 0
	var parser unstable.Parser
	parser.Reset(document)
	var table []string
	for parser.NextExpression() {
		expression := parser.Expression()
		var parts []string
		var raw unstable.Range
		for it := expression.Key(); it.Next(); {
			parts, raw = append(parts, string(it.Node().Data)), it.Node().Raw
		}
		if expression.Kind != unstable.KeyValue {
			table = parts
		} else {
			parts = append(append([]string(nil), table...), parts...)
		}
		name := strings.Join(parts, ".")
		if (name == key || strings.HasPrefix(key, name+".")) && len(name) >= best {
			line, best = parser.Shape(raw).Start.Line, len(name)
		}
	}
	return line
}
