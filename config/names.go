package config

// Names that users write, or see, in Kubernetes objects.
const (
	// PodAutoscalerClass is the value of autoscaling.knative.dev/class that
	// hands a PodAutoscaler to `wisp autoscaler`.
	PodAutoscalerClass = "wisp.dev"
	// IngressClass is the value of networking.knative.dev/ingress.class that
	// hands a KIngress to `wisp gateway`.
	IngressClass = "wisp.ingress.networking.knative.dev"
	// RuntimeClass is the runtimeClassName of wasm pods.
	RuntimeClass = "wasm"
	// NodeLabel, with the value "true", marks a wasm node. The RuntimeClass
	// selects nodes by it.
	NodeLabel = "wisp.dev/node"
	// NodeTaint, with the value "wisp" and effect NoSchedule, keeps other pods
	// off a wasm node. The RuntimeClass tolerates it.
	NodeTaint = "virtual-kubelet.io/provider"
	// ABIAnnotation on a pod, or as a label on an image, says how a function is
	// called.
	ABIAnnotation = "wisp.dev/abi"
	// RoutesAnnotation on a Service, as in "POST /sort, /docs/*", says where on the
	// gateway's shared host it answers too.
	RoutesAnnotation = "wisp.dev/routes"
	// EarlyStartAnnotation on a pod, when "false", keeps a function from
	// starting before its Pod exists.
	EarlyStartAnnotation = "wisp.dev/early-start"
	// PodAfterAnnotation on a revision, a duration, is how long demand must last
	// before a Pod is asked for a function that runs without one.
	PodAfterAnnotation = "wisp.dev/pod-after"
)
