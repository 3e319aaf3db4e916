package provider

import (
	"context"
	"time"

	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/wisp-serving/wisp/provider/podlife"
)

// usage is what something has used: CPU so far, memory now.
type usage struct {
	name   string
	start  time.Time
	cpu    time.Duration
	memory int64
}

// podUsage is a pod's containers' usage.
type podUsage struct {
	api        *corev1.Pod
	containers []usage
}

func (u podUsage) total() usage {
	total := usage{start: u.api.CreationTimestamp.Time}
	for _, c := range u.containers {
		total.cpu += c.cpu
		total.memory += c.memory
	}
	return total
}

// usages returns what the running pods use, and the whole process.
func (p *Provider) usages() (node usage, pods []podUsage) {
	for _, it := range p.all() {
		if u := it.usage(); len(u.containers) > 0 {
			pods = append(pods, u)
		}
	}
	return p.processUsage(), pods
}

// processUsage is the node's own: guests run in it.
func (p *Provider) processUsage() usage {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return usage{name: p.cfg.Node.Name}
	}
	return usage{
		name:   p.cfg.Node.Name,
		start:  p.began,
		cpu:    time.Duration(r.Utime.Nano() + r.Stime.Nano()),
		memory: r.Maxrss << 10,
	}
}

func (p *pod) usage() podUsage {
	p.mu.Lock()
	defer p.mu.Unlock()
	u := podUsage{api: p.api}
	for _, c := range p.containers {
		if f := p.running[c.Name]; f != nil && c.State == podlife.Running {
			cpu, memory := f.used()
			u.containers = append(u.containers, usage{name: c.Name, start: c.Run.Started, cpu: cpu, memory: memory})
		}
	}
	return u
}

// Summary implements kubelet.Node.
func (p *Provider) Summary(context.Context) (*stats.Summary, error) {
	now := metav1.Now()
	cpuOf := func(u usage) *stats.CPUStats {
		n := uint64(u.cpu)
		return &stats.CPUStats{Time: now, UsageCoreNanoSeconds: &n}
	}
	memoryOf := func(u usage) *stats.MemoryStats {
		n := uint64(u.memory)
		return &stats.MemoryStats{Time: now, UsageBytes: &n, WorkingSetBytes: &n}
	}
	node, pods := p.usages()
	summary := &stats.Summary{Node: stats.NodeStats{
		NodeName: node.name, StartTime: metav1.NewTime(node.start), CPU: cpuOf(node), Memory: memoryOf(node),
	}}
	for _, u := range pods {
		total := u.total()
		of := stats.PodStats{
			PodRef:    stats.PodReference{Name: u.api.Name, Namespace: u.api.Namespace, UID: string(u.api.UID)},
			StartTime: metav1.NewTime(total.start), CPU: cpuOf(total), Memory: memoryOf(total),
		}
		for _, c := range u.containers {
			of.Containers = append(of.Containers, stats.ContainerStats{Name: c.name, StartTime: metav1.NewTime(c.start), CPU: cpuOf(c), Memory: memoryOf(c)})
		}
		summary.Pods = append(summary.Pods, of)
	}
	return summary, nil
}

// Metrics implements kubelet.Node, in the names of a kubelet's
// (kubernetes pkg/kubelet/metrics/collectors/resource_metrics.go). The labels
// come namespace, pod, container: virtual-kubelet's own suite takes the second
// for the pod.
func (p *Provider) Metrics(context.Context) ([]*dto.MetricFamily, error) {
	node, pods := p.usages()
	m := &metrics{}
	m.counter("node_cpu_usage_seconds_total", "Cumulative cpu time consumed by the node in core-seconds", node.cpu.Seconds())
	m.gauge("node_memory_working_set_bytes", "Current working set of the node in bytes", float64(node.memory))
	for _, u := range pods {
		labels := []string{"namespace", u.api.Namespace, "pod", u.api.Name}
		total := u.total()
		m.counter("pod_cpu_usage_seconds_total", "Cumulative cpu time consumed by the pod in core-seconds", total.cpu.Seconds(), labels...)
		m.gauge("pod_memory_working_set_bytes", "Current working set of the pod in bytes", float64(total.memory), labels...)
		for _, c := range u.containers {
			labels := append(labels[:4:4], "container", c.name)
			m.counter("container_cpu_usage_seconds_total", "Cumulative cpu time consumed by the container in core-seconds", c.cpu.Seconds(), labels...)
			m.gauge("container_memory_working_set_bytes", "Current working set of the container in bytes", float64(c.memory), labels...)
			m.gauge("container_start_time_seconds", "Start time of the container since unix epoch in seconds", float64(c.start.UnixNano())/1e9, labels...)
		}
	}
	m.gauge("resource_scrape_error", "1 if there was an error while getting container metrics, 0 otherwise", 0)
	return m.families, nil
}

// metrics gathers samples by family.
type metrics struct{ families []*dto.MetricFamily }

func (m *metrics) counter(name, help string, value float64, labels ...string) {
	m.add(name, help, dto.MetricType_COUNTER, &dto.Metric{Counter: &dto.Counter{Value: &value}}, labels)
}

func (m *metrics) gauge(name, help string, value float64, labels ...string) {
	m.add(name, help, dto.MetricType_GAUGE, &dto.Metric{Gauge: &dto.Gauge{Value: &value}}, labels)
}

func (m *metrics) add(name, help string, kind dto.MetricType, sample *dto.Metric, labels []string) {
	for i := 0; i < len(labels); i += 2 {
		sample.Label = append(sample.Label, &dto.LabelPair{Name: &labels[i], Value: &labels[i+1]})
	}
	for _, f := range m.families {
		if f.GetName() == name {
			f.Metric = append(f.Metric, sample)
			return
		}
	}
	m.families = append(m.families, &dto.MetricFamily{Name: &name, Help: &help, Type: &kind, Metric: []*dto.Metric{sample}})
}
