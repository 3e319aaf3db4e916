package conformance

import (
	"context"
	"flag"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1beta1 "k8s.io/api/admissionregistration/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/conformance/native"
	"github.com/wisp-serving/wisp/test/platform"
	"github.com/wisp-serving/wisp/test/platform/stack"
)

// only restricts a run of Knative's suite, for one who looks for a fault.
var only = flag.String("kingress", "", "comma-separated `groups` of Knative's ingress suite to run instead of all: grpc for grpc and grpc/split")

// kingressTests are the tests of Knative's suite for ingresses: stable, beta and
// alpha ones. A run must show each of them passed.
var kingressTests = []string{
	"basics", "basics/http2", "grpc", "grpc/split", "headers/pre-split", "headers/post-split", "headers/probe",
	"hosts/multiple", "dispatch/path", "dispatch/percentage", "dispatch/path_and_percentage", "dispatch/rule",
	"retry", "timeout", "tls", "update", "visibility", "visibility/split", "visibility/path", "ingressclass",
	"websocket", "websocket/split",
	"host-rewrite", "headers/tags",
	"httpoption",
}

// servingTests is the namespace in which Knative's suites work.
const servingTests = "serving-tests"

// The Service of Wisp's external listener.
const gatewayNamespace, gatewayService = "wisp-system", "wisp-gateway"

// TestKIngress_native runs Knative's suite against the gateway and Envoy, with
// native processes for backends: what fails here is the gateway's fault.
func TestKIngress_native(t *testing.T) {
	p := start(t, platform.Options{})
	startNativeNode(t, p, suite.Images)
	runKIngress(t, p, "dev.local")
}

// TestKIngress_wasm runs the suite with its images compiled to wasm, on Wisp's
// own node: for pods that have nothing to do with Knative, it is a node like any
// other. One image dials out, which no guest can, and stays native.
func TestKIngress_wasm(t *testing.T) {
	p := start(t, platform.Options{
		WithoutRace: true, // it would slow the guests' host several times
		Settings: stack.Settings{
			Node: func(c *config.Node) { c.PodCIDR = wasmPods },
			// Admission by an expression is off by default in this version.
			APIServer: []string{"--feature-gates=MutatingAdmissionPolicy=true", "--runtime-config=admissionregistration.k8s.io/v1beta1=true"},
		},
	})
	for image, module := range modules {
		p.Wisp(t, "push", "--abi", "server", module, p.Registry+"/"+image+":latest")
	}
	sendToWasm(t, p)
	startNativeNode(t, p, map[string]string{"httpproxy": suite.Images["httpproxy"]})
	runKIngress(t, p, p.Registry)
}

// start starts a platform whose Envoy has addresses of the pod network, and
// prepares what Knative's suites take for granted.
func start(t *testing.T, o platform.Options) *platform.Platform {
	t.Helper()
	o.Settings.Gateway = func(c *config.Gateway) {
		c.Envoy.HTTPAddress = externalAddress + ":80"
		c.Envoy.HTTPSAddress = externalAddress + ":443"
		c.Envoy.InternalAddress = internalAddress + ":80"
		// An address instead of a name: nothing here resolves names.
		c.InternalDomain = internalAddress
	}
	p := platform.Start(t, o)
	create(t, p, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: servingTests}})
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: servingTests, Name: "default"}}
	platform.WaitFor(t, p, account, "be there", func(*corev1.ServiceAccount) bool { return true })
	exposeGateway(t, p)
	return p
}

// exposeGateway plays the cloud's part: it gives the Service of Wisp's external
// listener the address at which Envoy listens. The suite finds Envoy so.
func exposeGateway(t *testing.T, p *platform.Platform) {
	t.Helper()
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: gatewayNamespace, Name: gatewayService},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer,
			Ports: []corev1.ServicePort{
				{Name: "http", Port: 80},
				{Name: "https", Port: 443},
			},
		},
	}
	create(t, p, service)
	service.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: externalAddress}}
	if err := p.Client.Status().Update(t.Context(), service); err != nil {
		t.Fatalf("set the address of service %s: %v", gatewayService, err)
	}
}

func create(t *testing.T, p *platform.Platform, obj client.Object) {
	t.Helper()
	if err := p.Client.Create(t.Context(), obj); err != nil {
		t.Fatalf("create %T %s: %v", obj, client.ObjectKeyFromObject(obj), err)
	}
}

