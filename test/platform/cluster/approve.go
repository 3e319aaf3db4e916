package cluster

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/tools/cache"
)

// NodeUser is the name by which the API server knows a node's kubelet.
func NodeUser(node string) string { return nodeUserPrefix + node }

// NodesGroup is the group that every kubelet is in.
const NodesGroup = "system:nodes"

const nodeUserPrefix = "system:node:"

// Approver approves the serving certificates that nodes ask for, as a cloud's
// own controller does in a cluster: Kubernetes signs them, but leaves to others
// to say which address is whose.
type Approver struct {
	Cluster *Cluster
	// Nodes holds the IP address of each node, by its name.
	Nodes map[string]string
	// Report is told of each request that is denied or couldn't be answered.
	Report func(error)
}

// answerAgain is how often requests are looked at again whose answer didn't get
// through.
const answerAgain = 10 * time.Second

// Run answers requests until ctx ends.
func (a *Approver) Run(ctx context.Context) {
	lw := cache.NewListWatchFromClient(a.Cluster.Kube.CertificatesV1().RESTClient(), "certificatesigningrequests", metav1.NamespaceAll,
		fields.OneTermEqualSelector("spec.signerName", certificatesv1.KubeletServingSignerName))
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: lw,
		ObjectType:    &certificatesv1.CertificateSigningRequest{},
		ResyncPeriod:  answerAgain,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { a.handle(ctx, o) },
			UpdateFunc: func(_, o any) { a.handle(ctx, o) },
		},
	})
	informer.RunWithContext(ctx)
}

func (a *Approver) handle(ctx context.Context, o any) {
	csr, ok := o.(*certificatesv1.CertificateSigningRequest)
	if !ok || len(csr.Status.Conditions) > 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, answerAgain)
	defer cancel()
	if err := a.answer(ctx, csr.DeepCopy()); err != nil && ctx.Err() == nil {
		a.Report(err)
	}
}

// answer approves or denies a request. A denial is an error too: nobody here
// asks for what isn't theirs.
func (a *Approver) answer(ctx context.Context, csr *certificatesv1.CertificateSigningRequest) error {
	condition := certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue,
		Reason: "AddressIsTheNodes", Message: "The platform gave the node this address.",
	}
	denied := a.check(csr)
	if denied != nil {
		denied = fmt.Errorf("deny certificate request %s: %w", csr.Name, denied)
		condition.Type, condition.Reason, condition.Message = certificatesv1.CertificateDenied, "NotTheNodes", denied.Error()
	}
	csr.Status.Conditions = append(csr.Status.Conditions, condition)
	_, err := a.Cluster.Kube.CertificatesV1().CertificateSigningRequests().UpdateApproval(ctx, csr.Name, csr, metav1.UpdateOptions{})
	if err != nil {
		err = fmt.Errorf("answer certificate request %s: %w", csr.Name, err)
	}
	return errors.Join(denied, err)
}

// check returns an error unless the request is for the names and addresses of
// the node that has sent it. What the certificate may be used for is left to
// the signer, which checks that itself.
func (a *Approver) check(csr *certificatesv1.CertificateSigningRequest) error {
	node, ok := strings.CutPrefix(csr.Spec.Username, nodeUserPrefix)
	if !ok || !slices.Contains(csr.Spec.Groups, NodesGroup) {
		return fmt.Errorf("user %s is no node", csr.Spec.Username)
	}
	address, ok := a.Nodes[node]
	if !ok {
		return fmt.Errorf("node %s is none of this platform", node)
	}
	request, err := parseRequest(csr.Spec.Request)
	if err != nil {
		return err
	}
	if cn := request.Subject.CommonName; cn != csr.Spec.Username {
		return fmt.Errorf("common name %q, must be %s", cn, csr.Spec.Username)
	}
	for _, name := range request.DNSNames {
		if name != node {
			return fmt.Errorf("DNS name %q, must be %s", name, node)
		}
	}
	for _, ip := range request.IPAddresses {
		if !ip.Equal(net.ParseIP(address)) {
			return fmt.Errorf("IP address %s, must be %s", ip, address)
		}
	}
	if len(request.EmailAddresses)+len(request.URIs) > 0 {
		return errors.New("it asks for e-mail addresses or URIs")
	}
	return nil
}

func parseRequest(text []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("the request is not PEM")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse the request: %w", err)
	}
	return request, request.CheckSignature()
}
