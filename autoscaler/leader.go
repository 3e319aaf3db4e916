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
	leads   atomic.Bool
	elector *leaderelection.LeaderElector
	lease   *renewals
	// renewWithin is how old the latest renewal may be.
	renewWithin time.Duration
	log         *zap.SugaredLogger
}

// newLeader makes one that campaigns for the Lease. Each time that the lead is won
// it calls, in a goroutine of its own, takeOver before anything is carried out, and
// then began.
func newLeader(cfg config.Autoscaler, client coordinationv1.LeasesGetter, takeOver func(), began func(context.Context), log *zap.SugaredLogger) (*leader, error) {
	l := &leader{log: log}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("name this autoscaler: %w", err)
	}
	duration := cfg.LeaseDuration.Duration
	l.renewWithin = duration * 2 / 3
	l.lease = &renewals{Interface: &resourcelock.LeaseLock{
		LeaseMeta: metav1.ObjectMeta{Namespace: cfg.LeaseNamespace, Name: leaseName},
		Client:    client,
		// Two processes can't share the address, and one that was killed and
		// started anew holds its Lease still.
		LockConfig: resourcelock.ResourceLockConfig{Identity: host + "_" + cfg.StatAddress},
	}}
	l.elector, err = leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:            l.lease,
		LeaseDuration:   duration,
		RenewDeadline:   l.renewWithin,
		RetryPeriod:     duration / 10,
		ReleaseOnCancel: true,
		Name:            leaseName,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				takeOver()
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
	return l, nil
}

// leading is whether this process may carry decisions out. It doesn't wait for the
// election to say that the lead is lost: that takes the process until it has tried in
// vain for a while, and if it was frozen meanwhile, another has begun.
func (l *leader) leading(now time.Time) bool {
	return l.leads.Load() && l.elector.IsLeader() && now.Sub(l.lease.latest()) < l.renewWithin
}

// renewals is a Lease that knows when it was written last.
type renewals struct {
	resourcelock.Interface
	at atomic.Pointer[time.Time]
}

func (r *renewals) latest() time.Time {
	if at := r.at.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

// Create implements resourcelock.Interface.
func (r *renewals) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	asked := time.Now()
	return r.note(asked, r.Interface.Create(ctx, record))
}

// Update implements resourcelock.Interface.
func (r *renewals) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	asked := time.Now()
	return r.note(asked, r.Interface.Update(ctx, record))
}

func (r *renewals) note(asked time.Time, err error) error {
	if err == nil {
		r.at.Store(&asked)
	}
	return err
}

// run campaigns until ctx ends: a lead that is lost, as while the API server is
// away, may be won again. What was heard meanwhile is kept.
func (l *leader) run(ctx context.Context) error {
	for ctx.Err() == nil {
		l.elector.Run(ctx) // until the lead is lost
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return nil
}
