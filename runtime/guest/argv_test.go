package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/wisp-serving/wisp/runtime/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParseArgs(t *testing.T) {
	limits := Limits{Args: 3, ArgBytes: 10}
	tests := map[string]struct {
		body string
		args []string
		err  string
	}{
		"two":               {`{"args":["a","b"]}`, []string{"a", "b"}, ""},
		"white space":       {" {\n\t\"args\" : [ \"a\" , \"b\" ] } \r\n", []string{"a", "b"}, ""},
		"no args":           {`{}`, nil, ""},
		"empty args":        {`{"args":[]}`, nil, ""},
		"empty string":      {`{"args":[""]}`, []string{""}, ""},
		"escapes":           {`{"args":["\u00fc\n\"","ü"]}`, []string{"ü\n\"", "ü"}, ""},
		"other keys":        {`{"x":{"args":[1]},"args":["a"],"y":[[]]}`, []string{"a"}, ""},
		"at the limits":     {`{"args":["1234","5678","90"]}`, []string{"1234", "5678", "90"}, ""},
		"empty body":        {``, nil, "request body is empty"},
		"cut short":         {`{"args":["a"`, nil, "bad JSON: it ends early"},
		"cut in a string":   {`{"args":["a`, nil, "bad JSON: it ends early"},
		"not JSON":          {`args=a`, nil, "bad JSON near byte"},
		"trailing comma":    {`{"args":["a",]}`, nil, "bad JSON near byte"},
		"leading comma":     {`{"args":[,"a"]}`, nil, "bad JSON near byte"},
		"no comma":          {`{"args":["a""b"]}`, nil, "bad JSON near byte"},
		"more after it":     {`{"args":["a"]}{}`, nil, "there is more after the object"},
		"array":             {`["a"]`, nil, "request body is an array, must be an object"},
		"string":            {`"a"`, nil, "request body is a string, must be an object"},
		"null":              {`null`, nil, "request body is null, must be an object"},
		"args is a string":  {`{"args":"a"}`, nil, "args is a string, must be an array of strings"},
		"args is null":      {`{"args":null}`, nil, "args is null, must be an array of strings"},
		"number":            {`{"args":["a",8]}`, nil, "args[1] is a number, must be a string"},
		"huge number":       {`{"args":[1e999]}`, nil, "args[0] is a number, must be a string"},
		"null in args":      {`{"args":[null]}`, nil, "args[0] is null, must be a string"},
		"boolean":           {`{"args":[true]}`, nil, "args[0] is a boolean, must be a string"},
		"nested":            {`{"args":[["a"]]}`, nil, "args[0] is an array, must be a string"},
		"object":            {`{"args":[{}]}`, nil, "args[0] is an object, must be a string"},
		"zero byte":         {`{"args":["a\u0000b"]}`, nil, "args[0] holds a zero byte"},
		"twice":             {`{"args":["a"],"args":["b"]}`, nil, "args is there twice"},
		"too many":          {`{"args":["1","2","3","4"]}`, nil, "args has more than 3 strings"},
		"too long":          {`{"args":["12345","67890","1"]}`, nil, "args has more than 10 bytes"},
		"raw control bytes": {"{\"args\":[\"a\nb\"]}", nil, "bad JSON near byte"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			for way, parse := range map[string]func([]byte, Limits) ([]string, error){"parseArgs": parseArgs, "parseJSON": parseJSON} {
				args, err := parse([]byte(tc.body), limits)
				if diff := cmp.Diff(args, tc.args); err == nil && diff != "" {
					t.Errorf("%s: got -, want +:\n%s", way, diff)
				}
				switch request := new(requestError); {
				case tc.err == "" && err != nil:
					t.Errorf("%s: %v", way, err)
				case tc.err == "":
				case !errors.As(err, &request) || request.status != http.StatusBadRequest || !strings.Contains(err.Error(), tc.err):
					t.Errorf("%s: got %v, want status 400 with %q", way, err, tc.err)
				}
			}
		})
	}
}

// FuzzParseArgs holds the quick parser against the whole one, and that against
// encoding/json.
func FuzzParseArgs(f *testing.F) {
	for _, seed := range []string{
		`{"args":["1111","2345","8","-10000"]}`, `{ "args" : [ ] }`, `{}`, `{"args":["\u0041"]}`,
		`{"args":[1]}`, `{"args":["a",]}`, `{"args":["a"]} x`, "{\"args\":[\"\xff\"]}", `{"args":["a"],"b":{"c":[]}}`,
		strings.Repeat("9", 310),
	} {
		f.Add([]byte(seed))
	}
	limits := Limits{Args: 8, ArgBytes: 64}
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := parseJSON(body, limits)
		if plain, ok := parsePlain(body, limits.Args); ok && len(body) <= limits.ArgBytes {
			if diff := cmp.Diff(plain, got); diff != "" || err != nil {
				t.Errorf("the quick way (-) differs from the whole (+, %v):\n%s", err, diff)
			}
		}
		if err != nil {
			if len(err.Error()) > 300 {
				t.Errorf("an error of %d bytes: %v", len(err.Error()), err)
			}
			return
		}
		var want map[string]any
		if err := json.Unmarshal(body, &want); err != nil {
			t.Fatalf("%q was taken, but %v", body, err)
		}
		list, _ := want["args"].([]any)
		if len(list) != len(got) || len(got) > limits.Args {
			t.Fatalf("got %q, want %q", got, list)
		}
		for i := range list {
			if list[i] != got[i] {
				t.Errorf("args[%d] = %q, want %q", i, got[i], list[i])
			}
		}
	})
}

