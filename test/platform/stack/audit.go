package stack

import (
	"fmt"
	"os"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"sigs.k8s.io/yaml"

	"github.com/wisp-serving/wisp/test/platform/cluster"
)

// auditPolicy notes who of Wisp's roles asks for what, and nothing else.
func auditPolicy() auditv1.Policy {
	return auditv1.Policy{
		TypeMeta:   metav1.TypeMeta{APIVersion: auditv1.SchemeGroupVersion.String(), Kind: "Policy"},
		OmitStages: []auditv1.Stage{auditv1.StageRequestReceived},
		Rules: []auditv1.PolicyRule{
			{Level: auditv1.LevelMetadata, UserGroups: []string{"system:serviceaccounts:" + WispNamespace, cluster.NodesGroup}},
			{Level: auditv1.LevelNone},
		},
	}
}

func (s *Stack) auditPolicy() string { return s.state.Settings("audit") }

// writeAuditPolicy writes the policy, if there is to be a log.
func (s *Stack) writeAuditPolicy() error {
	if s.cfg.Audit == "" {
		return nil
	}
	text, err := yaml.Marshal(auditPolicy())
	if err == nil {
		err = os.WriteFile(s.auditPolicy(), text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write the audit policy: %w", err)
	}
	return nil
}

// auditFlags are the API server's. Platforms share the folder: each has a log of its
// own there, named like its state folder.
func (s *Stack) auditFlags() []string {
	if s.cfg.Audit == "" {
		return nil
	}
	log := filepath.Join(s.cfg.Audit, filepath.Base(s.state.Dir)+".log")
	return []string{"--audit-policy-file=" + s.auditPolicy(), "--audit-log-path=" + log}
}
