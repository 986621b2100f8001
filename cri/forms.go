package cri

import (
	"sync"

	"google.golang.org/protobuf/proto"
)

// maxForm is the largest encoded item that is kept, in bytes. An item with the annotations of the kubelet has less than
// 1,000; one with more than this is encoded for each list.
const maxForm = 2 << 10

// message is a pointer to a message T.
type message[T any] interface {
	*T
	proto.Message
}

// forms keeps the items of a list encoded, by the status that each is made of: to encode the labels and annotations of
// thousands takes longer than all else in a list, and the kubelet lists every second. A status never changes and an item
// is made of nothing else. The zero value is empty.
type forms[S any] struct {
	mu sync.Mutex
	of map[*S][]byte
}

// listed makes the items of a list. live is how many statuses there are at the time: when the statuses that were are as
// many again, all forms are forgotten.
func listed[S, T any, M message[T]](f *forms[S], list []*S, live int, item func(*S) M) []M {
	slab, sent := make([]T, len(list)), make([]M, len(list))
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.of == nil || len(f.of) > 2*live+64 {
		f.of = make(map[*S][]byte, live)
	}
	for i, status := range list {
		form := f.of[status]
		if form == nil {
			whole := item(status)
			if form = encoded(whole); form == nil {
				sent[i] = whole
				continue
			}
			if len(form) <= maxForm {
				f.of[status] = form
			}
		}
		sent[i] = &slab[i]
		sent[i].ProtoReflect().SetUnknown(form)
	}
	return sent
}
