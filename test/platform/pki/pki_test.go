package pki

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func authority(t *testing.T, dir string) *Authority {
	t.Helper()
	a, err := OpenAuthority(dir, "ca")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func pool(t *testing.T, a *Authority) *x509.CertPool {
	t.Helper()
	text, err := os.ReadFile(a.Cert)
	if err != nil {
		t.Fatal(err)
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(text) {
		t.Fatalf("%s holds no certificate", a.Cert)
	}
	return p
}

func keyPair(t *testing.T, p Pair, err error) tls.Certificate {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(p.Cert, p.Key)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// serve answers with the user and groups of the caller's certificate.
func serve(t *testing.T, cert tls.Certificate, clients *x509.CertPool) *httptest.Server {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		subject := r.TLS.PeerCertificates[0].Subject
		_, _ = io.WriteString(w, subject.CommonName+" "+strings.Join(subject.Organization, ","))
	}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv
}

func TestAuthority_certificates_are_accepted_by_each_other(t *testing.T) {
	a := authority(t, t.TempDir())
	serving, err := a.Serving("server", "127.0.0.1", "server.test")
	srv := serve(t, keyPair(t, serving, err), pool(t, a))
	user, err := a.Client("user", "system:node:n", "others", "system:nodes")
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: pool(t, a), Certificates: []tls.Certificate{keyPair(t, user, err)},
	}}}
	resp, err := client.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if want := "system:node:n others,system:nodes"; string(got) != want {
		t.Errorf("the server saw %q, want %q", got, want)
	}
}

func TestAuthority_certificates_are_refused(t *testing.T) {
	a, stranger := authority(t, t.TempDir()), authority(t, t.TempDir())
	serving, err := a.Serving("server", "127.0.0.1", "server.test")
	server := keyPair(t, serving, err)
	user, err := a.Client("user", "u")
	good := keyPair(t, user, err)
	strange, err := stranger.Client("user", "u")
	tests := map[string]*tls.Config{
		"by_a_client_that_trusts_another_authority": {RootCAs: pool(t, stranger), Certificates: []tls.Certificate{good}},
		"for_another_host":                          {RootCAs: pool(t, a), ServerName: "other.test", Certificates: []tls.Certificate{good}},
		"from_a_client_of_another_authority":        {RootCAs: pool(t, a), Certificates: []tls.Certificate{keyPair(t, strange, err)}},
		"from_a_server_as_a_client":                 {RootCAs: pool(t, a), Certificates: []tls.Certificate{server}},
		"from_nobody":                               {RootCAs: pool(t, a)},
	}
	for name, cfg := range tests {
		t.Run(name, func(t *testing.T) {
			srv := serve(t, server, pool(t, a))
			conn, err := tls.Dial("tcp", srv.Listener.Addr().String(), cfg)
			if err == nil {
				// TLS 1.3 tells a client that it is refused with the first answer.
				_, err = conn.Read(make([]byte, 1))
				conn.Close()
			}
			if err == nil {
				t.Error("the handshake worked, want it refused")
			}
		})
	}
}

func TestOpenAuthority_keeps_what_is_there(t *testing.T) {
	dir := t.TempDir()
	first, second := authority(t, dir), authority(t, dir)
	if !first.cert.Equal(second.cert) {
		t.Error("opened again, it is another authority")
	}
	if _, err := second.Serving("server", "127.0.0.1"); err != nil {
		t.Errorf("sign with a loaded key: %v", err)
	}
}

func TestOpenAuthority_names_a_broken_file(t *testing.T) {
	dir := t.TempDir()
	a := authority(t, dir)
	if err := os.WriteFile(a.Key, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAuthority(dir, "ca"); err == nil || !strings.Contains(err.Error(), "ca.crt") {
		t.Errorf("OpenAuthority = %v, want an error that names the file", err)
	}
}

func TestServing_tells_names_from_addresses(t *testing.T) {
	a := authority(t, t.TempDir())
	p, err := a.Serving("s", "127.0.0.1", "localhost")
	cert := keyPair(t, p, err).Leaf
	if diff := cmp.Diff([]string{"localhost"}, cert.DNSNames); diff != "" {
		t.Error(diff)
	}
	if len(cert.IPAddresses) != 1 || !cert.IPAddresses[0].Equal(net.IPv4(127, 0, 0, 1)) {
		t.Errorf("addresses = %v, want 127.0.0.1", cert.IPAddresses)
	}
}

func TestKeys_are_private(t *testing.T) {
	dir := t.TempDir()
	a := authority(t, dir)
	serving, err := a.Serving("s", "localhost")
	if err != nil {
		t.Fatal(err)
	}
	private, _, err := SigningKey(dir, "accounts")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{a.Key, serving.Key, private} {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != 0o600 {
			t.Errorf("%s has mode %o, want 600", file, got)
		}
	}
}

func TestSigningKey_keeps_what_is_there(t *testing.T) {
	dir := t.TempDir()
	var texts []string
	for range 2 {
		_, public, err := SigningKey(dir, "accounts")
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(public)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(text))
	}
	if texts[0] != texts[1] {
		t.Error("opened again, it is another key")
	}
}