func TestVerdict(t *testing.T) {
	tests := map[string]struct {
		err     error
		status  int
		message string
	}{
		"none":     {nil, 200, ""},
		"request":  {badRequest("args is there twice"), 400, "args is there twice"},
		"exit":     {&ExitError{3}, 500, "exit status 3"},
		"trap":     {&TrapError{errors.New("wasm error: unreachable\nwasm stack trace:\n\t.main()")}, 500, "wasm error: unreachable"},
		"output":   {&outputError{10}, 500, "output is longer than 10 bytes"},
		"deadline": {context.DeadlineExceeded, 504, "request timeout"},
		"client":   {context.Canceled, 499, "the client has gone"},
		"closed":   {fmt.Errorf("x: %w", ErrClosed), 503, "the function is shutting down"},
		"other":    {errors.New("open /var/lib/wisp/modules: permission denied"), 500, "internal error"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if status, message := verdict(tc.err); status != tc.status || message != tc.message {
				t.Errorf("got %d %q, want %d %q", status, message, tc.status, tc.message)
			}
		})
	}
}

func TestAcceptsJSON(t *testing.T) {
	for accept, want := range map[string]bool{
		"":                                  false,
		"*/*":                               false,
		"text/plain":                        false,
		"application/json":                  true,
		"Application/JSON; charset=utf-8":   true,
		"text/html, application/json;q=0.9": true,
		"application/json;q=0":              false,
		"application/json;q=x":              true,
		"application/jsonx":                 false,
		",;,":                               false,
	} {
		if got := acceptsJSON([]string{"text/html", accept}); got != want {
			t.Errorf("%q: %v, want %v", accept, got, want)
		}
	}
}

// serve sends one request to the argv ABI over a guest that is run.
func serve(t *testing.T, run Runner, change func(*http.Request)) *http.Response {
	t.Helper()
	h, err := NewHandler(ABIArgv, run, Limits{Body: 100, Args: 4, ArgBytes: 100, Output: 10}, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(`{"args":["a","b"]}`))
	r.Header.Set("Content-Type", "application/json")
	if change != nil {
		change(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func echo(_ context.Context, call Call) error {
	for _, arg := range call.Args {
		if _, err := fmt.Fprintln(call.Stdout, arg); err != nil {
			return err
		}
	}
	return nil
}

func fails(err error) Runner {
	return func(context.Context, Call) error { return err }
}

func wantJSON(r *http.Request) { r.Header.Set("Accept", "application/json") }

func TestArgv(t *testing.T) {
	body := func(text string) func(*http.Request) {
		return func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(text)) }
	}
	tests := map[string]struct {
		run    Runner
		change func(*http.Request)
		status int
		kind   string
		body   string
	}{
		"text":            {echo, nil, 200, plainText, "a\nb\n"},
		"json":            {echo, wantJSON, 200, jsonText, `{"status":0,"output":["a","b"]}` + "\n"},
		"no output":       {fails(nil), wantJSON, 200, jsonText, `{"status":0,"output":[]}` + "\n"},
		"exit":            {fails(&ExitError{1}), nil, 500, plainText, "exit status 1\n"},
		"exit, json":      {fails(&ExitError{7}), wantJSON, 500, jsonText, `{"status":1,"error":"exit status 7"}` + "\n"},
		"method":          {echo, func(r *http.Request) { r.Method = http.MethodGet }, 405, plainText, "method GET, must be POST\n"},
		"type":            {echo, func(r *http.Request) { r.Header.Set("Content-Type", "text/xml") }, 415, plainText, "content type \"text/xml\", must be application/json\n"},
		"type, charset":   {echo, func(r *http.Request) { r.Header.Set("Content-Type", "application/json; charset=utf-8") }, 200, plainText, "a\nb\n"},
		"no type":         {echo, func(r *http.Request) { r.Header.Del("Content-Type") }, 200, plainText, "a\nb\n"},
		"bad, json":       {echo, func(r *http.Request) { body("{")(r); wantJSON(r) }, 400, jsonText, `{"status":1,"error":"bad JSON: it ends early"}` + "\n"},
		"long body":       {echo, body(strings.Repeat(" ", 101)), 400, plainText, "request body is longer than 100 bytes\n"},
		"body just fits":  {echo, body(`{"args":["` + strings.Repeat("1", 9) + `"]}` + strings.Repeat(" ", 78)), 200, plainText, "111111111\n"},
		"broken body":     {echo, func(r *http.Request) { r.Body = io.NopCloser(io.MultiReader(strings.NewReader("{"), errReader{})) }, 400, plainText, "request body ended early\n"},
		"output too long": {echo, body(`{"args":["12345","67890"]}`), 500, plainText, "output is longer than 10 bytes\n"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got := serve(t, tc.run, tc.change)
			text, err := io.ReadAll(got.Body)
			if err != nil {
				t.Fatal(err)
			}
			if got.StatusCode != tc.status || got.Header.Get("Content-Type") != tc.kind || string(text) != tc.body {
				t.Errorf("got %d %s %q, want %d %s %q", got.StatusCode, got.Header.Get("Content-Type"), text, tc.status, tc.kind, tc.body)
			}
			if got.ContentLength != int64(len(tc.body)) {
				t.Errorf("content length %d, want %d", got.ContentLength, len(tc.body))
			}
			if allow := got.Header.Get("Allow"); (allow == "POST") != (tc.status == 405) {
				t.Errorf("Allow %q", allow)
			}
		})
	}
}

