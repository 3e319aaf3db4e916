package stack

import (
	"github.com/wisp-serving/wisp/test/platform/cluster"
	"github.com/wisp-serving/wisp/test/platform/pki"
	"github.com/wisp-serving/wisp/test/platform/ports"
)

// The ServiceAccounts under which roles run: their permissions are those of the
// manifests, nothing else.
var (
	knativeAccount    = cluster.Account{Namespace: cluster.KnativeNamespace, Name: "controller"}
	nodeAccount       = cluster.Account{Namespace: WispNamespace, Name: "wisp-node"}
	gatewayAccount    = cluster.Account{Namespace: WispNamespace, Name: "wisp-gateway"}
	autoscalerAccount = cluster.Account{Namespace: WispNamespace, Name: "wisp-autoscaler"}
)

// WispNamespace is where the accounts of Wisp's roles are.
const WispNamespace = "wisp-system"

// credentials are the files by which components know each other.
type credentials struct {
	ca         *pki.Authority // of the cluster: servers, users and nodes
	etcdCA     *pki.Authority // of etcd alone; see RATIONALE.md "Why has etcd an authority of its own?"
	etcd       pki.Pair
	etcdClient pki.Pair
	apiserver  pki.Pair
	kubelet    pki.Pair // the API server as a client of kubelets
	controller pki.Pair // the controller manager's server
	scheduler  pki.Pair
	accountKey string // signs ServiceAccount tokens
	accountPub string
}

// The users that Kubernetes' own bootstrap policy knows.
const (
	controllerManager = "kube-controller-manager"
	scheduler         = "kube-scheduler"
)

// issue issues every certificate anew, except for the authorities, and writes
// the kubeconfigs.
func (s *Stack) issue() (*credentials, error) {
	c := &credentials{}
	var err error
	if c.ca, err = pki.OpenAuthority(s.state.pki(), "ca"); err != nil {
		return nil, err
	}
	if c.etcdCA, err = pki.OpenAuthority(s.state.pki(), "etcd-ca"); err != nil {
		return nil, err
	}
	for _, leaf := range []struct {
		to   *pki.Pair
		make func() (pki.Pair, error)
	}{
		{&c.etcd, func() (pki.Pair, error) { return c.etcdCA.Peer("etcd", ports.Loopback, "localhost") }},
		{&c.etcdClient, func() (pki.Pair, error) { return c.etcdCA.Client("etcd-client", "kube-apiserver") }},
		{&c.apiserver, func() (pki.Pair, error) {
			return c.ca.Serving("kube-apiserver", ports.Loopback, "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
		}},
		{&c.kubelet, func() (pki.Pair, error) {
			return c.ca.Client("kube-apiserver-kubelet-client", "kube-apiserver-kubelet-client", "system:masters")
		}},
		{&c.controller, func() (pki.Pair, error) { return c.ca.Serving(controllerManager, ports.Loopback, "localhost") }},
		{&c.scheduler, func() (pki.Pair, error) { return c.ca.Serving(scheduler, ports.Loopback, "localhost") }},
	} {
		if *leaf.to, err = leaf.make(); err != nil {
			return nil, err
		}
	}
	if c.accountKey, c.accountPub, err = pki.SigningKey(s.state.pki(), "service-accounts"); err != nil {
		return nil, err
	}
	return c, s.writeKubeconfigs(c)
}

// user is someone whom a client certificate names.
type user struct {
	file, name string
	groups     []string
}

func (s *Stack) writeKubeconfigs(c *credentials) error {
	api := cluster.Kubeconfig{Server: "https://" + s.local(s.cfg.Ports.APIServer), CA: c.ca.Cert}
	users := []user{
		{s.state.Kubeconfig(), "wisp-platform-admin", []string{"system:masters"}},
		{s.state.kubeconfig(controllerManager), "system:" + controllerManager, nil},
		{s.state.kubeconfig(scheduler), "system:" + scheduler, nil},
	}
	for i := range s.cfg.NodeAddresses {
		users = append(users, user{s.state.kubeconfig(nodeComponent(i)), cluster.NodeUser(NodeName(i)), []string{cluster.NodesGroup}})
	}
	for _, user := range users {
		pair, err := c.ca.Client("user-"+user.name, user.name, user.groups...)
		if err != nil {
			return err
		}
		if err := api.WriteCert(user.file, pair); err != nil {
			return err
		}
	}
	for _, a := range s.accounts() {
		if err := api.WriteToken(s.accountKubeconfig(a), s.tokenFile(a)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Stack) accounts() []cluster.Account {
	if s.cfg.WithoutWisp {
		return []cluster.Account{knativeAccount}
	}
	return []cluster.Account{knativeAccount, nodeAccount, gatewayAccount, autoscalerAccount}
}

func (s *Stack) accountKubeconfig(a cluster.Account) string {
	return s.state.kubeconfig(a.Namespace + "." + a.Name)
}
