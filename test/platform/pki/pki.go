// Package pki issues the certificates of a platform: a certificate authority
// that is kept in a folder, and the serving and client certificates that it
// signs.
//
// It is made for one machine and one user. Keys are ECDSA P-256 and lie in
// files that only that user can read. Nothing here runs in the background, and
// nothing is revoked: what is issued is short-lived next to the authority and
// issued anew with each start.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	leafLife      = 365 * 24 * time.Hour
	// skew lets a certificate hold a little before it was made, for clocks that
	// are set back.
	skew = 5 * time.Minute
)

// Pair is the two files of a certificate and its private key, PEM-encoded.
type Pair struct {
	Cert, Key string
}

// Authority signs certificates.
type Authority struct {
	// Pair is its own certificate and key.
	Pair
	dir  string
	cert *x509.Certificate
	key  crypto.Signer
}

// OpenAuthority returns the authority kept in dir as <name>.crt and <name>.key
// and makes it if there is none. What it issues goes to the same folder.
func OpenAuthority(dir, name string) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make certificate folder: %w", err)
	}
	a := &Authority{Pair: pair(dir, name), dir: dir}
	err := a.load()
	if errors.Is(err, fs.ErrNotExist) {
		err = a.create(name)
	}
	if err != nil {
		return nil, fmt.Errorf("open certificate authority %s: %w", a.Cert, err)
	}
	return a, nil
}

// Serving issues a certificate for a server reached by hosts: names or IP
// addresses.
func (a *Authority) Serving(name string, hosts ...string) (Pair, error) {
	return a.issue(name, pkix.Name{CommonName: name}, hosts, x509.ExtKeyUsageServerAuth)
}

// Client issues a certificate by which Kubernetes knows a user and the user's
// groups.
func (a *Authority) Client(name, user string, groups ...string) (Pair, error) {
	return a.issue(name, pkix.Name{CommonName: user, Organization: groups}, nil, x509.ExtKeyUsageClientAuth)
}

// Peer issues a certificate for a process that is server and client at once, as
// etcd's members are to each other.
func (a *Authority) Peer(name string, hosts ...string) (Pair, error) {
	return a.issue(name, pkix.Name{CommonName: name}, hosts, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
}

func (a *Authority) issue(name string, subject pkix.Name, hosts []string, usages ...x509.ExtKeyUsage) (Pair, error) {
	tmpl := &x509.Certificate{
		Subject:     subject,
		NotAfter:    time.Now().Add(leafLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: usages,
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	p := pair(a.dir, name)
	if _, _, err := write(p, tmpl, a.cert, a.key); err != nil {
		return Pair{}, fmt.Errorf("issue certificate %s: %w", name, err)
	}
	return p, nil
}

func (a *Authority) load() error {
	certPEM, err := os.ReadFile(a.Cert)
	if err != nil {
		return err
	}
	a.cert, err = decode(certPEM, x509.ParseCertificate)
	if err != nil {
		return err
	}
	keyPEM, err := os.ReadFile(a.Key)
	if err != nil {
		return err
	}
	key, err := decode(keyPEM, x509.ParsePKCS8PrivateKey)
	if err != nil {
		return err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return fmt.Errorf("%s: a %T can't sign", a.Key, key)
	}
	a.key = signer
	return nil
}

func (a *Authority) create(name string) error {
	tmpl := &x509.Certificate{
		Subject:  pkix.Name{CommonName: "wisp-platform-" + name},
		NotAfter: time.Now().Add(authorityLife),
		IsCA:     true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	var err error
	a.cert, a.key, err = write(a.Pair, tmpl, nil, nil)
	return err
}

// write makes a key, has its certificate signed, by itself without a parent,
// and writes both. The key is written first: a certificate whose key is missing
// is never found.
func write(p Pair, tmpl, parent *x509.Certificate, signer crypto.Signer) (*x509.Certificate, crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if parent == nil {
		parent, signer = tmpl, key
	}
	tmpl.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, err
	}
	tmpl.NotBefore = time.Now().Add(-skew)
	tmpl.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		return nil, nil, err
	}
	if err := writeKey(p.Key, key); err != nil {
		return nil, nil, err
	}
	if err := writePEM(p.Cert, "CERTIFICATE", der); err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

// SigningKey returns a key pair kept in dir as <name>.key and, the public half,
// <name>.pub, and makes it if there is none. Kubernetes signs and checks
// ServiceAccount tokens with it.
func SigningKey(dir, name string) (private, public string, err error) {
	private, public = filepath.Join(dir, name+".key"), filepath.Join(dir, name+".pub")
	if _, err := os.Stat(public); err == nil {
		return private, public, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", fmt.Errorf("make signing key %s: %w", name, err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return "", "", fmt.Errorf("make signing key %s: %w", name, err)
	}
	if err := errors.Join(os.MkdirAll(dir, 0o700), writeKey(private, key), writePEM(public, "PUBLIC KEY", der)); err != nil {
		return "", "", fmt.Errorf("write signing key %s: %w", name, err)
	}
	return private, public, nil
}

func pair(dir, name string) Pair {
	return Pair{Cert: filepath.Join(dir, name+".crt"), Key: filepath.Join(dir, name+".key")}
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(path, "PRIVATE KEY", der)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

func decode[T any](text []byte, parse func([]byte) (T, error)) (T, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		var none T
		return none, errors.New("not PEM")
	}
	return parse(block.Bytes)
}
