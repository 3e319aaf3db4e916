package kubelet

import (
	"fmt"

	"github.com/virtual-kubelet/virtual-kubelet/node/nodeutil"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/client-go/kubernetes"
)

// NewAuth returns what lets in whom the API server would let at this node:
// clients with a certificate of the authority in the file clientCA, unless that is
// empty, and those with a token that the API server knows, each as far as it says
// that they may. client is the node's own.
func NewAuth(client kubernetes.Interface, nodeName, clientCA string) (nodeutil.Auth, error) {
	auth, err := nodeutil.WebhookAuth(client, nodeName, func(cfg *nodeutil.WebhookAuthConfig) error {
		if clientCA == "" {
			return nil
		}
		ca, err := dynamiccertificates.NewDynamicCAContentFromFile("client-ca", clientCA)
		if err != nil {
			return err
		}
		cfg.AuthnConfig.ClientCertificateCAContentProvider = ca
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("kubelet API: %w", err)
	}
	return auth, nil
}
