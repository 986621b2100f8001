package keeperd

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// logger writes lines with a time. It is all that a program with few words needs; libcontainer's warnings go there too.
type logger struct {
	mu  sync.Mutex
	out io.Writer
	// said holds what is told only once.
	said map[string]bool
	// last is when limited last told of a key.
	last map[string]time.Time
}

func newLogger(out io.Writer) *logger {
	l := &logger{out: out, said: map[string]bool{}, last: map[string]time.Time{}}
	logrus.SetOutput(out)
	logrus.SetLevel(logrus.WarnLevel)
	return l
}

func (l *logger) printf(format string, args ...any) {
	line := time.Now().UTC().Format("2006-01-02T15:04:05.000Z ") + fmt.Sprintf(format, args...) + "\n"
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = io.WriteString(l.out, line)
}

// once prints a line unless the same was printed before.
func (l *logger) once(format string, args ...any) {
	key := fmt.Sprintf(format, args...)
	l.mu.Lock()
	said := l.said[key]
	l.said[key] = true
	l.mu.Unlock()
	if !said {
		l.printf("%s", key)
	}
}

// limited prints a line unless one with the same key was printed in the last minute.
func (l *logger) limited(key, format string, args ...any) {
	now := time.Now()
	l.mu.Lock()
	again := now.Sub(l.last[key]) < time.Minute
	if !again {
		if len(l.last) > 1000 {
			clear(l.last)
		}
		l.last[key] = now
	}
	l.mu.Unlock()
	if !again {
		l.printf(format, args...)
	}
}
