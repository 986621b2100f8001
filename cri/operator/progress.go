package operator

import (
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// meter gathers what a pull reports and lets it go at a steady pace: a pull reports at every read, and a slow client
// must not slow the pull down.
type meter struct {
	mu sync.Mutex
	// changed holds the last report on each blob that was not sent yet, order the blobs as they came.
	changed map[string]*BlobProgress
	order   []string
}

func newMeter() *meter { return &meter{changed: map[string]*BlobProgress{}} }

// report notes how far a blob is.
func (m *meter) report(b *BlobProgress) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.changed[b.GetDigest()]; !ok {
		m.order = append(m.order, b.GetDigest())
	}
	m.changed[b.GetDigest()] = proto.CloneOf(b)
}

// take returns what was reported since the last call.
func (m *meter) take() []*BlobProgress {
	m.mu.Lock()
	defer m.mu.Unlock()
	blobs := make([]*BlobProgress, 0, len(m.order))
	for _, digest := range m.order {
		blobs = append(blobs, m.changed[digest])
	}
	m.changed, m.order = map[string]*BlobProgress{}, nil
	return blobs
}

// pump sends reports until stop is closed or sending fails.
func (m *meter) pump(stream grpc.ServerStreamingServer[PullProgress], stop <-chan struct{}) error {
	tick := time.NewTicker(progressPeriod)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return nil
		case <-tick.C:
		}
		blobs := m.take()
		if len(blobs) == 0 {
			continue
		}
		if err := stream.Send(&PullProgress{Blobs: blobs}); err != nil {
			return err
		}
	}
}
