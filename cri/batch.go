package cri

import "google.golang.org/protobuf/proto"

// batchBytes is about how large a message of a streamed list gets: well below what a client takes, with annotations of
// any size, and large enough that a list of ordinary items is one message.
const batchBytes = 1 << 20

// sendBatches sends items, each once and in order, in batches of at least one item and at most batchBytes unless a
// single item is larger. Without items it sends nothing.
func sendBatches[T proto.Message](items []T, send func([]T) error) error {
	start, size := 0, 0
	for i, item := range items {
		// The tag and length before an embedded message take a few bytes more.
		n := proto.Size(item) + 8
		if i > start && size+n > batchBytes {
			if err := send(items[start:i]); err != nil {
				return err
			}
			start, size = i, 0
		}
		size += n
	}
	if start == len(items) {
		return nil
	}
	return send(items[start:])
}
