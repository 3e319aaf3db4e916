package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/wisp-serving/wisp/test/platform/audit"
	"github.com/wisp-serving/wisp/test/platform/cluster"
	"github.com/wisp-serving/wisp/test/platform/stack"
)

// checkPermissions holds the roles of the chart, as it is installed in a cluster,
// against the audit logs of a platform that has ended, and writes a table to a file.
func checkPermissions(cfg stack.Config, file string, out io.Writer) error {
	objects, err := cluster.Chart(cfg.Programs.Helm, filepath.Join(cfg.Root, "charts/wisp"), stack.WispNamespace, nil)
	if err != nil {
		return err
	}
	permissions, err := audit.Permissions(objects)
	if err != nil {
		return fmt.Errorf("read the chart's permissions: %w", err)
	}
	uses, err := audit.ReadDir(cfg.Audit)
	if err != nil {
		return err
	}
	report := audit.Compare(permissions, uses, audit.Untested)
	if err := writeReport(report, file); err != nil {
		return fmt.Errorf("write what needed each permission: %w", err)
	}
	if err := report.Err(); err != nil {
		return fmt.Errorf("%w\n%s has what needed the others", err, file)
	}
	fmt.Fprintf(out, "%d permissions, each of them needed: %s\n", len(permissions), file)
	return nil
}

func writeReport(report audit.Report, file string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(report.Print(f), f.Close())
}
