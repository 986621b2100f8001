package cri

import (
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/stats"
)

// defaultInterface is the name that CNI gives a pod's first interface.
const defaultInterface = "eth0"

func containerStats(status *sandbox.ContainerStatus, sample *stats.Sample) *runtime.ContainerStats {
	return &runtime.ContainerStats{
		Attributes: &runtime.ContainerAttributes{
			Id:          status.ID,
			Metadata:    containerMetadata(status),
			Labels:      status.Config.GetLabels(),
			Annotations: status.Config.GetAnnotations(),
		},
		Cpu:           cpuUsage(sample),
		Memory:        memoryUsage(sample),
		Swap:          swapUsage(sample),
		Io:            ioUsage(sample),
		WritableLayer: layerUsage(sample.Layer),
	}
}

func sandboxStats(
	status *sandbox.SandboxStatus, sample *stats.Sample, containers []*runtime.ContainerStats,
) *runtime.PodSandboxStats {
	return &runtime.PodSandboxStats{
		Attributes: &runtime.PodSandboxAttributes{
			Id:          status.ID,
			Metadata:    sandboxMetadata(status),
			Labels:      status.Config.GetLabels(),
			Annotations: status.Config.GetAnnotations(),
		},
		Linux: &runtime.LinuxPodSandboxStats{
			Cpu:        cpuUsage(sample),
			Memory:     memoryUsage(sample),
			Network:    networkUsage(sample),
			Process:    &runtime.ProcessUsage{Timestamp: sample.Time.UnixNano(), ProcessCount: number(sample.Processes)},
			Io:         ioUsage(sample),
			Containers: containers,
		},
	}
}

func cpuUsage(sample *stats.Sample) *runtime.CpuUsage {
	usage := &runtime.CpuUsage{Timestamp: sample.Time.UnixNano()}
	if cpu := sample.CPU; cpu != nil {
		usage.UsageCoreNanoSeconds = number(cpu.Usage)
		if cpu.NanoCores != nil {
			usage.UsageNanoCores = number(*cpu.NanoCores)
		}
		usage.Psi = psi(cpu.Pressure)
	}
	return usage
}

func memoryUsage(sample *stats.Sample) *runtime.MemoryUsage {
	usage := &runtime.MemoryUsage{Timestamp: sample.Time.UnixNano()}
	if m := sample.Memory; m != nil {
		usage.WorkingSetBytes = number(m.WorkingSet)
		usage.UsageBytes = number(m.Usage)
		usage.RssBytes = number(m.RSS)
		usage.PageFaults = number(m.PageFaults)
		usage.MajorPageFaults = number(m.MajorPageFaults)
		usage.Psi = psi(m.Pressure)
		if m.Limit > 0 {
			usage.AvailableBytes = number(m.Limit - min(m.Limit, m.WorkingSet))
		}
	}
	return usage
}

func swapUsage(sample *stats.Sample) *runtime.SwapUsage {
	if sample.Memory == nil || sample.Memory.Swap == nil {
		return nil
	}
	swap := sample.Memory.Swap
	usage := &runtime.SwapUsage{Timestamp: sample.Time.UnixNano(), SwapUsageBytes: number(swap.Usage)}
	if swap.Limit != nil {
		usage.SwapAvailableBytes = number(*swap.Limit - min(*swap.Limit, swap.Usage))
	}
	return usage
}

func ioUsage(sample *stats.Sample) *runtime.IoUsage {
	if sample.IO == nil {
		return nil
	}
	return &runtime.IoUsage{Timestamp: sample.Time.UnixNano(), Psi: psi(sample.IO.Pressure)}
}

func psi(p *stats.Pressure) *runtime.PsiStats {
	if p == nil {
		return nil
	}
	return &runtime.PsiStats{Some: psiData(p.Some), Full: psiData(p.Full)}
}

func psiData(s stats.Stall) *runtime.PsiData {
	return &runtime.PsiData{Total: s.Total, Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
}

func layerUsage(layer *stats.Layer) *runtime.FilesystemUsage {
	if layer == nil {
		return nil
	}
	return &runtime.FilesystemUsage{
		Timestamp:  layer.Time.UnixNano(),
		FsId:       &runtime.FilesystemIdentifier{Mountpoint: layer.Mountpoint},
		UsedBytes:  number(layer.Bytes),
		InodesUsed: number(layer.InodesUsed),
	}
}

// networkUsage gives the counters of a sandbox's interfaces. A sandbox on the host's network has none of its own.
func networkUsage(sample *stats.Sample) *runtime.NetworkUsage {
	if sample.Interfaces == nil {
		return nil
	}
	usage := &runtime.NetworkUsage{Timestamp: sample.Time.UnixNano()}
	for i := range sample.Interfaces {
		one := interfaceUsage(&sample.Interfaces[i])
		if one.Name == defaultInterface {
			usage.DefaultInterface = one
		} else {
			usage.Interfaces = append(usage.Interfaces, one)
		}
	}
	return usage
}

func interfaceUsage(i *stats.Interface) *runtime.NetworkInterfaceUsage {
	return &runtime.NetworkInterfaceUsage{
		Name:     i.Name,
		RxBytes:  number(i.RxBytes),
		RxErrors: number(i.RxErrors),
		TxBytes:  number(i.TxBytes),
		TxErrors: number(i.TxErrors),
	}
}

func number(value uint64) *runtime.UInt64Value { return &runtime.UInt64Value{Value: value} }
