package cluster

import (
	"fmt"
	"os"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/wisp-serving/wisp/test/platform/pki"
)

// Kubeconfig says how to reach an API server.
type Kubeconfig struct {
	// Server is the URL, CA the file of the authority that it is verified by.
	Server, CA string
}

// WriteCert writes a kubeconfig to path for the user that a client certificate
// names.
func (k Kubeconfig) WriteCert(path string, p pki.Pair) error {
	return k.write(path, &clientcmdapi.AuthInfo{ClientCertificate: p.Cert, ClientKey: p.Key})
}

// WriteToken writes a kubeconfig to path for the bearer of the token in
// tokenFile, which clients read again as it changes.
func (k Kubeconfig) WriteToken(path, tokenFile string) error {
	return k.write(path, &clientcmdapi.AuthInfo{TokenFile: tokenFile})
}

func (k Kubeconfig) write(path string, user *clientcmdapi.AuthInfo) error {
	const name = "wisp"
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters[name] = &clientcmdapi.Cluster{Server: k.Server, CertificateAuthority: k.CA}
	cfg.AuthInfos[name] = user
	cfg.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	cfg.CurrentContext = name
	// Written beside its place and renamed: a client may read it at any time.
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
	if err := clientcmd.WriteToFile(*cfg, tmp); err != nil {
		return fmt.Errorf("write kubeconfig %s: %w", path, err)
	}
	return os.Rename(tmp, path)
}
