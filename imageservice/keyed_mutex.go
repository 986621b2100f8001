package imageservice

import (
	"context"
	"sync"
)

// keyedMutex is a mutex per key that can be waited for with a context. Pulls of different images use it to fetch a
// shared blob and to unpack a shared layer once.
type keyedMutex struct {
	mu   sync.Mutex
	held map[string]*keyLock
}

type keyLock struct {
	turn  chan struct{} // holds one token while the key is free
	users int           // holder and waiters; guarded by keyedMutex.mu
}

func newKeyedMutex() *keyedMutex {
	return &keyedMutex{held: map[string]*keyLock{}}
}

// Lock waits for the key. Errors: the context's.
func (m *keyedMutex) Lock(ctx context.Context, key string) error {
	m.mu.Lock()
	lock, ok := m.held[key]
	if !ok {
		lock = &keyLock{turn: make(chan struct{}, 1)}
		lock.turn <- struct{}{}
		m.held[key] = lock
	}
	lock.users++
	m.mu.Unlock()

	select {
	case <-lock.turn:
		return nil
	case <-ctx.Done():
		m.leave(key, lock)
		return ctx.Err()
	}
}

// Unlock gives the key to the next waiter. Preconditions: the caller holds it.
func (m *keyedMutex) Unlock(key string) {
	m.mu.Lock()
	lock := m.held[key]
	m.mu.Unlock()
	lock.turn <- struct{}{}
	m.leave(key, lock)
}

func (m *keyedMutex) leave(key string, lock *keyLock) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if lock.users--; lock.users == 0 {
		delete(m.held, key)
	}
}
