package main

import (
	"fmt"

	"github.com/go-logr/zapr"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/klog/v2"
	controllerruntime "sigs.k8s.io/controller-runtime"

	"github.com/wisp-serving/wisp/config"
)

// newLog builds a role's log on standard error, and makes the libraries that
// log on their own (client-go, controller-runtime) write to it too.
func newLog(role string, cfg config.Log) (*zap.SugaredLogger, error) {
	level, err := zap.ParseAtomicLevel(cfg.Level)
	if err != nil {
		return nil, fmt.Errorf("set up the log: %w", err)
	}
	return newLogAt(level, role, cfg)
}

// newLogAt is newLog with a level that may change.
func newLogAt(level zap.AtomicLevel, role string, cfg config.Log) (*zap.SugaredLogger, error) {
	settings := zap.NewProductionConfig()
	settings.Level = level
	settings.Encoding = cfg.Format
	settings.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	settings.EncoderConfig.EncodeDuration = zapcore.StringDurationEncoder
	settings.DisableStacktrace = true
	settings.Sampling = nil
	log, err := settings.Build()
	if err != nil {
		return nil, fmt.Errorf("set up the log: %w", err)
	}
	log = log.Named(role)
	klog.SetLogger(zapr.NewLogger(log.Named("client-go")))
	// Managers have the role's own logger. What controller-runtime says besides,
	// at info, is a line for each health check that fails.
	controllerruntime.SetLogger(zapr.NewLogger(log.WithOptions(zap.IncreaseLevel(zapcore.WarnLevel))))
	return log.Sugar(), nil
}