func TestEncodeLines(t *testing.T) {
	for text, want := range map[string]string{
		"":             ``,
		"\n":           `""`,
		"a":            `"a"`,
		"a\nb\n":       `"a","b"`,
		"\n\na\n\n":    `"","","a",""`,
		"<\"\x00>\r\n": `"<\"\u0000>\r"`,
	} {
		if got, want := string(encodeLines([]byte(text))), `{"status":0,"output":[`+want+"]}\n"; got != want {
			t.Errorf("%q: got %s, want %s", text, got, want)
		}
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

// The buffers of one request are the next one's: nothing of the first is left.
func TestArgvBuffersAreClean(t *testing.T) {
	h := newArgv(echo, DefaultLimits(1<<20), nil)
	for i := range 100 {
		long := strings.Repeat(fmt.Sprint(i%10), 100-i)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/", strings.NewReader(`{"args":["`+long+`"]}`)))
		if got := w.Body.String(); got != long+"\n" {
			t.Fatalf("request %d: got %q", i, got)
		}
	}
}

func TestUnknownABI(t *testing.T) {
	for _, abi := range []string{"", "ARGV"} {
		if _, err := NewHandler(abi, echo, DefaultLimits(1), nil); !errors.Is(err, api.ErrUnusable) {
			t.Errorf("%q: got %v, want ErrUnusable", abi, err)
		}
	}
}

func TestLines(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	tests := map[string]struct{ in, want []string }{
		"whole":            {[]string{"a\nb\n"}, []string{"a", "b"}},
		"in parts":         {[]string{"a", "b\nc", "", "d"}, []string{"ab", "cd"}},
		"empty":            {[]string{"\n\n"}, []string{"", ""}},
		"as long as may":   {[]string{long[1:] + "\n"}, []string{long[1:]}},
		"broken":           {[]string{long + "yz\n"}, []string{long, "yz"}},
		"broken, in parts": {[]string{"w", long, "y\n"}, []string{"w" + long[1:], "xy"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var got []string
			l := NewLines(func(line []byte) error { got = append(got, string(line)); return nil })
			for _, part := range tc.in {
				if n, err := l.Write([]byte(part)); n != len(part) || err != nil {
					t.Errorf("wrote %d, %v", n, err)
				}
			}
			_ = l.Flush()
			if diff := cmp.Diff(got, tc.want); diff != "" {
				t.Errorf("got -, want +:\n%s", diff)
			}
		})
	}
}

// FuzzLines: no byte is lost or added, however the stream is cut, and no line
// is too long.
func FuzzLines(f *testing.F) {
	f.Add([]byte("a\n\nb"), 1)
	f.Add(bytes.Repeat([]byte("x"), 2*maxLine+1), 1000)
	f.Fuzz(func(t *testing.T, stream []byte, cut int) {
		var joined []byte
		l := NewLines(func(line []byte) error {
			if len(line) > maxLine {
				t.Errorf("a line of %d bytes", len(line))
			}
			joined = append(joined, line...)
			return nil
		})
		cut = max(1, cut)
		for rest := stream; len(rest) > 0; rest = rest[min(cut, len(rest)):] {
			_, _ = l.Write(rest[:min(cut, len(rest))])
		}
		_ = l.Flush()
		if want := bytes.ReplaceAll(stream, []byte("\n"), nil); !bytes.Equal(joined, want) {
			t.Errorf("got %q, want %q", joined, want)
		}
	})
}
