package provider

import (
	"context"
	"errors"

	"github.com/virtual-kubelet/virtual-kubelet/log"
	"go.uber.org/zap"
)

// vkLogger lets virtual-kubelet write to the node's log, a level lower than it
// says: its informational lines, several per pod, tell what the provider tells
// itself, and its warnings are about its own queues. What fails only because the
// node stops is debug too.
type vkLogger struct {
	*zap.SugaredLogger
	stopping bool
}

var _ log.Logger = vkLogger{}

func (l vkLogger) Info(args ...any)                 { l.SugaredLogger.Debug(args...) }
func (l vkLogger) Infof(format string, args ...any) { l.SugaredLogger.Debugf(format, args...) }

func (l vkLogger) Warn(args ...any)                 { l.SugaredLogger.Info(args...) }
func (l vkLogger) Warnf(format string, args ...any) { l.SugaredLogger.Infof(format, args...) }

func (l vkLogger) Error(args ...any) {
	if l.stopping {
		l.SugaredLogger.Debug(args...)
		return
	}
	l.SugaredLogger.Error(args...)
}

func (l vkLogger) WithField(key string, value any) log.Logger {
	return vkLogger{l.With(key, value), l.stopping}
}

func (l vkLogger) WithFields(fields log.Fields) log.Logger {
	args := make([]any, 0, 2*len(fields))
	for key, value := range fields {
		args = append(args, key, value)
	}
	return vkLogger{l.With(args...), l.stopping}
}

func (l vkLogger) WithError(err error) log.Logger {
	return vkLogger{l.With(zap.Error(err)), errors.Is(err, context.Canceled)}
}
