package embedded

import (
	"fmt"
	"math"

	"github.com/vishvananda/netlink"
)

const (
	// limitBurst is how many bytes may go at once: as much as a socket hands to the link in one piece. At high rates it
	// is what goes in a millisecond, since the library counts the time of a burst in microseconds.
	limitBurst = 64 << 10
	// limitLatency is how long, in seconds, a packet may wait for its turn before it is dropped.
	limitLatency = 0.025
	// maxBurstTime bounds, in seconds, the time that the burst stands for: the kernel counts it in 32 bits of 64 ns.
	maxBurstTime = 200
)

// limit bounds the traffic in both directions by a token bucket each, at the end from which the traffic leaves: the
// host's for ingress, the sandbox's for egress.
func (w *wiring) limit() error {
	if rate := w.a.Limits.Ingress; rate > 0 {
		if err := w.host.QdiscAdd(tokenBucket(w.hostLink.Attrs().Index, rate)); err != nil {
			return fmt.Errorf("ingress: %w", err)
		}
	}
	if rate := w.a.Limits.Egress; rate > 0 {
		if err := w.pod.QdiscAdd(tokenBucket(w.podLink.Attrs().Index, rate)); err != nil {
			return fmt.Errorf("egress: %w", err)
		}
	}
	return nil
}

// tokenBucket limits what leaves a link to bits per second.
func tokenBucket(index int, bits int64) *netlink.Tbf {
	rate := uint64(max(bits/8, 1))
	burst := uint32(min(max(limitBurst, rate/1000), rate*maxBurstTime, math.MaxUint32))
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate, Buffer: netlink.Xmittime(rate, burst),
		Limit: uint32(min(float64(rate)*limitLatency+float64(burst), math.MaxUint32)),
	}
}
