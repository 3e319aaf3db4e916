package config

import (
	"embed"
	"fmt"
)

//go:embed example/*.yaml
var examples embed.FS

// Example returns the documented defaults of a role (node, gateway,
// autoscaler) as YAML: a settings file to start from.
func Example(role string) ([]byte, error) {
	text, err := examples.ReadFile("example/" + role + ".yaml")
	if err != nil {
		return nil, fmt.Errorf("example settings of role %q: %w", role, err)
	}
	return text, nil
}
