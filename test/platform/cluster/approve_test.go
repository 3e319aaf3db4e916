package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func TestApprover_answers_for_what_is_the_nodes(t *testing.T) {
	const node, address = "wisp-0", "127.0.1.1"
	own := x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: NodeUser(node), Organization: []string{NodesGroup}},
		DNSNames:    []string{node},
		IPAddresses: []net.IP{net.ParseIP(address)},
	}
	tests := map[string]struct {
		user    string
		groups  []string
		change  func(*x509.CertificateRequest)
		refused string // "" if it is approved
	}{
		"its_own_address":  {user: NodeUser(node)},
		"another_address":  {user: NodeUser(node), change: func(r *x509.CertificateRequest) { r.IPAddresses = append(r.IPAddresses, net.ParseIP("127.0.0.1")) }, refused: "IP address 127.0.0.1, must be 127.0.1.1"},
		"another_name":     {user: NodeUser(node), change: func(r *x509.CertificateRequest) { r.DNSNames = []string{"localhost"} }, refused: `DNS name "localhost", must be wisp-0`},
		"another_subject":  {user: NodeUser(node), change: func(r *x509.CertificateRequest) { r.Subject.CommonName = NodeUser("wisp-1") }, refused: "common name"},
		"an_email_address": {user: NodeUser(node), change: func(r *x509.CertificateRequest) { r.EmailAddresses = []string{"a@b"} }, refused: "e-mail"},
		"unknown_node":     {user: NodeUser("wisp-7"), refused: "node wisp-7 is none of this platform"},
		"no_node":          {user: "system:serviceaccount:default:default", refused: "is no node"},
		"outside_of_group": {user: NodeUser(node), groups: []string{"system:authenticated"}, refused: "is no node"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			request := own
			if tt.change != nil {
				tt.change(&request)
			}
			csr := &certificatesv1.CertificateSigningRequest{
				ObjectMeta: metav1.ObjectMeta{Name: "csr-1"},
				Spec: certificatesv1.CertificateSigningRequestSpec{
					Request: requestPEM(t, &request), SignerName: certificatesv1.KubeletServingSignerName,
					Username: tt.user, Groups: []string{NodesGroup},
				},
			}
			if tt.groups != nil {
				csr.Spec.Groups = tt.groups
			}
			kube := fake.NewClientset(csr)
			a := &Approver{Cluster: &Cluster{Kube: kube}, Nodes: map[string]string{node: address}}
			err := a.answer(t.Context(), csr.DeepCopy())
			got, getErr := kube.CertificatesV1().CertificateSigningRequests().Get(t.Context(), csr.Name, metav1.GetOptions{})
			if getErr != nil || len(got.Status.Conditions) != 1 {
				t.Fatalf("got %v, %v, want one condition", got.Status.Conditions, getErr)
			}
			condition := got.Status.Conditions[0]
			if tt.refused == "" {
				if err != nil || condition.Type != certificatesv1.CertificateApproved {
					t.Errorf("got %v, %+v, want it approved", err, condition)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.refused) || condition.Type != certificatesv1.CertificateDenied {
				t.Errorf("got %v, %+v, want it denied for %q", err, condition, tt.refused)
			}
		})
	}
}

func requestPEM(t *testing.T, request *x509.CertificateRequest) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, request, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}
