package provider

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/wisp-serving/wisp/provider/podlife"
	"github.com/wisp-serving/wisp/provider/podspec"
	"github.com/wisp-serving/wisp/provider/podstatus"
)

// folder is where the node keeps what is one pod's: its containers' states, logs
// and volumes.
func (p *Provider) folder(uid types.UID) string {
	return filepath.Join(p.cfg.Node.DataDir, "pods", string(uid))
}

// recall returns the containers of a pod as an earlier process of this node has
// left them, or as new ones. What it last told the API server counts, and what
// it noted on disk where that is later: a container that ended while the API
// server was away must not run again.
func (p *Provider) recall(api *corev1.Pod) []podlife.Container {
	told, noted := podstatus.Restore(api), p.noted(api.UID)
	var containers []podlife.Container
	add := func(spec *corev1.Container, init bool) {
		c := podlife.Container{Name: spec.Name, State: podlife.Waiting, Reason: podlife.ReasonCreating}
		for _, old := range append(told, noted...) {
			if old.Name == spec.Name && old.Runs >= c.Runs {
				c = old
			}
		}
		c.Init, c.Sidecar = init, podspec.Container{Container: spec}.Sidecar()
		if !init && c.Runs == 0 && len(api.Spec.InitContainers) > 0 {
			c.Reason = podlife.ReasonInitializing
		}
		containers = append(containers, c.Recover(time.Now()))
	}
	for i := range api.Spec.InitContainers {
		add(&api.Spec.InitContainers[i], true)
	}
	revision := podspec.IsRevision(api)
	for i := range api.Spec.Containers {
		if c := &api.Spec.Containers[i]; !revision || c.Name != podspec.QueueProxy {
			add(c, false)
		}
	}
	return containers
}

// stateFile holds a pod's containers as JSON.
const stateFile = "state.json"

func (p *Provider) noted(uid types.UID) []podlife.Container {
	var containers []podlife.Container
	text, err := os.ReadFile(filepath.Join(p.folder(uid), stateFile))
	if err == nil {
		err = json.Unmarshal(text, &containers)
	}
	if err != nil && !os.IsNotExist(err) {
		p.cfg.Log.Warnw("a pod's state on disk is lost: what the API has is taken", "uid", uid, "error", err)
		return nil
	}
	return containers
}

// remember notes a pod's containers on disk.
func (p *Provider) remember(it *pod) {
	it.mu.Lock()
	text, err := json.Marshal(it.containers)
	it.mu.Unlock()
	if err == nil {
		err = p.note(it.uid, text)
	}
	if err != nil {
		it.log.Warnw("a restart of the node may run an ended container again", "error", err)
	}
}

func (p *Provider) note(uid types.UID, text []byte) error {
	dir := p.folder(uid)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("note a pod's state: %w", err)
	}
	file, err := os.CreateTemp(dir, "."+stateFile)
	if err != nil {
		return fmt.Errorf("note a pod's state: %w", err)
	}
	defer os.Remove(file.Name()) // unless it was renamed
	_, err = file.Write(text)
	if closed := file.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(file.Name(), filepath.Join(dir, stateFile))
	}
	if err != nil {
		return fmt.Errorf("note a pod's state: %w", err)
	}
	return nil
}

// discard removes what the node keeps of a pod.
func (p *Provider) discard(uid types.UID) {
	if err := os.RemoveAll(p.folder(uid)); err != nil {
		p.cfg.Log.Warnw("what is left of a pod stays on disk", "uid", uid, "error", err)
	}
}

// sweep discards pods that were deleted while the node was away.
func (p *Provider) sweep() {
	folders, err := os.ReadDir(filepath.Join(p.cfg.Node.DataDir, "pods"))
	if err != nil {
		return // none yet
	}
	pods, err := p.lister.List(labels.Everything())
	if err != nil {
		return // only the cache's own indices can fail
	}
	known := make(map[types.UID]bool, len(pods))
	for _, api := range pods {
		known[api.UID] = true
	}
	for _, folder := range folders {
		uid := types.UID(folder.Name())
		if _, here := p.find(uid); !here && !known[uid] {
			p.discard(uid)
		}
	}
}
