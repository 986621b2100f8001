package cri

import (
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
)

const (
	// tokenLife is how long the address of a stream is good for.
	tokenLife = time.Minute
	// maxTokens is how many addresses may wait for their clients.
	maxTokens = 1000
)

// streamTokens are the requests whose clients have not connected yet. A token is all that a client needs, so it cannot
// be guessed and is good for one use.
type streamTokens struct {
	mu      sync.Mutex
	waiting map[string]streamToken
}

type streamToken struct {
	path    string
	req     proto.Message
	expires time.Time
}

// issue keeps a request under a new token.
func (t *streamTokens) issue(path string, req proto.Message) (string, error) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) >= maxTokens {
		for token, waiting := range t.waiting {
			if now.After(waiting.expires) {
				delete(t.waiting, token)
			}
		}
	}
	if len(t.waiting) >= maxTokens {
		return "", fmt.Errorf("%d addresses of streams wait for their clients, expected fewer: %w", maxTokens,
			errdefs.ErrResourceExhausted)
	}
	if t.waiting == nil {
		t.waiting = map[string]streamToken{}
	}
	token := rand.Text()
	t.waiting[token] = streamToken{path: path, req: req, expires: now.Add(tokenLife)}
	return token, nil
}

// redeem returns the request of a token and forgets it; nil if there is none for this path.
func (t *streamTokens) redeem(path, token string) proto.Message {
	t.mu.Lock()
	defer t.mu.Unlock()
	waiting, ok := t.waiting[token]
	delete(t.waiting, token)
	if !ok || waiting.path != path || time.Now().After(waiting.expires) {
		return nil
	}
	return waiting.req
}
