package ranking

import (
	"fmt"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/types"
)

type node struct {
	name string
	last bool
}

func about(n node) (string, bool) { return n.name, n.last }

func revision(i int) types.NamespacedName {
	return types.NamespacedName{Namespace: "default", Name: fmt.Sprintf("r-%05d", i)}
}

func nodes(n int) []node {
	var all []node
	for i := range n {
		all = append(all, node{name: fmt.Sprintf("wisp-%d", i)})
	}
	return all
}

func TestRevisionsSpread(t *testing.T) {
	first := map[string]int{}
	for i := range 1000 {
		first[Of(revision(i), nodes(4), about)[0].name]++
	}
	for name, n := range first {
		if n < 150 || n > 350 {
			t.Errorf("%s is the first of %d revisions out of 1000, want about 250", name, n)
		}
	}
}

func TestANodeThatGoesChangesNoOthersOrder(t *testing.T) {
	for i := range 100 {
		all := Of(revision(i), nodes(5), about)
		gone := all[2]
		want := slices.DeleteFunc(slices.Clone(all), func(n node) bool { return n == gone })
		got := Of(revision(i), slices.DeleteFunc(nodes(5), func(n node) bool { return n == gone }), about)
		if !slices.Equal(got, want) {
			t.Fatalf("without %s, got %v, want %v", gone.name, got, want)
		}
	}
}

func TestSomeComeLast(t *testing.T) {
	all := nodes(4)
	all[1].last = true
	for i := range 20 {
		if got := Of(revision(i), all, about); got[3] != all[1] {
			t.Errorf("got %v, want %s last", got, all[1].name)
		}
	}
}
