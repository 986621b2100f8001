package imageservice

import (
	"bytes"
	"context"
	"sync"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"
)

// libraryLog takes what containerd's libraries log on their own: every request to a registry, and every step of
// cleaning up that another one has done already. What matters they return.
var libraryLog = newLibraryLog(logrus.WarnLevel)

// quietOnce silences what they log outside of any call: every open of a store warns of filesystems without fs-verity.
var quietOnce = sync.OnceFunc(func() { log.L = newLibraryLog(logrus.ErrorLevel) })

func newLibraryLog(level logrus.Level) *log.Entry {
	logger := logrus.New()
	logger.SetLevel(level)
	logger.SetOutput(klogWriter{})
	logger.SetFormatter(&logrus.TextFormatter{DisableColors: true, DisableTimestamp: true})
	return logrus.NewEntry(logger)
}

func quiet(ctx context.Context) context.Context {
	return log.WithLogger(ctx, libraryLog)
}

type klogWriter struct{}

func (klogWriter) Write(line []byte) (int, error) {
	klog.V(2).InfoS("Image library reports a problem", "report", string(bytes.TrimSpace(line)))
	return len(line), nil
}
