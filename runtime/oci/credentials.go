package oci

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/authn/kubernetes"
	corev1 "k8s.io/api/core/v1"

	"github.com/wisp-serving/wisp/runtime/api"
)

// keychain returns the credentials in pull secrets, each the content of a
// .dockerconfigjson or a .dockercfg. Hosts may have wildcards and paths, as a
// kubelet takes them.
func keychain(secrets [][]byte) (authn.Keychain, error) {
	if len(secrets) == 0 {
		return anonymous{}, nil
	}
	typed := make([]corev1.Secret, 0, len(secrets))
	for i, secret := range secrets {
		var keys map[string]json.RawMessage
		if err := json.Unmarshal(secret, &keys); err != nil {
			// Not the parser's error: it may quote the secret.
			return nil, api.ImagePull(fmt.Errorf("pull secret %d of %d is not JSON", i+1, len(secrets)))
		}
		kind, key := corev1.SecretTypeDockercfg, corev1.DockerConfigKey
		if _, ok := keys["auths"]; ok {
			kind, key = corev1.SecretTypeDockerConfigJson, corev1.DockerConfigJsonKey
		}
		typed = append(typed, corev1.Secret{Type: kind, Data: map[string][]byte{key: secret}})
	}
	keys, err := kubernetes.NewFromPullSecrets(context.Background(), typed) // it only reads them
	if err != nil {
		return nil, api.ImagePull(fmt.Errorf("one of %d pull secrets holds no registry credentials", len(secrets)))
	}
	return keys, nil
}

// anonymous is the keychain without a key.
type anonymous struct{}

func (anonymous) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }
