package platform_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/cert"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/platform"
	"github.com/wisp-serving/wisp/test/platform/cluster"
	"github.com/wisp-serving/wisp/test/platform/stack"
)

// TestPlatform covers what the platform promises to tests and to Wisp.
func TestPlatform(t *testing.T) {
	p := platform.Start(t, platform.Options{})
	t.Run("a service's pod is bound to the wasm node", func(t *testing.T) { testService(t, p) })
	t.Run("the webhook refuses what Knative refuses", func(t *testing.T) { testWebhook(t, p) })
	t.Run("a node gets its serving certificate", func(t *testing.T) { testServingCertificate(t, p) })
	t.Run("roles have the permissions of their manifests", func(t *testing.T) { testPermissions(t, p) })
}

func testService(t *testing.T, p *platform.Platform) {
	namespace, image := p.Namespace(t), p.Registry+"/sort:v1"
	digest := strings.TrimSpace(p.Wisp(t, "push", p.SortModule, image))
	p.Kn(t, "service", "create", "sort", "-n", namespace, "--image", image, "--no-wait")
	t.Cleanup(func() {
		p.Kn(t, "service", "delete", "sort", "-n", namespace)
		platform.WaitGone(t, p, &servingv1.Revision{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "sort-00001"}})
	})
	revision := platform.WaitFor(t, p, &servingv1.Revision{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "sort-00001"}},
		"have its image resolved", func(r *servingv1.Revision) bool { return len(r.Status.ContainerStatuses) > 0 })
	if got := revision.Status.ContainerStatuses[0].ImageDigest; got != digest {
		t.Errorf("image = %s, want %s", got, digest)
	}
	platform.WaitFor(t, p, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "sort-00001-deployment"}},
		"have made its pod", func(d *appsv1.Deployment) bool { return d.Status.Replicas == 1 })
	var pods corev1.PodList
	if err := p.Client.List(t.Context(), &pods, client.InNamespace(namespace)); err != nil {
		t.Fatal(err)
	}
	if len(pods.Items) != 1 {
		t.Fatalf("%d pods, want 1", len(pods.Items))
	}
	pod := platform.WaitFor(t, p, &pods.Items[0], "be bound", func(p *corev1.Pod) bool { return p.Spec.NodeName != "" })
	if pod.Spec.NodeName != stack.NodeName(0) || pod.Spec.RuntimeClassName == nil || *pod.Spec.RuntimeClassName != config.RuntimeClass {
		t.Errorf("pod is on node %q with runtime class %v, want %s and %s", pod.Spec.NodeName, pod.Spec.RuntimeClassName, stack.NodeName(0), config.RuntimeClass)
	}
}

func testWebhook(t *testing.T, p *platform.Platform) {
	service := &servingv1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "bad"}}
	service.Spec.Template.Spec.Containers = []corev1.Container{{Image: "i", Lifecycle: &corev1.Lifecycle{}}}
	err := p.Client.Create(t.Context(), service)
	if err == nil || !strings.Contains(err.Error(), "validation.webhook.serving.knative.dev") {
		t.Errorf("create a service with a lifecycle = %v, want it refused by the webhook", err)
	}
}

