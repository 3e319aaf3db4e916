package config

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
)

// Adopt returns c with those of next's settings that a running gateway takes over,
// and the keys of the others that differ, sorted: they wait for a restart.
func (c Gateway) Adopt(next Gateway) (Gateway, []string, error) {
	c.Log.Level = next.Log.Level
	c.Envoy.AccessLog, c.Envoy.HTTPSPort = next.Envoy.AccessLog, next.Envoy.HTTPSPort
	c.ExternalDomain, c.InternalDomain = next.ExternalDomain, next.InternalDomain
	c.ExternalNames = next.ExternalNames
	c.SharedHost, c.SharedNamespaces = next.SharedHost, next.SharedNamespaces
	was, err := tree(c)
	if err != nil {
		return c, nil, err
	}
	is, err := tree(next)
	if err != nil {
		return c, nil, err
	}
	return c, differences("", was, is), nil
}

// tree returns settings as a file has them.
func tree(v any) (map[string]any, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("compare settings: %w", err)
	}
	var out map[string]any
	if err := json.Unmarshal(text, &out); err != nil {
		return nil, fmt.Errorf("compare settings: %w", err)
	}
	return out, nil
}

// differences returns the keys of a, with those above them, that b has otherwise.
// Both have the same keys.
func differences(above string, a, b map[string]any) []string {
	var out []string
	for key, x := range a {
		inner, nested := x.(map[string]any)
		switch y, _ := b[key].(map[string]any); {
		case nested:
			out = append(out, differences(above+key+".", inner, y)...)
		case !reflect.DeepEqual(x, b[key]):
			out = append(out, above+key)
		}
	}
	slices.Sort(out)
	return out
}
