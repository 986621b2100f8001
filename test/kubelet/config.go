package kubelet

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// configuration is the KubeletConfiguration. What it sets beyond paths and ports is because the test machine's disk is
// shared (eviction), its control groups are of version 1, and there is no API server to ask who may do what.
func (k *Kubelet) configuration() string {
	fields := map[string]string{
		"authentication":              "{anonymous: {enabled: true}, webhook: {enabled: false}}",
		"authorization":               "{mode: AlwaysAllow}",
		"address":                     "127.0.0.1",
		"port":                        fmt.Sprint(k.Port),
		"readOnlyPort":                fmt.Sprint(k.Port + 5),
		"healthzPort":                 fmt.Sprint(k.Port - 2),
		"staticPodPath":               k.pods(),
		"containerRuntimeEndpoint":    k.Endpoint,
		"failCgroupV1":                "false",
		"cgroupDriver":                "cgroupfs",
		"cgroupRoot":                  k.CgroupRoot,
		"enforceNodeAllocatable":      "[pods]",
		"maxOpenFiles":                "20000",
		"resolvConf":                  filepath.Join(k.Dir, "resolv.conf"),
		"evictionHard":                `{memory.available: 50Mi, nodefs.available: 100Mi, imagefs.available: 100Mi}`,
		"imageGCHighThresholdPercent": "100", // this is of the shared disk, too
		"volumePluginDir":             filepath.Join(k.Dir, "plugins"),
		"podLogsDir":                  k.PodLogs,
	}
	if len(k.Gates) > 0 {
		var gates []string
		for _, name := range slices.Sorted(maps.Keys(k.Gates)) {
			gates = append(gates, fmt.Sprintf("%s: %t", name, k.Gates[name]))
		}
		fields["featureGates"] = "{" + strings.Join(gates, ", ") + "}"
	}
	maps.Copy(fields, k.Config)
	text := "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		text += name + ": " + fields[name] + "\n"
	}
	return text
}
