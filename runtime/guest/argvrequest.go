package guest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
)

// parseArgs reads {"args":["a","b"]}. No "args" means no arguments; other keys
// are ignored.
func parseArgs(body []byte, limits Limits) ([]string, error) {
	if len(body) <= limits.ArgBytes {
		if args, ok := parsePlain(body, limits.Args); ok {
			return args, nil
		}
	}
	return parseJSON(body, limits)
}

// parsePlain reads what nearly every request is, {"args":[…]} with printable
// ASCII and no escapes in the strings, some twenty times as fast as parseJSON
// does. It doesn't say what is wrong with other bodies, which may be right.
func parsePlain(body []byte, most int) (args []string, ok bool) {
	s := scanner(body) // the arguments are parts of this one string
	if !s.next(`{`) || !s.next(`"args"`) || !s.next(`:`) || !s.next(`[`) {
		return nil, false
	}
	for !s.next(`]`) {
		if len(args) == most || len(args) > 0 && !s.next(`,`) || !s.next(`"`) {
			return nil, false
		}
		arg, ok := s.plain()
		if !ok {
			return nil, false
		}
		args = append(args, arg)
	}
	return args, s.next(`}`) && s.next(``) && s == ""
}

// scanner is what is left of a JSON text.
type scanner string

// next skips white space and takes token off, if it is there.
func (s *scanner) next(token string) bool {
	rest, ok := strings.CutPrefix(strings.TrimLeft(string(*s), " \t\r\n"), token)
	if ok {
		*s = scanner(rest)
	}
	return ok
}

// plain takes off the rest of a string up to and with its closing quote.
func (s *scanner) plain() (string, bool) {
	for i := range len(*s) {
		switch c := (*s)[i]; {
		case c == '"':
			text := (*s)[:i]
			*s = (*s)[i+1:]
			return string(text), true
		case c == '\\' || c < ' ' || c > '~':
			return "", false
		}
	}
	return "", false
}

// parseJSON is parseArgs for any JSON.
func parseJSON(body []byte, limits Limits) ([]string, error) {
	if len(body) == 0 {
		return nil, badRequest(`request body is empty, must be JSON such as {"args":["a","b"]}`)
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber() // else a number too large is an error that repeats it
	if err := expect(d, '{', "request body", "an object"); err != nil {
		return nil, err
	}
	var args []string
	for seen := false; d.More(); {
		key, err := d.Token()
		if err != nil {
			return nil, badJSON(d, err)
		}
		if key != "args" {
			var ignored json.RawMessage
			if err := d.Decode(&ignored); err != nil {
				return nil, badJSON(d, err)
			}
			continue
		}
		if seen {
			return nil, badRequest("args is there twice")
		}
		seen = true
		if args, err = parseList(d, limits); err != nil {
			return nil, err
		}
	}
	if _, err := d.Token(); err != nil { // the closing brace
		return nil, badJSON(d, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, badRequest("bad JSON: there is more after the object, at byte %d", d.InputOffset())
	}
	return args, nil
}

func parseList(d *json.Decoder, limits Limits) ([]string, error) {
	if err := expect(d, '[', "args", "an array of strings"); err != nil {
		return nil, err
	}
	var args []string
	for left := limits.ArgBytes; d.More(); {
		token, err := d.Token()
		if err != nil {
			return nil, badJSON(d, err)
		}
		arg, ok := token.(string)
		switch left -= len(arg); {
		case !ok:
			return nil, badRequest("args[%d] is %s, must be a string", len(args), kindOf(token))
		case len(args) == limits.Args:
			return nil, badRequest("args has more than %d strings", limits.Args)
		case left < 0:
			return nil, badRequest("args has more than %d bytes", limits.ArgBytes)
		case strings.IndexByte(arg, 0) >= 0:
			return nil, badRequest("args[%d] holds a zero byte, which no argument can", len(args))
		}
		args = append(args, arg)
	}
	if _, err := d.Token(); err != nil { // the closing bracket
		return nil, badJSON(d, err)
	}
	return args, nil
}

// expect reads the delimiter with which what must begin to be rule.
func expect(d *json.Decoder, delim json.Delim, what, rule string) error {
	token, err := d.Token()
	if err != nil {
		return badJSON(d, err)
	}
	if token != delim {
		return badRequest("%s is %s, must be %s", what, kindOf(token), rule)
	}
	return nil
}

func badJSON(d *json.Decoder, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return badRequest("bad JSON: it ends early")
	}
	return badRequest("bad JSON near byte %d: %v", d.InputOffset(), err)
}

func kindOf(token json.Token) string {
	switch t := token.(type) {
	case json.Delim:
		if t == '{' {
			return "an object"
		}
		return "an array"
	case string:
		return "a string"
	case bool:
		return "a boolean"
	case nil:
		return "null"
	default:
		return "a number"
	}
}
