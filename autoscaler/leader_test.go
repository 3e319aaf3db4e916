package autoscaler

import (
	"context"
	"testing"
	"time"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/wisp-serving/wisp/config"
)

// candidate is an autoscaler that runs for the lead.
type candidate struct {
	*leader
	began chan struct{}
	stop  func()
}

func run(t *testing.T, client *fake.Clientset, address string) *candidate {
	t.Helper()
	cfg := config.DefaultAutoscaler()
	cfg.StatAddress = address
	cfg.LeaseDuration = metav1.Duration{Duration: time.Second}
	c := &candidate{began: make(chan struct{}, 10)}
	var err error
	c.leader, err = newLeader(cfg, client.CoordinationV1(), func(context.Context) { c.began <- struct{}{} }, zap.NewNop().Sugar())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.run(ctx) }()
	c.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	}
	return c
}

func TestOneLeadsAndAnotherFollowsIt(t *testing.T) {
	client := fake.NewClientset()
	first := run(t, client, "127.0.0.1:1")
	<-first.began
	second := run(t, client, "127.0.0.1:2")
	select {
	case <-second.began:
		t.Error("both lead")
	case <-time.After(2 * time.Second): // what must not come has no signal; the Lease is renewed meanwhile
	}
	if !first.leads.Load() || second.leads.Load() {
		t.Errorf("first leads: %v, second leads: %v, want the first alone", first.leads.Load(), second.leads.Load())
	}
	first.stop()
	<-second.began
	if first.leads.Load() {
		t.Error("the first still leads")
	}
	second.stop()
}

// TestOneThatWasKilledLeadsOn starts a process anew whose Lease hasn't run out.
func TestOneThatWasKilledLeadsOn(t *testing.T) {
	client := fake.NewClientset()
	first := run(t, client, "127.0.0.1:1")
	<-first.began
	lease, err := client.CoordinationV1().Leases("wisp-system").Get(t.Context(), leaseName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	first.stop()
	// A process that is killed releases nothing.
	lease.Spec.LeaseDurationSeconds = new(int32)
	*lease.Spec.LeaseDurationSeconds = 3600
	now := metav1.NowMicro()
	lease.Spec.RenewTime = &now
	if _, err := client.CoordinationV1().Leases("wisp-system").Update(t.Context(), lease, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	again := run(t, client, "127.0.0.1:1")
	<-again.began
	again.stop()
}
