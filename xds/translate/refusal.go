package translate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
	"knative.dev/serving/pkg/activator"

	"github.com/wisp-serving/wisp/config"
)

// Refusal is why a KIngress is not served as it asks. Reason is one word for a
// condition, Message is for its reader.
type Refusal struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// Error returns reason and message.
func (r *Refusal) Error() string { return r.Reason + ": " + r.Message }

// The reasons of a Refusal.
const (
	ReasonInvalid       = "InvalidIngress"
	ReasonNotSupported  = "NotSupported"
	ReasonNoBackend     = "BackendNotFound"
	ReasonCertificate   = "CertificateNotReady"
	ReasonConflict      = "DomainConflict"
	ReasonRouteConflict = "RouteConflict"
	ReasonRejected      = "RejectedByEnvoy"
)

func refuse(reason, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// check returns why ing, which has its defaults, can't be served as it asks,
// whatever its backends.
func check(ing *v1alpha1.Ingress, w World) *Refusal {
	if err := ing.Validate(context.Background()); err != nil {
		return refuse(ReasonInvalid, "%v", err)
	}
	for i, rule := range ing.Spec.Rules {
		if err := checkRule(rule); err != nil {
			return refuse(ReasonInvalid, "spec.rules[%d].%v", i, err)
		}
		if host := w.Gateway.SharedHost; host != "" && slices.ContainsFunc(rule.Hosts, func(h string) bool { return strings.EqualFold(h, host) }) {
			return refuse(ReasonConflict, "host %s is shared by all: %s names places on it", host, config.RoutesAnnotation)
		}
	}
	return checkTLS(ing, w)
}

func checkRule(rule v1alpha1.IngressRule) error {
	switch rule.Visibility {
	case v1alpha1.IngressVisibilityExternalIP, v1alpha1.IngressVisibilityClusterLocal:
	default:
		return fmt.Errorf("visibility = %s, must be ExternalIP or ClusterLocal", rule.Visibility)
	}
	if len(rule.Hosts) == 0 {
		return errors.New("hosts is empty, and would take every host")
	}
	for i, h := range rule.Hosts {
		// Envoy reads * as a wildcard, which would take others' hosts.
		if problems := validation.IsDNS1123Subdomain(strings.ToLower(h)); len(problems) > 0 {
			return fmt.Errorf("hosts[%d] = %q, must be a host name without port or *", i, h)
		}
	}
	for i, p := range rule.HTTP.Paths {
		if err := checkPath(p); err != nil {
			return fmt.Errorf("http.paths[%d].%w", i, err)
		}
	}
	return nil
}

func checkPath(p v1alpha1.HTTPIngressPath) error {
	if p.Path != "" && p.Path[0] != '/' {
		return fmt.Errorf("path = %q, must begin with /", p.Path)
	}
	for i, s := range p.Splits {
		for _, h := range headers(p.AppendHeaders, s.AppendHeaders) {
			if err := checkAppended(h, s.IngressBackend); err != nil {
				return fmt.Errorf("splits[%d]: %w", i, err)
			}
		}
	}
	return nil
}

// checkAppended refuses headers that would let a KIngress reach further than to
// its backend. See RATIONALE.md "Which headers may a KIngress not append?".
func checkAppended(h Header, to v1alpha1.IngressBackend) error {
	want := h.Value
	switch h.Name {
	case "host", "connection", "content-length", "transfer-encoding":
		return fmt.Errorf("appendHeaders has %s, which is the gateway's to set", h.Name)
	case strings.ToLower(activator.RevisionHeaderName):
		want = to.ServiceName
	case strings.ToLower(activator.RevisionHeaderNamespace):
		want = to.ServiceNamespace
	}
	if h.Value != want {
		return fmt.Errorf("appended header %s = %q, must be the backend's %q", h.Name, h.Value, want)
	}
	if len(validation.IsHTTPHeaderName(h.Name)) > 0 {
		return fmt.Errorf("appendHeaders has %q, must be of letters, digits and -", h.Name)
	}
	return nil
}
