package autoscaler

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/wisp-serving/wisp/config"
)

// leaseName is the Lease that the deciding autoscaler holds.
const leaseName = "wisp-autoscaler"

// leader is whether this process carries decisions out. Those that don't hear
// and decide all the same, so that they can go on at any moment.
//
// See RATIONALE.md "What does an autoscaler that doesn't lead do?"
type leader struct {
	leads atomic.Bool
	// campaign runs for the lead until ctx ends, or the lead is lost.
	campaign func(ctx context.Context)
	log      *zap.SugaredLogger
}

// newLeader makes one that campaigns for the Lease; began is called, in a
// goroutine of its own, each time that the lead is won.
func newLeader(cfg config.Autoscaler, client coordinationv1.LeasesGetter, began func(context.Context), log *zap.SugaredLogger) (*leader, error) {
	l := &leader{log: log}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("name this autoscaler: %w", err)
	}
	duration := cfg.LeaseDuration.Duration
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta: metav1.ObjectMeta{Namespace: cfg.LeaseNamespace, Name: leaseName},
			Client:    client,
			// Two processes can't share the address, and one that was killed and
			// started anew holds its Lease still.
			LockConfig: resourcelock.ResourceLockConfig{Identity: host + "_" + cfg.StatAddress},
		},
		LeaseDuration:   duration,
		RenewDeadline:   duration * 2 / 3,
		RetryPeriod:     duration / 10,
		ReleaseOnCancel: true,
		Name:            leaseName,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				l.leads.Store(true)
				log.Infow("this autoscaler leads")
				began(ctx)
			},
			OnStoppedLeading: func() {
				if l.leads.Swap(false) {
					log.Infow("this autoscaler leads no longer")
				}
			},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("prepare the election: %w", err)
	}
	l.campaign = elector.Run
	return l, nil
}

// run campaigns until ctx ends: a lead that is lost, as while the API server is
// away, may be won again. What was heard meanwhile is kept.
func (l *leader) run(ctx context.Context) error {
	for ctx.Err() == nil {
		l.campaign(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return nil
}
