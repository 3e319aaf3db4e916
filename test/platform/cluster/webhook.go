package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// WebhookReady returns nil when Knative's webhook answers at address, by the
// certificate that its configurations have the API server expect.
func (c *Cluster) WebhookReady(ctx context.Context, address string) error {
	bundles, err := c.caBundles(ctx)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	for _, b := range bundles {
		if !roots.AppendCertsFromPEM(b) {
			return errors.New("a webhook configuration has no certificate authority yet")
		}
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{RootCAs: roots, ServerName: "webhook." + KnativeNamespace + ".svc"},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+"/", nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "kube-probe/platform") // as its readinessProbe asks
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET https://%s/: status %s", address, resp.Status)
	}
	return nil
}

// caBundles returns those of all of Knative's webhooks, empty ones included.
func (c *Cluster) caBundles(ctx context.Context) ([][]byte, error) {
	ours := metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + KnativeNamespace}
	var configs []admissionv1.WebhookClientConfig
	mutating, err := c.Kube.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, ours)
	if err != nil {
		return nil, fmt.Errorf("list webhooks: %w", err)
	}
	for _, m := range mutating.Items {
		for _, w := range m.Webhooks {
			configs = append(configs, w.ClientConfig)
		}
	}
	validating, err := c.Kube.AdmissionregistrationV1().ValidatingWebhookConfigurations().List(ctx, ours)
	if err != nil {
		return nil, fmt.Errorf("list webhooks: %w", err)
	}
	for _, v := range validating.Items {
		for _, w := range v.Webhooks {
			configs = append(configs, w.ClientConfig)
		}
	}
	var bundles [][]byte
	for _, cfg := range configs {
		bundles = append(bundles, cfg.CABundle)
	}
	return bundles, nil
}
