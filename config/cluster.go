package config

import (
	"fmt"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// REST returns how a client reaches the API server, with agent as its
// User-Agent, by which audit logs tell the roles apart.
func (c Cluster) REST(agent string) (*rest.Config, error) {
	load := rest.InClusterConfig
	if c.Kubeconfig != "" {
		load = func() (*rest.Config, error) { return clientcmd.BuildConfigFromFlags("", c.Kubeconfig) }
	}
	cfg, err := load()
	if err != nil {
		return nil, fmt.Errorf("load kubeconfig %q: %w", c.Kubeconfig, err)
	}
	cfg.QPS, cfg.Burst = c.QPS, c.Burst
	cfg.UserAgent = agent
	return cfg, nil
}
