// Package kingress is Knative's own conformance suite for ingresses as a test
// binary, to be run against a cluster. How, is in test/conformance.
package kingress

import (
	"testing"

	"knative.dev/networking/test/conformance/ingress"
)

func TestIngressConformance(t *testing.T) { ingress.RunConformance(t) }
