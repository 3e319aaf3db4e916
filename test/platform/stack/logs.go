package stack

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// LogMark is how long each log was at some time, by its component. A test reads
// from there on what has happened since.
type LogMark map[string]int64

// MarkLogs notes how long each log is now.
func (s State) MarkLogs() (LogMark, error) {
	mark := LogMark{}
	for _, component := range s.logged() {
		info, err := os.Stat(s.Log(component))
		if err != nil {
			return nil, fmt.Errorf("mark log: %w", err)
		}
		mark[component] = info.Size()
	}
	return mark, nil
}

// ReadLog returns what a component has written since. One that has never
// started has written nothing.
func (s State) ReadLog(component string, since LogMark) (string, error) {
	f, err := os.Open(s.Log(component))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read log: %w", err)
	}
	defer f.Close()
	if _, err := f.Seek(since[component], io.SeekStart); err != nil {
		return "", fmt.Errorf("read log: %w", err)
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return "", fmt.Errorf("read log: %w", err)
	}
	return string(text), nil
}

// maxRace is how much of a log is shown from a data race on, in bytes.
const maxRace = 4 << 10

// CheckRaces returns an error for each component in which the race detector has
// found something since.
func (s State) CheckRaces(since LogMark) error {
	var errs []error
	for _, component := range s.logged() {
		text, err := s.ReadLog(component, since)
		if err != nil {
			errs = append(errs, err)
		}
		if _, race, found := strings.Cut(text, "WARNING: DATA RACE"); found {
			errs = append(errs, fmt.Errorf("component %s has a data race:%s", component, race[:min(len(race), maxRace)]))
		}
	}
	return errors.Join(errs...)
}

// logged returns the names of the components that have a log.
func (s State) logged() []string {
	files, err := filepath.Glob(filepath.Join(s.Logs(), "*.log"))
	if err != nil {
		return nil // only for a broken pattern
	}
	var names []string
	for _, file := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(file), ".log"))
	}
	return names
}