// sendToWasm has the pods of Knative's suites run on Wisp's node, but for those
// whose image can't: the suites know nothing of runtime classes.
func sendToWasm(t *testing.T, p *platform.Platform) {
	t.Helper()
	create(t, p, &admissionv1beta1.MutatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "wasm"},
		Spec: admissionv1beta1.MutatingAdmissionPolicySpec{
			MatchConstraints: &admissionv1beta1.MatchResources{
				NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: servingTests}},
				ResourceRules: []admissionv1beta1.NamedRuleWithOperations{{RuleWithOperations: admissionv1beta1.RuleWithOperations{
					Operations: []admissionv1beta1.OperationType{admissionv1beta1.Create},
					Rule:       admissionv1beta1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
				}}},
			},
			MatchConditions: []admissionv1beta1.MatchCondition{{
				Name: "a-module", Expression: `!object.spec.containers[0].image.contains("/httpproxy:")`,
			}},
			ReinvocationPolicy: admissionv1beta1.NeverReinvocationPolicy,
			Mutations: []admissionv1beta1.Mutation{{
				PatchType: admissionv1beta1.PatchTypeApplyConfiguration,
				ApplyConfiguration: &admissionv1beta1.ApplyConfiguration{
					Expression: `Object{spec: Object.spec{runtimeClassName: "` + config.RuntimeClass + `"}}`,
				},
			}},
		},
	})
	create(t, p, &admissionv1beta1.MutatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "wasm"},
		Spec:       admissionv1beta1.MutatingAdmissionPolicyBindingSpec{PolicyName: "wasm"},
	})
	awaitWasm(t, p)
}

// awaitWasm waits until the API server has taken the policy in, of which nothing
// tells but a pod.
func awaitWasm(t *testing.T, p *platform.Platform) {
	t.Helper()
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: servingTests, Name: "try"},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "try", Image: "registry/try:latest"}}},
		}
		err := p.Client.Create(ctx, pod, client.DryRunAll)
		return pod.Spec.RuntimeClassName != nil, err
	})
	if err != nil {
		t.Fatalf("wait for the admission policy wasm: %v", err)
	}
}

// startNativeNode adds a node that runs images as processes.
func startNativeNode(t *testing.T, p *platform.Platform, programs map[string]string) {
	t.Helper()
	kube, err := kubernetes.NewForConfig(p.REST)
	if err != nil {
		t.Fatal(err)
	}
	node, err := native.New(native.Config{
		Name:     "native-0",
		Address:  nativePods.Addr().String(),
		Client:   kube,
		Programs: programs,
		Connect:  bridge.Connect,
		LogDir:   t.ArtifactDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- node.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run node native-0: %v", err)
		}
	})
	<-node.Ready()
}

// runKIngress runs Knative's suite with the images in a registry, and shows each
// of its tests as one of t's.
func runKIngress(t *testing.T, p *platform.Platform, registry string) {
	t.Helper()
	log := filepath.Join(t.ArtifactDir(), "kingress.log")
	args := []string{
		"--kubeconfig", p.Kubeconfig,
		"--ingressClass", config.IngressClass,
		"--imagetemplate", registry + "/{{.Name}}:latest",
		"--enable-beta", "--enable-alpha",
		// Most of a test is waiting: for seconds that it polls by, or sleeps.
		"-test.parallel", "8",
	}
	tests := kingressTests
	if *only != "" {
		groups := strings.Split(*only, ",")
		tests = slices.DeleteFunc(slices.Clone(tests), func(name string) bool {
			group, _, _ := strings.Cut(name, "/")
			return !slices.Contains(groups, group)
		})
		args = append(args, "-test.run", "^TestIngressConformance$/^("+strings.Join(groups, "|")+")$")
	}
	results := runSuite(t, suite.Suite, log, args...)
	for _, name := range tests {
		t.Run(name, func(t *testing.T) { results.check(t, "TestIngressConformance/"+name) })
	}
	if t.Failed() {
		t.Logf("what the gateway made of it:\n%s", p.Kubectl(t, "get", "ingresses.networking.internal.knative.dev", "-n", servingTests, "-o", "yaml"))
		t.Logf("what became of the pods:\n%s", p.Kubectl(t, "get", "events", "-n", servingTests, "--sort-by", ".lastTimestamp"))
	}
}
