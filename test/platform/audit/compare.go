package audit

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// Row is a permission, and what needs it.
type Row struct {
	Permission Permission
	// Use is zero if no test has needed it.
	Use Use
	// Untested says why no test can need it, if that is so.
	Untested string
}

// Report is what came of a comparison.
type Report struct {
	Rows []Row
	// Beyond is what nodes have asked for that their role under an account wouldn't allow.
	Beyond map[Permission]Use
	// Stale are permissions that are excused and not there.
	Stale []string
}

// Compare holds permissions against what was used. Untested has reasons by
// [Permission.String].
func Compare(permissions []Permission, uses Uses, untested map[string]string) Report {
	report := Report{Beyond: map[Permission]Use{}}
	excused := maps.Clone(untested)
	for _, p := range permissions {
		row := Row{Permission: p, Untested: untested[p.String()]}
		delete(excused, p.String())
		for _, request := range slices.SortedFunc(maps.Keys(uses), byName) {
			if p.allows(request) {
				row.Use.Times += uses[request].Times
				row.Use.First = cmp.Or(row.Use.First, uses[request].First)
			}
		}
		report.Rows = append(report.Rows, row)
	}
	for request, use := range uses {
		allowed := slices.ContainsFunc(permissions, func(p Permission) bool { return p.allows(request) })
		if isKubelet(request.Role) && !allowed {
			p := Permission{Role: request.Role, Verb: request.Verb, Group: request.Group, Resource: request.Resource}
			was := report.Beyond[p]
			report.Beyond[p] = Use{Times: was.Times + use.Times, First: cmp.Or(was.First, use.First)}
		}
	}
	report.Stale = slices.Sorted(maps.Keys(excused))
	return report
}

func isKubelet(r Role) bool { return r == kubelet(r.Namespace) }

func byName(a, b Request) int { return cmp.Compare(a.Name, b.Name) }

// Err returns an error that names each permission that is too much or too little, or
// nil.
func (r Report) Err() error {
	var needless, beyond []string
	for _, row := range r.Rows {
		if row.Use.Times == 0 && row.Untested == "" {
			needless = append(needless, row.Permission.String())
		}
	}
	for p, use := range r.Beyond {
		beyond = append(beyond, fmt.Sprintf("%s (%s)", p, use.First))
	}
	slices.Sort(beyond)
	return errors.Join(
		list(needless, "no test has needed these permissions; take them out of charts/wisp/templates, add a test that needs them, or say in test/platform/audit/untested.go why none can"),
		list(beyond, "nodes have asked for what their role in charts/wisp/templates/node-identity.yaml doesn't allow"),
		list(r.Stale, "test/platform/audit/untested.go excuses permissions that no role has"),
	)
}

func list(lines []string, what string) error {
	if len(lines) == 0 {
		return nil
	}
	return fmt.Errorf("%s:\n  %s", what, strings.Join(lines, "\n  "))
}

// Print writes a table: each permission, how many requests needed it, and the first
// of them, or why there is none.
func (r Report) Print(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PERMISSION\tREQUESTS\tTHE FIRST OF THEM")
	for _, row := range r.Rows {
		first := row.Use.First
		if row.Use.Times == 0 {
			first = cmp.Or(row.Untested, "NOT NEEDED")
		}
		fmt.Fprintf(w, "%s\t%d\t%s\n", row.Permission, row.Use.Times, first)
	}
	return w.Flush()
}
