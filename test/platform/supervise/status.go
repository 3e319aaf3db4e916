package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// State is where a component is in its life.
type State string

// The states of a component, in the order of a life without mishap.
const (
	Waiting  State = "waiting" // for what it comes after
	Starting State = "starting"
	Ready    State = "ready"
	BackOff  State = "back-off" // died, will be started again
	Stopping State = "stopping"
	Stopped  State = "stopped"
)

// Status is what one component does now.
type Status struct {
	Name    string `json:"name"`
	State   State  `json:"state"`
	Process `json:"process"`
	// Since is when the process started.
	Since    time.Time `json:"since,omitzero"`
	Restarts int       `json:"restarts"`
	// LastExit is how the process before this one ended.
	LastExit string `json:"lastExit,omitempty"`
	Address  string `json:"address,omitempty"`
	// Log is the path of its log file; empty for a step without a process.
	Log string `json:"log,omitempty"`
}

// Snapshot is the state of a whole supervisor, as kept in its status file.
type Snapshot struct {
	Supervisor Process  `json:"supervisor"`
	Components []Status `json:"components"`
}

// ReadSnapshot reads a status file. A missing one is an empty snapshot: nothing
// was ever started there.
func ReadSnapshot(path string) (Snapshot, error) {
	var s Snapshot
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("read status: %w", err)
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("parse status %s: %w", path, err)
	}
	return s, nil
}

// write replaces the status file in one step, so that a reader never sees half
// of it.
func (s Snapshot) write(path string) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
	if err := os.WriteFile(tmp, text, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
