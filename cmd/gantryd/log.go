package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"strconv"
	"time"

	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"
)

// setupLogging makes klog, which all packages log by, write to w. What libraries log by other means goes the same way
// in the same format. Call it once, before anything logs.
func setupLogging(w io.Writer, format string, verbosity int) error {
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	for name, value := range map[string]string{"v": strconv.Itoa(verbosity), "logtostderr": "false"} {
		if err := flags.Set(name, value); err != nil {
			return fmt.Errorf("set up logging: %w", err)
		}
	}
	// containerd's libraries log by logrus, at levels that are for the developers of containerd.
	logrus.SetOutput(w)
	logrus.SetLevel(logrus.WarnLevel)
	if format == logFormatJSON {
		logger := slog.New(jsonHandler(w, verbosity))
		klog.SetSlogLogger(logger)
		slog.SetDefault(logger) // and with it package log
		logrus.SetFormatter(&logrus.JSONFormatter{FieldMap: logrus.FieldMap{logrus.FieldKeyTime: "ts"}})
		return nil
	}
	klog.SetOutput(w)
	log.SetFlags(0)
	log.SetOutput(klogWriter{})
	return nil
}

// jsonHandler makes objects with ts, level ("info" or "error"), v (verbosity, if not 0), msg and the log's own keys.
func jsonHandler(w io.Writer, verbosity int) slog.Handler {
	return slog.NewJSONHandler(w, &slog.HandlerOptions{
		Level:       slog.Level(-verbosity), // logr maps V(n) to level -n
		ReplaceAttr: replaceAttr,
	})
}

// replaceAttr gives an attribute its name in the log, and values that have a text, such as durations and gRPC codes,
// that text: the text log has it too.
func replaceAttr(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		a.Key = "ts"
		return a
	}
	switch value := a.Value.Any().(type) {
	case slog.Level:
		return levelAttr(value)
	case time.Time, error:
	case fmt.Stringer:
		a.Value = slog.StringValue(value.String())
	}
	return a
}

func levelAttr(level slog.Level) slog.Attr {
	switch {
	case level >= slog.LevelError:
		return slog.String(slog.LevelKey, "error")
	case level >= slog.LevelInfo:
		return slog.String(slog.LevelKey, "info")
	}
	// Two attributes in place of one: a group without a name is inlined.
	return slog.Attr{Value: slog.GroupValue(slog.String(slog.LevelKey, "info"), slog.Int("v", int(-level)))}
}

// klogWriter logs the lines that package log prints, such as those of net/http.
type klogWriter struct{}

// Write implements io.Writer for one line.
func (klogWriter) Write(line []byte) (int, error) {
	klog.InfoS("Library message", "text", string(line))
	return len(line), nil
}
