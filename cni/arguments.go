package cni

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The annotations by which Kubernetes limits a sandbox's traffic, as quantities of bits per second.
const (
	ingressBandwidth = "kubernetes.io/ingress-bandwidth"
	egressBandwidth  = "kubernetes.io/egress-bandwidth"
)

// Bits per second that the bandwidth annotations may ask for; the limits of Kubernetes.
const (
	minBandwidth = 1e3
	maxBandwidth = 1e15
)

// portMapping is an element of the capability portMappings.
type portMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

// pluginArgs makes CNI_ARGS.
func pluginArgs(sandboxID string, config *runtime.PodSandboxConfig) ([][2]string, error) {
	meta := config.GetMetadata()
	args := [][2]string{
		{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", meta.GetNamespace()},
		{"K8S_POD_NAME", meta.GetName()},
		{"K8S_POD_INFRA_CONTAINER_ID", sandboxID},
		{"K8S_POD_UID", meta.GetUid()},
	}
	for _, arg := range args {
		// Else a name could smuggle in an argument that a plugin obeys, such as IP=.
		if strings.ContainsAny(arg[1], ";=\x00") {
			return nil, fmt.Errorf("metadata: %s is %q, expected no ';' and no '=': %w",
				arg[0], arg[1], errdefs.ErrInvalidArgument)
		}
	}
	return args, nil
}

// capabilityArgs makes the arguments for those capabilities that a plugin of the list declares.
func capabilityArgs(list *libcni.NetworkConfigList, config *runtime.PodSandboxConfig) (map[string]any, error) {
	declared := map[string]bool{}
	for _, plugin := range list.Plugins {
		for capability, on := range plugin.Network.Capabilities {
			declared[capability] = declared[capability] || on
		}
	}
	args := map[string]any{}
	if declared["portMappings"] {
		ports, err := portMappings(config)
		if err != nil {
			return nil, err
		}
		if len(ports) > 0 {
			args["portMappings"] = ports
		}
	}
	if declared["bandwidth"] {
		limits, err := bandwidth(config.GetAnnotations())
		if err != nil {
			return nil, err
		}
		if len(limits) > 0 {
			args["bandwidth"] = limits
		}
	}
	if dns := config.GetDnsConfig(); dns != nil && declared["dns"] {
		args["dns"] = map[string]any{"servers": dns.Servers, "searches": dns.Searches, "options": dns.Options}
	}
	if parent := config.GetLinux().GetCgroupParent(); parent != "" && declared["cgroupPath"] {
		args["cgroupPath"] = parent
	}
	return args, nil
}

// portMappings translates the mappings that have a host port.
func portMappings(config *runtime.PodSandboxConfig) ([]portMapping, error) {
	var ports []portMapping
	for i, p := range config.GetPortMappings() {
		if p.GetHostPort() == 0 {
			continue
		}
		bad := func(field string, value any, expected string) error {
			return fmt.Errorf("port_mappings[%d].%s is %v, expected %s: %w",
				i, field, value, expected, errdefs.ErrInvalidArgument)
		}
		if p.HostPort < 0 || p.HostPort > math.MaxUint16 {
			return nil, bad("host_port", p.HostPort, "0 for none or 1 to 65535")
		}
		if p.ContainerPort < 1 || p.ContainerPort > math.MaxUint16 {
			return nil, bad("container_port", p.ContainerPort, "1 to 65535")
		}
		if _, known := runtime.Protocol_name[int32(p.Protocol)]; !known {
			return nil, bad("protocol", int32(p.Protocol), "TCP, UDP or SCTP")
		}
		if p.HostIp != "" {
			if _, err := netip.ParseAddr(p.HostIp); err != nil {
				return nil, bad("host_ip", strconv.Quote(p.HostIp), "an IP address or nothing")
			}
		}
		ports = append(ports, portMapping{
			HostPort: p.HostPort, ContainerPort: p.ContainerPort, Protocol: strings.ToLower(p.Protocol.String()),
			HostIP: p.HostIp,
		})
	}
	return ports, nil
}

// bandwidth translates the annotations into the capability of that name. Bursts are as large as plugins can take: the
// annotations limit the rate only.
func bandwidth(annotations map[string]string) (map[string]int64, error) {
	limits := map[string]int64{}
	for annotation, direction := range map[string]string{ingressBandwidth: "ingress", egressBandwidth: "egress"} {
		text, ok := annotations[annotation]
		if !ok {
			continue
		}
		rate, err := parseQuantity(text)
		if err != nil || rate < minBandwidth || rate > maxBandwidth {
			return nil, fmt.Errorf("annotations[%q] is %q, expected a quantity between 1k and 1P: %w",
				annotation, text, errdefs.ErrInvalidArgument)
		}
		limits[direction+"Rate"] = int64(math.Ceil(rate))
		limits[direction+"Burst"] = math.MaxInt32
	}
	return limits, nil
}

// quantitySuffixes are those of Kubernetes resource quantities.
var quantitySuffixes = map[string]float64{
	"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
	"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50, "Ei": 1 << 60,
}

// parseQuantity parses a Kubernetes resource quantity such as 10M, 1.5Gi or 2e6.
func parseQuantity(text string) (float64, error) {
	digits := strings.TrimRight(text, "numkKMGTPEi")
	factor, ok := quantitySuffixes[text[len(digits):]]
	if !ok || strings.Trim(digits, "+-.0123456789eE") != "" {
		return 0, errors.New("not a quantity")
	}
	value, err := strconv.ParseFloat(digits, 64)
	return value * factor, err
}

// addresses returns the addresses of eth0 in the plugin's order. Plugins that do not say which interface an address
// belongs to, or that name it otherwise, mean the only one there is.
func addresses(result types.Result) ([]string, error) {
	r, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, fmt.Errorf("parse result of plugins: %w", err)
	}
	var named, all []string
	for _, ip := range r.IPs {
		text := ip.Address.IP.String()
		all = append(all, text)
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(r.Interfaces) {
			if r.Interfaces[*i].Name == ifName && r.Interfaces[*i].Sandbox != "" {
				named = append(named, text)
			}
		}
	}
	if len(named) > 0 {
		return named, nil
	}
	if len(all) == 0 {
		return nil, errors.New("the network plugins gave no address")
	}
	return all, nil
}