// testServingCertificate asks for a certificate as the first node would, and for
// one that isn't that node's to have.
func testServingCertificate(t *testing.T, p *platform.Platform) {
	node := stack.NodeName(0)
	asNode := impersonate(t, p, cluster.NodeUser(node), cluster.NodesGroup, "system:authenticated")
	ask := func(name string, ip net.IP) *certificatesv1.CertificateSigningRequest {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		request, err := cert.MakeCSR(key, &pkix.Name{CommonName: cluster.NodeUser(node), Organization: []string{cluster.NodesGroup}}, nil, []net.IP{ip})
		if err != nil {
			t.Fatal(err)
		}
		csr := &certificatesv1.CertificateSigningRequest{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: certificatesv1.CertificateSigningRequestSpec{
				Request: request, SignerName: certificatesv1.KubeletServingSignerName,
				Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth},
			},
		}
		if csr, err = asNode.CertificatesV1().CertificateSigningRequests().Create(t.Context(), csr, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		return csr
	}
	own := net.ParseIP(p.NodeAddresses[0])
	signed := platform.WaitFor(t, p, ask("own-address", own), "be signed",
		func(r *certificatesv1.CertificateSigningRequest) bool { return len(r.Status.Certificate) > 0 })
	certs, err := cert.ParseCertsPEM(signed.Status.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	roots, err := cert.NewPool(p.REST.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: own.String()}); err != nil {
		t.Errorf("the certificate is not one that the API server would accept of %s: %v", own, err)
	}
	platform.WaitFor(t, p, ask("another-address", net.ParseIP("127.0.0.1")), "be denied",
		func(r *certificatesv1.CertificateSigningRequest) bool {
			return slices.ContainsFunc(r.Status.Conditions, func(c certificatesv1.CertificateSigningRequestCondition) bool {
				return c.Type == certificatesv1.CertificateDenied
			})
		})
}

// testPermissions reads what each of Wisp's accounts may do, as `kubectl auth
// can-i --list` does: beyond what anyone may, some things, and none of them more
// than such a role should have.
func testPermissions(t *testing.T, p *platform.Platform) {
	anyone := rulesOf(t, p, "default:nobody", metav1.NamespaceDefault)
	for _, account := range []string{"wisp-node", "wisp-gateway", "wisp-autoscaler"} {
		for _, namespace := range []string{metav1.NamespaceDefault, cluster.KnativeNamespace} {
			granted := slices.DeleteFunc(rulesOf(t, p, "wisp-system:"+account, namespace), func(r authorizationv1.ResourceRule) bool {
				return slices.ContainsFunc(anyone, func(a authorizationv1.ResourceRule) bool { return reflect.DeepEqual(a, r) })
			})
			if len(granted) == 0 {
				t.Errorf("%s may do nothing in %s", account, namespace)
			}
			for _, r := range granted {
				if err := tooMuch(r); err != nil {
					t.Errorf("%s may, in %s, %v %v of %v %v: %v", account, namespace, r.Verbs, r.Resources, r.APIGroups, r.ResourceNames, err)
				}
			}
		}
	}
}

// rulesOf returns what a ServiceAccount may do in a namespace.
func rulesOf(t *testing.T, p *platform.Platform, account, namespace string) []authorizationv1.ResourceRule {
	t.Helper()
	kube := impersonate(t, p, "system:serviceaccount:"+account, "system:serviceaccounts", "system:authenticated")
	review := &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: namespace}}
	review, err := kube.AuthorizationV1().SelfSubjectRulesReviews().Create(t.Context(), review, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return review.Status.ResourceRules
}

func impersonate(t *testing.T, p *platform.Platform, user string, groups ...string) kubernetes.Interface {
	t.Helper()
	cfg := rest.CopyConfig(p.REST)
	cfg.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: groups}
	kube, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return kube
}

// tooMuch returns an error for a permission that none of Wisp's roles should
// have.
func tooMuch(r authorizationv1.ResourceRule) error {
	has := func(list []string, of ...string) bool {
		return slices.ContainsFunc(list, func(s string) bool { return slices.Contains(of, s) })
	}
	switch {
	case has(r.Verbs, "*") || has(r.Resources, "*") || has(r.APIGroups, "*"):
		return errors.New("that covers what nobody has thought of")
	case has(r.Resources, "secrets", "configmaps") && has(r.Verbs, "create", "update", "patch", "delete"):
		return errors.New("that is other people's")
	case has(r.APIGroups, "rbac.authorization.k8s.io") || has(r.Verbs, "impersonate", "escalate", "bind"):
		return errors.New("that leads to any other permission")
	case has(r.Resources, "pods", "deployments", "pods/exec") && has(r.Verbs, "create", "update", "patch"):
		return errors.New("that runs anything, anywhere")
	default:
		return nil
	}
}
