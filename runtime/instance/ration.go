package instance

import "time"

const (
	// rationTime is how long a ration should last: what a waiting guest or the
	// collector waits for at most, as a rule.
	rationTime = 50 * time.Microsecond
	// A unit of fuel is about one instruction, 0.3 ns to 0.5 ns as a rule, and
	// many times that where memory is touched for the first time.
	firstRation, leastRation, mostRation = 50_000, 10_000, 500_000
)

// nextRation returns the fuel that should last for rationTime, given that the
// last ration has lasted for used. One that has lasted long is followed at once
// by a smaller one; the way up is slow, since a guest may have changed what it
// does.
func nextRation(last int64, used time.Duration) int64 {
	if last == 0 {
		return firstRation // it begins
	}
	fitting := last * int64(rationTime) / max(int64(used), 1)
	return min(max(min(fitting, 2*last), leastRation), mostRation)
}
