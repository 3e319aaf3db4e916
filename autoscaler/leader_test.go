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
	took := false // both are called from one goroutine
	c.leader, err = newLeader(cfg, client.CoordinationV1(), func() { took = !c.leads.Load() }, func(context.Context) {
		if !took {
			t.Error("it carries out before it has taken over")
		}
		c.began <- struct{}{}
	}, zap.NewNop().Sugar())
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
	if !first.leading(time.Now()) || second.leading(time.Now()) {
		t.Errorf("first leads: %v, second leads: %v, want the first alone", first.leading(time.Now()), second.leading(time.Now()))
	}
	first.stop()
	<-second.began
	if first.leading(time.Now()) {
		t.Error("the first still leads")
	}
	second.stop()
}

// TestOneThatWasFrozen has one lead that can't know yet that its Lease is over: what it
// renewed last is too old by the time that it goes on.
func TestOneThatWasFrozen(t *testing.T) {
	first := run(t, fake.NewClientset(), "127.0.0.1:1")
	defer first.stop()
	<-first.began
	if now := time.Now().Add(time.Second); first.leading(now) {
		t.Error("it leads although its Lease, of a second, is over")
	}
	if !first.leads.Load() || !first.elector.IsLeader() {
		t.Error("it has heard of it by another way")
	}
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
