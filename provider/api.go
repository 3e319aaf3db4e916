package provider

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/wisp-serving/wisp/provider/kubelet"
)

// signPatience is how long a serving certificate may take to be signed before
// the node says that something is amiss.
const signPatience = time.Minute

// serveAPI serves the kubelet API until ctx ends, unless the settings say that
// there is none.
func (p *Provider) serveAPI(ctx context.Context) error {
	node := p.cfg.Node
	if node.Kubelet.Port == 0 {
		return nil
	}
	certificate, err := kubelet.NewCertificate(kubelet.CertificateConfig{
		NodeName: node.Name, Address: node.Address, Dir: filepath.Join(node.DataDir, "pki"), Client: p.cfg.Client,
	})
	if err != nil {
		return err
	}
	auth, err := kubelet.NewAuth(p.cfg.Client, node.Name, node.Kubelet.ClientCA)
	if err != nil {
		return err
	}
	server, err := kubelet.New(kubelet.Config{
		Address:     net.JoinHostPort(node.Address, strconv.Itoa(node.Kubelet.Port)),
		Node:        p,
		Auth:        auth,
		Certificate: certificate.Get,
		Log:         p.cfg.Log.Named("kubelet"),
	})
	if err != nil {
		return err
	}
	listener, err := server.Listen()
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return server.Serve(ctx, listener) })
	g.Go(func() error { return certificate.Run(ctx, signPatience, p.unsigned) })
	return g.Wait()
}

// unsigned says that nobody has signed the node's serving certificate.
func (p *Provider) unsigned() {
	ref := &corev1.ObjectReference{Kind: "Node", Name: p.cfg.Node.Name, UID: "", APIVersion: "v1"}
	p.recorder.Event(ref, corev1.EventTypeWarning, "ServingCertificateUnsigned",
		"The kubelet API is served with a certificate that this node has signed itself: its CertificateSigningRequest (kubernetes.io/kubelet-serving) waits to be approved")
}

// Pods implements kubelet.Node.
func (p *Provider) Pods(context.Context) ([]*corev1.Pod, error) {
	return p.lister.List(labels.Everything())
}

// Running implements kubelet.Node.
func (p *Provider) Running(ctx context.Context) ([]*corev1.Pod, error) { return p.GetPods(ctx) }

// Dial implements kubelet.Node: of a pod's containers, the one answers that
// listens on the port.
func (p *Provider) Dial(ctx context.Context, namespace, name string, port int) (net.Conn, error) {
	api, err := p.bound(namespace, name)
	if err != nil {
		return nil, err
	}
	it, ok := p.find(api.UID)
	if !ok {
		return nil, fmt.Errorf("pod %s/%s does not run", namespace, name)
	}
	errs := []error{fmt.Errorf("dial port %d of pod %s/%s", port, namespace, name)}
	for _, f := range it.functions() {
		conn, err := f.Dial(ctx, port)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}
