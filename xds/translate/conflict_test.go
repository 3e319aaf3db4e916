package translate

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"
)

func TestAdmit(t *testing.T) {
	claim := func(name string, age int, hosts ...string) Claim {
		return Claim{
			Key:     types.NamespacedName{Namespace: "ns", Name: name},
			Created: time.Unix(1000-int64(age), 0),
			Ingress: Ingress{Internal: []VirtualHost{{Hosts: hosts}}},
		}
	}
	tests := []struct {
		name    string
		claims  []Claim
		kept    []string
		refused map[string]string
	}{{
		name:   "nobody's host is another's",
		claims: []Claim{claim("b", 1, "b"), claim("a", 2, "a")},
		kept:   []string{"a", "b"},
	}, {
		name:    "the older one keeps it",
		claims:  []Claim{claim("a", 1, "x"), claim("b", 2, "y", "x")},
		kept:    []string{"b"},
		refused: map[string]string{"a": "host x belongs to the older ingress ns/b"},
	}, {
		name:    "of the same age the lower name keeps it",
		claims:  []Claim{claim("b", 1, "x"), claim("a", 1, "x")},
		kept:    []string{"a"},
		refused: map[string]string{"b": "host x belongs to the older ingress ns/a"},
	}, {
		name:    "who is refused takes no host from others",
		claims:  []Claim{claim("a", 3, "x"), claim("b", 2, "x", "y"), claim("c", 1, "y")},
		kept:    []string{"a", "c"},
		refused: map[string]string{"b": "host x belongs to the older ingress ns/a"},
	}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			admitted, refusals := Admit(tt.claims)
			var kept []string
			for _, c := range admitted {
				kept = append(kept, c.Key.Name)
			}
			if diff := cmp.Diff(tt.kept, kept); diff != "" {
				t.Errorf("kept (-want +got):\n%s", diff)
			}
			if len(refusals) != len(tt.refused) {
				t.Errorf("%d refused, want %d", len(refusals), len(tt.refused))
			}
			for key, r := range refusals {
				if r.Reason != ReasonConflict || r.Message != tt.refused[key.Name] {
					t.Errorf("%s: %v, want %s", key, r, tt.refused[key.Name])
				}
			}
		})
	}
}
