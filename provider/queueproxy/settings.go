package queueproxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"text/template"
	"time"

	corev1 "k8s.io/api/core/v1"
	"knative.dev/serving/pkg/observability"
	"knative.dev/serving/pkg/queue/readiness"
)

// Name is the name of the container that Knative adds to every revision's pod
// (serving pkg/reconciler/revision/resources/queue.go).
const Name = "queue-proxy"

// Settings is what Knative tells a pod's queue-proxy, in the environment of its
// container (serving pkg/queue/sharedmain/main.go).
type Settings struct {
	Namespace, Service, Configuration, Revision string

	// Concurrency is the most requests that the function handles at a time; 0 is
	// any number.
	Concurrency int
	// Timeout bounds a request, ResponseStartTimeout the time to the first byte of
	// its answer, IdleTimeout the time between two writes of it. 0 is no bound.
	Timeout, ResponseStartTimeout, IdleTimeout time.Duration
	// UserPort is the port on which the function listens, if it does.
	UserPort int
	// Readiness holds the probes that Knative has taken from the containers, all
	// of which must succeed. An exec probe has become a TCP probe.
	Readiness []*corev1.Probe
	// DetectHTTP2 has probes by HTTP asked by HTTP/2 without TLS first: the feature
	// autodetect-http2 of Knative.
	DetectHTTP2 bool
	// FullDuplex lets an HTTP/1.1 function answer while it still reads.
	FullDuplex bool
	// RequestLog is the template of a line for each request, empty for none; one
	// for probes too if LogProbes.
	RequestLog string
	LogProbes  bool
}

// Parse reads the settings from the container's variables. The error names each
// variable that has no valid value. A variable that isn't there is its zero
// value: a later Knative may drop it.
func Parse(env []corev1.EnvVar) (Settings, error) {
	p := parser{values: make(map[string]string, len(env))}
	for _, e := range env {
		p.values[e.Name] = e.Value
	}
	s := Settings{
		Namespace:            p.values["SERVING_NAMESPACE"],
		Service:              p.values["SERVING_SERVICE"],
		Configuration:        p.values["SERVING_CONFIGURATION"],
		Revision:             p.values["SERVING_REVISION"],
		Concurrency:          p.number("CONTAINER_CONCURRENCY"),
		Timeout:              p.seconds("REVISION_TIMEOUT_SECONDS"),
		ResponseStartTimeout: p.seconds("REVISION_RESPONSE_START_TIMEOUT_SECONDS"),
		IdleTimeout:          p.seconds("REVISION_IDLE_TIMEOUT_SECONDS"),
		UserPort:             p.number("USER_PORT"),
		Readiness:            p.probes("SERVING_READINESS_PROBE", "ENABLE_MULTI_CONTAINER_PROBES"),
		DetectHTTP2:          p.flag("ENABLE_HTTP2_AUTO_DETECTION"),
		FullDuplex:           p.flag("ENABLE_HTTP_FULL_DUPLEX"),
	}
	s.RequestLog, s.LogProbes = p.requestLog("OBSERVABILITY_CONFIG")
	return s, errors.Join(p.errs...)
}

// parser reads values and collects what is wrong with them.
type parser struct {
	values map[string]string
	errs   []error
}

func (p *parser) fail(name, rule string) {
	p.errs = append(p.errs, fmt.Errorf("%s env %s = %q, must be %s", Name, name, p.values[name], rule))
}

func (p *parser) number(name string) int {
	if p.values[name] == "" {
		return 0
	}
	n, err := strconv.Atoi(p.values[name])
	if err != nil || n < 0 {
		p.fail(name, "a number of at least 0")
		return 0
	}
	return n
}

func (p *parser) seconds(name string) time.Duration {
	return time.Duration(p.number(name)) * time.Second
}

func (p *parser) flag(name string) bool {
	if p.values[name] == "" {
		return false
	}
	on, err := strconv.ParseBool(p.values[name])
	if err != nil {
		p.fail(name, "true or false")
	}
	return on
}

func (p *parser) probes(name, several string) []*corev1.Probe {
	if p.values[name] == "" {
		return nil
	}
	decoded, err := readiness.DecodeProbes(p.values[name], p.flag(several))
	if err != nil {
		p.fail(name, "a probe in JSON: "+err.Error())
		return nil
	}
	var probes []*corev1.Probe
	for _, probe := range decoded {
		if probe != nil { // null, for a container without one
			probes = append(probes, probe)
		}
	}
	return probes
}

func (p *parser) requestLog(name string) (text string, probes bool) {
	if p.values[name] == "" {
		return "", false
	}
	var cfg observability.Config
	if err := json.Unmarshal([]byte(p.values[name]), &cfg); err != nil {
		p.fail(name, "the observability settings in JSON: "+err.Error())
		return "", false
	}
	if !cfg.EnableRequestLog {
		return "", false
	}
	if _, err := template.New(name).Parse(cfg.RequestLogTemplate); err != nil {
		p.fail(name, "settings with a valid request log template: "+err.Error())
		return "", false
	}
	return cfg.RequestLogTemplate, cfg.EnableProbeRequestLog
}
