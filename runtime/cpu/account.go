package cpu

import (
	"math"
	"time"
)

// ShareConfig says what a pod may have of the cores.
type ShareConfig struct {
	// Request is the weight, in thousandths of a core; one below 10 counts as 10.
	Request int64
	// Limit bounds the use, in thousandths of a core; 0 is no bound.
	Limit int64
}

const (
	leastWeight = 10
	// halfLife is how fast use is forgotten: what a pod used a second ago is a
	// thousandth of its weight in the order.
	halfLife = 100 * time.Millisecond
	// burst is what a pod may use at once beyond its limit, after a rest: what
	// Linux gives per period of 100 ms.
	burst = 100 * time.Millisecond
)

// account is what a pod has used. It is plain data: times are passed in, as
// durations since one point in time.
type account struct {
	weight float64
	limit  float64 // cores; 0 is no bound

	total time.Duration
	// recent is the use with its age taken off, as of at, over the weight.
	recent float64
	at     time.Duration
	// paidAt is when the limit would have allowed the last use to end.
	paidAt time.Duration
	// kept is how long threads were kept from others, as of at, less the time since
	// then in which the pod used no core: who comes by with short requests and leaves
	// most of the time shouldn't go to the end of anybody's queue.
	kept time.Duration
}

func newAccount(cfg ShareConfig) account {
	return account{weight: float64(max(cfg.Request, leastWeight)), limit: float64(cfg.Limit) / 1000}
}

const (
	// threadInterval is how long threads are kept from others that wait for their
	// cores, by all instances of a pod one after another: many end before.
	threadInterval = 40 * time.Microsecond
	// leastUse is what a use counts for at least: who gives the core back works on,
	// as a rule, for the guest's sake.
	leastUse = 10 * time.Microsecond
)

// charge accounts for a use that ends now. It says whether a thread should be
// yielded before the next one.
func (a *account) charge(now, used time.Duration) (yield bool) {
	a.kept = max(a.kept-max(now-used-a.at, 0), 0)
	if a.kept += max(used, leastUse); a.kept >= threadInterval {
		a.kept, yield = 0, true
	}
	a.total += used
	a.recent = a.recent*decay(now-a.at) + float64(used)/a.weight
	a.at = now
	if a.limit > 0 {
		a.paidAt = max(a.paidAt, now-used) + time.Duration(float64(used)/a.limit)
	}
	return yield
}

func decay(age time.Duration) float64 { return math.Exp2(-float64(age) / float64(halfLife)) }

// rank orders accounts by what is left of their use, the least first. All are
// forgotten at one rate, so the order doesn't depend on when it is looked at.
func (a *account) rank() float64 {
	if a.recent == 0 {
		return math.Inf(-1)
	}
	return math.Log2(a.recent) + float64(a.at)/float64(halfLife)
}

// pause returns how long the account has to rest because of its limit: not at
// all as long as it is ahead by no more than a burst.
func (a *account) pause(now time.Duration) time.Duration {
	if a.limit == 0 {
		return 0
	}
	return max(a.paidAt-now-burst, 0)
}
