package audit

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"github.com/wisp-serving/wisp/test/platform/cluster"
)

// Request is what of a request matters to a role that allows it. Requests for one
// object are one.
type Request struct {
	Role                        Role
	Verb, Group, Resource, Name string
}

// Use says how often something was asked for, and what the first URI was.
type Use struct {
	Times int
	First string
}

// Uses are the requests of audit logs that were allowed.
type Uses map[Request]Use

// The annotations that the API server's authorizers give to an event.
const (
	decision = "authorization.k8s.io/decision"
	reason   = "authorization.k8s.io/reason"
)

// ReadDir reads every log in a folder.
func ReadDir(dir string) (Uses, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("read audit logs in %s: there are none", dir)
	}
	all := Uses{}
	for _, file := range files {
		if err := all.readFile(file); err != nil {
			return nil, fmt.Errorf("read audit log %s: %w", file, err)
		}
	}
	return all, nil
}

func (u Uses) readFile(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return u.Read(f)
}

// Read adds what an audit log holds, an event in JSON on each line. Lines that are
// cut short are passed over: tests kill API servers.
func (u Uses) Read(log io.Reader) error {
	lines := bufio.NewReader(log)
	for {
		line, err := lines.ReadBytes('\n')
		var event auditv1.Event
		if json.Unmarshal(line, &event) == nil {
			u.add(event)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (u Uses) add(event auditv1.Event) {
	at := event.ObjectRef
	if at == nil || !counts(event) {
		return
	}
	role, ok := allowedBy(event)
	if !ok {
		return
	}
	request := Request{Role: role, Verb: event.Verb, Group: at.APIGroup, Resource: at.Resource, Name: at.Name}
	if at.Subresource != "" {
		request.Resource += "/" + at.Subresource
	}
	use := u[request]
	if use.Times == 0 {
		use.First = event.RequestURI
	}
	use.Times++
	u[request] = use
}

// counts picks one event for each request: of a watch that which tells of its
// beginning, since it may never end.
func counts(event auditv1.Event) bool {
	if event.Verb == "watch" {
		return event.Stage == auditv1.StageResponseStarted
	}
	return event.Stage == auditv1.StageResponseComplete
}

// binding is how RBAC explains itself.
var binding = regexp.MustCompile(`^RBAC: allowed by (?:ClusterRoleBinding|RoleBinding) "([^"]+)" of (ClusterRole|Role) "([^"]+)" to `)

// allowedBy returns the role by which a request for an object was allowed. The requests
// of a node with a certificate of its own, which the Node authorizer allows without a
// reason, are those for which a node under an account needs its role.
func allowedBy(event auditv1.Event) (Role, bool) {
	if event.Annotations[decision] != "allow" {
		return Role{}, false
	}
	why := event.Annotations[reason]
	if why == "" && strings.HasPrefix(event.User.Username, cluster.NodeUser("")) {
		return kubelet(event.ObjectRef.Namespace), true
	}
	m := binding.FindStringSubmatch(why)
	if m == nil {
		return Role{}, false
	}
	role := Role{Name: m[3]}
	if m[2] == "Role" { // a binding's name is given with its namespace
		_, role.Namespace, _ = strings.Cut(m[1], "/")
	}
	return role, true
}
