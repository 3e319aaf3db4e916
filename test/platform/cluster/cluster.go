// Package cluster puts things into the platform's API server: Knative's and
// Wisp's manifests, with the settings that the platform changes in them, and
// the tokens by which roles prove who they are.
//
// It doesn't start or watch processes. [Tokens.Run] is the only thing here that
// lasts; its caller owns the goroutine.
package cluster

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Cluster is a connection to the API server as its administrator.
type Cluster struct {
	Kube    kubernetes.Interface
	Dynamic dynamic.Interface
	// REST can make further clients.
	REST *rest.Config
}

// Connect makes clients from a kubeconfig file. It sends nothing yet.
func Connect(kubeconfig string) (*Cluster, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	cfg.QPS = -1 // no limit: the start would wait for nothing else
	kube, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	return &Cluster{Kube: kube, Dynamic: dyn, REST: cfg}, nil
}

// Ready returns nil when the API server says that it is ready.
func (c *Cluster) Ready(ctx context.Context) error {
	_, err := c.Kube.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
	return err
}

// HasDefaultAccount returns nil when pods can be made in the namespace default:
// the controller manager has made the ServiceAccount that they run under.
func (c *Cluster) HasDefaultAccount(ctx context.Context) error {
	_, err := c.Kube.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
	return err
}

// ReleaseLeases deletes the leader elections of namespace. Whoever holds them
// must be dead: the next one to start would otherwise wait until they expire.
func (c *Cluster) ReleaseLeases(ctx context.Context, namespace string) error {
	err := c.Kube.CoordinationV1().Leases(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("release leases in %s: %w", namespace, err)
	}
	return nil
}
