package xds

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/envoytest"
)

// authority signs certificates.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	a.cert, a.key = a.sign(template)
	return a
}

// sign makes a key and a certificate for it; the first one is the authority's own.
func (a *authority) sign(template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		a.t.Fatal(err)
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// fill makes dir the folder of one who takes whom a signs, and shows a certificate
// for a name. The files of a folder change at once, as those of a Secret do.
func (a *authority) fill(dir, name string) {
	a.t.Helper()
	cert, key := a.sign(&x509.Certificate{
		DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	fresh, err := os.MkdirTemp(dir, "..")
	if err != nil {
		a.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		"tls.crt": {Type: "CERTIFICATE", Bytes: cert.Raw},
		"tls.key": {Type: "PRIVATE KEY", Bytes: raw},
		"ca.crt":  {Type: "CERTIFICATE", Bytes: a.cert.Raw},
	} {
		if err := os.WriteFile(filepath.Join(fresh, file), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
		_ = os.Symlink(filepath.Join("..data", file), filepath.Join(dir, file)) // there already, the second time
	}
	data := filepath.Join(dir, "..data")
	if err := os.Symlink(filepath.Base(fresh), data+"_tmp"); err != nil {
		a.t.Fatal(err)
	}
	if err := os.Rename(data+"_tmp", data); err != nil {
		a.t.Fatal(err)
	}
}

// TestEnvoyElsewhere runs Envoy without the gateway's socket.
func TestEnvoyElsewhere(t *testing.T) {
	b := newBed(t, "127.108.0")
	b.cfg.XDS.Address, b.cfg.XDS.Certificates = freeAddress(t), t.TempDir()
	signer := newAuthority(t)
	signer.fill(b.cfg.XDS.Certificates, "wisp-gateway")
	b.addNode("node-a")
	b.addRevision("sort-1", translateHTTP1)
	b.addIngress("sort", rule("External", "sort.example.com", path(to("sort-1"))))
	stop := b.startGateway()
	b.until("gateway", func() bool { return b.srv.Serving() == nil })

	t.Run("strangers", func(t *testing.T) {
		other := newAuthority(t)
		for name, tt := range map[string]struct {
			signer *authority
			name   string
		}{
			"another authority": {other, b.cfg.XDS.ClientName},
			"another name":      {signer, "somebody"},
			"no certificate":    {},
		} {
			if err := greet(t, b.cfg, tt.signer, tt.name); !refused(err) {
				t.Errorf("%s: error is %v, want a refusal", name, err)
			}
		}
		if err := greet(t, b.cfg, signer, b.cfg.XDS.ClientName); err != nil {
			t.Errorf("Envoy's own certificate: %v", err)
		}
	})

	elsewhere := b.cfg
	elsewhere.XDSSocket = "/nowhere/xds.sock"
	elsewhere.XDS.Server, elsewhere.XDS.Certificates = b.cfg.XDS.Address, t.TempDir()
	signer.fill(elsewhere.XDS.Certificates, b.cfg.XDS.ClientName)
	envoytest.Start(t, elsewhere)
	b.waitReady("sort")

	// Both sides change to another authority: Envoy comes back only with its new
	// certificate.
	next := newAuthority(t)
	next.fill(elsewhere.XDS.Certificates, b.cfg.XDS.ClientName)
	next.fill(b.cfg.XDS.Certificates, "wisp-gateway")
	stop()
	l := startLoad(b.cfg.Envoy.HTTPAddress, "sort.example.com", 1)
	b.startGateway()
	b.addIngress("more", rule("External", "more.example.com", path(to("sort-1"))))
	b.waitReady("more")
	l.end(t)
}

// greet connects as one with a certificate that signer has made out for name, and
// returns how that ends: with nil where the gateway speaks.
func greet(t *testing.T, cfg config.Gateway, signer *authority, name string) error {
	t.Helper()
	client := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}
	if signer != nil {
		cert, key := signer.sign(&x509.Certificate{DNSNames: []string{name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		client.Certificates = []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}
	}
	conn, err := tls.Dial("tcp", cfg.XDS.Address, client)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(deadline)); err != nil {
		return err
	}
	// In TLS 1.3 the client learns with the first bytes whether it is taken.
	if _, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

// refused reports whether the other side has said no, rather than nothing.
func refused(err error) bool {
	var alert tls.AlertError
	var op *net.OpError
	return errors.As(err, &alert) || errors.As(err, &op) && !op.Timeout() || errors.Is(err, io.EOF)
}
