package translate

import (
	"cmp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
)

func secret(ing *v1alpha1.Ingress, t v1alpha1.IngressTLS) types.NamespacedName {
	return types.NamespacedName{Namespace: cmp.Or(t.SecretNamespace, ing.Namespace), Name: t.SecretName}
}

// checkTLS returns why ing's certificates can't be served.
func checkTLS(ing *v1alpha1.Ingress, w World) *Refusal {
	external := len(hosts(ing, v1alpha1.IngressVisibilityExternalIP)) > 0
	for i, t := range ing.Spec.TLS {
		key := secret(ing, t)
		if key.Namespace != ing.Namespace {
			return refuse(ReasonInvalid, "spec.tls[%d].secretNamespace = %s, must be the ingress's own: %s", i, key.Namespace, ing.Namespace)
		}
		local, ok := localHost(ing, t)
		if ok && !w.Gateway.InternalTLS {
			return refuse(ReasonNotSupported, "spec.tls[%d].hosts has the cluster-local %s, and the gateway's setting envoy.internalHTTPSAddress is empty", i, local)
		}
		if !ok && external && !w.Gateway.TLS {
			return refuse(ReasonNotSupported, "spec.tls[%d] is set, and the gateway's setting envoy.httpsAddress is empty", i)
		}
		if r := w.Certificate(key); r != nil {
			return r
		}
	}
	if redirects(ing) && external && !w.Gateway.TLS {
		return refuse(ReasonNotSupported, "spec.httpOption = %s, and the gateway's setting envoy.httpsAddress is empty", ing.Spec.HTTPOption)
	}
	return nil
}

func redirects(ing *v1alpha1.Ingress) bool {
	return ing.Spec.HTTPOption == v1alpha1.HTTPOptionRedirected
}

// localHost returns the first of t's hosts that only cluster-local rules have.
func localHost(ing *v1alpha1.Ingress, t v1alpha1.IngressTLS) (string, bool) {
	for _, h := range t.Hosts {
		h = strings.ToLower(h)
		if slices.Contains(hosts(ing, v1alpha1.IngressVisibilityClusterLocal), h) && !slices.Contains(hosts(ing, v1alpha1.IngressVisibilityExternalIP), h) {
			return h, true
		}
	}
	return "", false
}

// hosts returns the hosts of ing's rules of one visibility, in lower case.
func hosts(ing *v1alpha1.Ingress, v v1alpha1.IngressVisibility) []string {
	var out []string
	for _, rule := range ing.Spec.Rules {
		if rule.Visibility != v {
			continue
		}
		for _, h := range rule.Hosts {
			out = append(out, strings.ToLower(h))
		}
	}
	return out
}

// certificates returns for each host the first certificate of ing that is for it,
// at the door by which the host is reached. So a name that clients ask for is never
// more than ing's own hosts, whatever a certificate covers.
func certificates(ing *v1alpha1.Ingress, g Gateway) []Certificate {
	var out []Certificate
	if g.TLS {
		out = append(out, certificatesAt(Secure, ing, v1alpha1.IngressVisibilityExternalIP)...)
	}
	if g.InternalTLS {
		out = append(out, certificatesAt(InternalSecure, ing, v1alpha1.IngressVisibilityClusterLocal)...)
	}
	return out
}

func certificatesAt(d Door, ing *v1alpha1.Ingress, v v1alpha1.IngressVisibility) []Certificate {
	taken := map[string]bool{}
	var out []Certificate
	for _, t := range ing.Spec.TLS {
		c := Certificate{Door: d, Secret: secret(ing, t)}
		for _, h := range hosts(ing, v) {
			if !taken[h] && covers(t.Hosts, h) {
				taken[h] = true
				c.Hosts = append(c.Hosts, h)
			}
		}
		if len(c.Hosts) > 0 {
			out = append(out, c)
		}
	}
	return out
}

// doors returns the doors that certificates are for.
func doors(certificates []Certificate) map[Door]bool {
	out := map[Door]bool{}
	for _, c := range certificates {
		out[c.Door] = true
	}
	return out
}

// covers reports whether a certificate is for host. Without hosts it is for all.
func covers(hosts []string, host string) bool {
	if len(hosts) == 0 {
		return true
	}
	_, parent, _ := strings.Cut(host, ".")
	return slices.ContainsFunc(hosts, func(h string) bool {
		h = strings.ToLower(h)
		return h == host || h == "*."+parent
	})
}
