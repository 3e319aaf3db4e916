package kubelet

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/certificate"
)

// CertificateConfig is what a Certificate needs; all fields are required.
type CertificateConfig struct {
	// NodeName and Address are what it is for.
	NodeName, Address string
	// Dir keeps it and its key.
	Dir    string
	Client kubernetes.Interface
}

// Certificate is the node's serving certificate: requested from the cluster's
// signer for kubelets, kept on disk, renewed in time. Until somebody approves the
// request it is one that the node has signed itself, which an API server takes
// that was given no authority for kubelets.
type Certificate struct {
	manager certificate.Manager
	own     tls.Certificate
}

// NewCertificate returns the certificate that is in cfg.Dir, or none yet.
func NewCertificate(cfg CertificateConfig) (*Certificate, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("serving certificate: %w", err)
	}
	store, err := certificate.NewFileStore("kubelet-server", cfg.Dir, cfg.Dir, "", "")
	if err != nil {
		return nil, fmt.Errorf("serving certificate: %w", err)
	}
	template := template(cfg)
	c := &Certificate{}
	if c.own, err = selfSigned(template); err != nil {
		return nil, fmt.Errorf("serving certificate: %w", err)
	}
	c.manager, err = certificate.NewManager(&certificate.Config{
		Name:             "kubelet serving certificate",
		ClientsetFn:      func(*tls.Certificate) (kubernetes.Interface, error) { return cfg.Client, nil },
		GetTemplate:      func() *x509.CertificateRequest { return template },
		SignerName:       certificatesv1.KubeletServingSignerName,
		Usages:           []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth},
		CertificateStore: store,
	})
	if err != nil {
		return nil, fmt.Errorf("serving certificate: %w", err)
	}
	return c, nil
}

// template is the request that the signer for kubelets takes: of the node's own
// name, for its addresses alone.
func template(cfg CertificateConfig) *x509.CertificateRequest {
	return &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: "system:node:" + cfg.NodeName, Organization: []string{"system:nodes"}},
		DNSNames:    []string{cfg.NodeName},
		IPAddresses: []net.IP{net.ParseIP(cfg.Address)},
	}
}

func selfSigned(template *x509.CertificateRequest) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      template.Subject, DNSNames: template.DNSNames, IPAddresses: template.IPAddresses,
		NotBefore: now.Add(-time.Minute), NotAfter: now.AddDate(1, 0, 0),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// Get returns the certificate to serve with now.
func (c *Certificate) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if signed := c.manager.Current(); signed != nil {
		return signed, nil
	}
	return &c.own, nil
}

// Run requests and renews the certificate until ctx ends. It calls unsigned
// once if none has been signed after patience.
func (c *Certificate) Run(ctx context.Context, patience time.Duration, unsigned func()) error {
	c.manager.Start()
	defer c.manager.Stop()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-timer.C:
		if c.manager.Current() == nil {
			unsigned()
		}
		<-ctx.Done()
	case <-ctx.Done():
	}
	return nil
}
