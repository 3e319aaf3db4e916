package provider

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/wisp-serving/wisp/provider/kubelet"
	"github.com/wisp-serving/wisp/provider/podlog"
	"github.com/wisp-serving/wisp/provider/podspec"
)

// logOf returns a container's log. While the pod lives here it is the same one
// for all who ask, so that readers are woken by the writer.
func (p *Provider) logOf(uid types.UID, container string) *podlog.Log {
	limits := p.cfg.Node.Logs
	open := func() *podlog.Log {
		return podlog.New(filepath.Join(p.folder(uid), "logs", container), podlog.Limits{
			FileSize: limits.FileSize.Value(), Files: limits.Files, Rate: limits.Rate.Value(),
		})
	}
	p.mu.Lock()
	it := p.pods[uid]
	p.mu.Unlock()
	if it == nil {
		return open()
	}
	it.mu.Lock()
	defer it.mu.Unlock()
	if it.logs[container] == nil {
		it.logs[container] = open()
	}
	return it.logs[container]
}

// Logs implements kubelet.Node. A pod's logs are there as long as its object is,
// also those of one that has ended with an earlier process of the node.
func (p *Provider) Logs(ctx context.Context, namespace, name, container string, out io.Writer, o podlog.Options) error {
	api, err := p.bound(namespace, name)
	if err != nil {
		return err
	}
	if it, ok := p.find(api.UID); ok {
		api = it.object()
	}
	status := statusOf(api, container)
	if status == nil {
		return &kubelet.Error{Status: http.StatusNotFound, Text: fmt.Sprintf("container %q not found in pod %q", container, name)}
	}
	err = p.logOf(api.UID, container).Copy(ctx, out, o)
	switch {
	case !errors.Is(err, podlog.ErrNoRun):
		return err
	case container == podspec.QueueProxy && podspec.IsRevision(api):
		return nil // a request log, unless there is none
	case o.Previous:
		return &kubelet.Error{Status: http.StatusBadRequest, Text: fmt.Sprintf("previous terminated container %q in pod %q not found", container, name)}
	case status.State.Waiting != nil:
		return &kubelet.Error{Status: http.StatusBadRequest, Text: fmt.Sprintf("container %q in pod %q is waiting to start: %s", container, name, status.State.Waiting.Reason)}
	default:
		return nil // it could not be started, and wrote nothing
	}
}

// bound returns the pod of that name that is bound to this node.
func (p *Provider) bound(namespace, name string) (*corev1.Pod, error) {
	api, err := p.lister.Pods(namespace).Get(name)
	if err != nil {
		return nil, &kubelet.Error{Status: http.StatusNotFound, Text: fmt.Sprintf("pod %q does not exist on this node", namespace+"/"+name)}
	}
	return api, nil
}

func statusOf(api *corev1.Pod, container string) *corev1.ContainerStatus {
	for _, statuses := range [][]corev1.ContainerStatus{api.Status.InitContainerStatuses, api.Status.ContainerStatuses} {
		for i := range statuses {
			if statuses[i].Name == container {
				return &statuses[i]
			}
		}
	}
	return nil
}
