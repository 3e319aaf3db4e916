package stack

import (
	"time"

	"github.com/wisp-serving/wisp/test/platform/supervise"
)

// The components' names.
const (
	etcd      = "etcd"
	apiserver = "kube-apiserver"
	registry  = "registry"
)

// controlPlane returns Kubernetes' own components, and the image registry.
func (s *Stack) controlPlane(c *credentials) []supervise.Component {
	return []supervise.Component{
		s.etcd(c), s.registry(), s.apiserver(c), s.controllerManager(c), s.scheduler(c),
	}
}

func (s *Stack) etcd(c *credentials) supervise.Component {
	client, peer := "https://"+s.local(s.cfg.Ports.Etcd), "https://"+s.local(s.cfg.Ports.EtcdPeer)
	return supervise.Component{
		Name:    etcd,
		Path:    s.cfg.Programs.Etcd,
		Address: client,
		Args: []string{
			"--name=platform",
			"--data-dir=" + s.state.data(etcd),
			// Losing the last writes when the machine itself stops is fine here;
			// a laptop's disk would set the pace of everything otherwise.
			"--unsafe-no-fsync",
			"--log-level=warn",
			"--listen-client-urls=" + client,
			"--advertise-client-urls=" + client,
			"--listen-peer-urls=" + peer,
			"--initial-advertise-peer-urls=" + peer,
			"--initial-cluster=platform=" + peer,
			"--cert-file=" + c.etcd.Cert, "--key-file=" + c.etcd.Key,
			"--client-cert-auth", "--trusted-ca-file=" + c.etcdCA.Cert,
			"--peer-cert-file=" + c.etcd.Cert, "--peer-key-file=" + c.etcd.Key,
			"--peer-client-cert-auth", "--peer-trusted-ca-file=" + c.etcdCA.Cert,
		},
		Ready: httpsReady(client+"/readyz", c.etcdCA.Cert, &c.etcdClient),
	}
}

func (s *Stack) registry() supervise.Component {
	address := s.local(s.cfg.Ports.Registry)
	return supervise.Component{
		Name:    registry,
		Path:    s.state.Bin("platform"),
		Args:    []string{"registry", "--address", address, "--dir", s.state.data(registry)},
		Address: "http://" + address,
		Ready:   httpReady("http://" + address + "/v2/"),
	}
}

func (s *Stack) apiserver(c *credentials) supervise.Component {
	return supervise.Component{
		Name:    apiserver,
		After:   []string{etcd},
		Path:    s.cfg.Programs.APIServer,
		Address: "https://" + s.local(s.cfg.Ports.APIServer),
		Args: append([]string{
			"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", flag("secure-port", s.cfg.Ports.APIServer),
			// Kubernetes refuses endpoints on loopback, its own included.
			"--endpoint-reconciler-type=none",
			"--etcd-servers=https://" + s.local(s.cfg.Ports.Etcd),
			"--etcd-cafile=" + c.etcdCA.Cert, "--etcd-certfile=" + c.etcdClient.Cert, "--etcd-keyfile=" + c.etcdClient.Key,
			"--tls-cert-file=" + c.apiserver.Cert, "--tls-private-key-file=" + c.apiserver.Key,
			"--client-ca-file=" + c.ca.Cert,
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file=" + c.accountPub, "--service-account-signing-key-file=" + c.accountKey,
			"--kubelet-certificate-authority=" + c.ca.Cert,
			"--kubelet-client-certificate=" + c.kubelet.Cert, "--kubelet-client-key=" + c.kubelet.Key,
			"--kubelet-preferred-address-types=InternalIP",
			"--service-cluster-ip-range=10.96.0.0/16",
			"--allow-privileged",
			"--profiling=false",
		}, append(s.auditFlags(), s.cfg.Settings.APIServer...)...),
		Ready: s.cluster.Ready,
		// It waits for open watches, which nobody needs any more.
		StopTimeout: time.Second,
	}
}

func (s *Stack) controllerManager(c *credentials) supervise.Component {
	address := s.local(s.cfg.Ports.ControllerManager)
	kubeconfig := s.state.kubeconfig(controllerManager)
	return supervise.Component{
		Name: controllerManager,
		// Its garbage collector looks for new kinds every 30 s. Having Knative's
		// from the start, it deletes a Service's Revisions from the start.
		After:   []string{manifests},
		Path:    s.cfg.Programs.ControllerManager,
		Address: "https://" + address,
		Args: append([]string{
			"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
			"--bind-address=127.0.0.1", flag("secure-port", s.cfg.Ports.ControllerManager),
			"--tls-cert-file=" + c.controller.Cert, "--tls-private-key-file=" + c.controller.Key,
			"--leader-elect=false",
			"--use-service-account-credentials",
			"--service-account-private-key-file=" + c.accountKey, "--root-ca-file=" + c.ca.Cert,
			"--cluster-signing-cert-file=" + c.ca.Cert, "--cluster-signing-key-file=" + c.ca.Key,
			// The defaults of 20 and 30 pace a burst of new Deployments.
			"--kube-api-qps=200", "--kube-api-burst=400",
			"--profiling=false",
		}, s.cfg.Settings.ControllerManager...),
		Ready: all(httpsReady("https://"+address+"/healthz", c.ca.Cert, nil), s.cluster.HasDefaultAccount),
	}
}

func (s *Stack) scheduler(c *credentials) supervise.Component {
	address := s.local(s.cfg.Ports.Scheduler)
	kubeconfig := s.state.kubeconfig(scheduler)
	return supervise.Component{
		Name:    scheduler,
		After:   []string{apiserver},
		Path:    s.cfg.Programs.Scheduler,
		Address: "https://" + address,
		Args: []string{
			"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
			"--bind-address=127.0.0.1", flag("secure-port", s.cfg.Ports.Scheduler),
			"--tls-cert-file=" + c.scheduler.Cert, "--tls-private-key-file=" + c.scheduler.Key,
			"--leader-elect=false",
			"--kube-api-qps=200", "--kube-api-burst=400",
			"--profiling=false",
		},
		Ready: httpsReady("https://"+address+"/readyz", c.ca.Cert, nil),
	}
}
