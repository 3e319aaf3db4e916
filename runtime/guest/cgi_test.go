package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// prints is a guest that prints parts, one write each.
func prints(parts ...string) Runner {
	return func(_ context.Context, call Call) error {
		for _, p := range parts {
			if _, err := io.WriteString(call.Stdout, p); err != nil {
				return err
			}
		}
		return nil
	}
}

// then is a guest that ends with err after run.
func then(run Runner, err error) Runner {
	return func(ctx context.Context, call Call) error { return errors.Join(run(ctx, call), err) }
}

// askCGI sends a request through a real server. broken means that the answer
// broke off.
func askCGI(t *testing.T, run Runner, method string) (answer *http.Response, body string, broken bool) {
	t.Helper()
	front := httptest.NewServer(newCGI(run, nil))
	defer front.Close()
	r, err := http.NewRequestWithContext(t.Context(), method, front.URL+"/a/b?c=d", strings.NewReader("question"))
	if err != nil {
		t.Fatal(err)
	}
	answer, err = front.Client().Transport.RoundTrip(r)
	if err != nil {
		return nil, "", true
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	return answer, string(text), err != nil
}

func TestCGIAnswers(t *testing.T) {
	long := strings.Repeat("x", maxCGIHeader)
	for name, tc := range map[string]struct {
		run    Runner
		status int
		kind   string
		body   string
	}{
		"cgi":                    {prints("Content-Type: text/html\r\nX-A: 1\r\n\r\n<p>"), 200, "text/html", "<p>"},
		"line feeds":             {prints("Status: 404 Not Found\n\ngone"), 404, "text/plain; charset=utf-8", "gone"},
		"byte by byte":           {prints(strings.Split("Status: 201\r\nContent-Type: a/b\r\n\r\nbody", "")...), 201, "a/b", "body"},
		"body in parts":          {prints("Content-Type: a/b\n\n", "one", "two"), 200, "a/b", "onetwo"},
		"location":               {prints("Location: /there\n\n"), 302, "", ""},
		"location with status":   {prints("Status: 301 Moved\nLocation: https://example.com/\n\n"), 301, "", ""},
		"any case":               {prints("content-TYPE: a/b\nsTATUS: 418\n\n"), 418, "a/b", ""},
		"plain":                  {prints("hello\nworld\n"), 200, "text/plain; charset=utf-8", "hello\nworld\n"},
		"plain that is HTML":     {prints("<!doctype html><p>"), 200, "text/html; charset=utf-8", "<!doctype html><p>"},
		"plain, headers' form":   {prints("Name: Ada\nAge: 36\n\nrest"), 200, "text/plain; charset=utf-8", "Name: Ada\nAge: 36\n\nrest"},
		"plain, empty line":      {prints("\nContent-Type: a/b\n\n"), 200, "text/plain; charset=utf-8", "\nContent-Type: a/b\n\n"},
		"plain, no line's end":   {prints("Content"), 200, "text/plain; charset=utf-8", "Content"},
		"plain, long":            {prints("A: " + long), 200, "text/plain; charset=utf-8", "A: " + long},
		"plain, zero bytes":      {prints("a\x00b: c\n\n"), 200, "application/octet-stream", "a\x00b: c\n\n"},
		"nothing":                {prints(), 200, "", ""},
		"hop by hop":             {prints("Status: 200\nConnection: close\nTransfer-Encoding: gzip\nUpgrade: x\n\nok"), 200, "text/plain; charset=utf-8", "ok"},
		"status 99":              {prints("Status: 99\n\n"), 502, plainText, "bad CGI output: Status = \"99\", must be from 200 to 599\n"},
		"status 099":             {prints("Status: 099\n\n"), 502, plainText, "bad CGI output: Status = \"099\", must be from 200 to 599\n"},
		"status 1000":            {prints("Status: 1000\n\n"), 502, plainText, "bad CGI output: Status = \"1000\", must be from 200 to 599\n"},
		"status 101":             {prints("Status: 101 Switching\n\n"), 502, plainText, "bad CGI output: Status = \"101 Switching\", must be from 200 to 599\n"},
		"status of words":        {prints("Status: fine\n\n"), 502, plainText, "bad CGI output: Status = \"fine\", must be from 200 to 599\n"},
		"carriage return":        {prints("Status: 200\nX-A: b\rX-Evil: 1\n\n"), 502, plainText, "bad CGI output: header X-A holds control characters\n"},
		"zero byte":              {prints("Status: 200\nX-A: \x00\n\n"), 502, plainText, "bad CGI output: header X-A holds control characters\n"},
		"folded":                 {prints("Status: 200\nX-A: b\n c\n\n"), 502, plainText, "bad CGI output: a line that is no header\n"},
		"no colon":               {prints("Status: 200\nevil\n\n"), 502, plainText, "bad CGI output: a line that is no header\n"},
		"space before colon":     {prints("Status: 200\nX : y\n\n"), 502, plainText, "bad CGI output: a line that is no header\n"},
		"two statuses":           {prints("Status: 200\nStatus: 201\n\n"), 502, plainText, "bad CGI output: Status is there twice\n"},
		"ends in its headers":    {prints("Status: 200\n"), 502, plainText, "bad CGI output: it ended in its headers\n"},
		"long headers":           {prints("Status: 200\nA: " + long), 502, plainText, "bad CGI output: headers of more than 65536 bytes\n"},
		"many headers":           {prints("Status: 200\n" + strings.Repeat("A: b\n", 10000)), 502, plainText, "bad CGI output: more than 256 headers\n"},
		"length of words":        {prints("Status: 200\nContent-Length: many\n\n"), 502, plainText, "bad CGI output: Content-Length = \"many\", must be a number\n"},
		"right length":           {prints("Status: 200\nContent-Length: 2\n\nok"), 200, "text/plain; charset=utf-8", "ok"},
		"exits":                  {then(prints(), &ExitError{3}), 500, plainText, "exit status 3\n"},
		"exits in its headers":   {then(prints("Status: 200\n"), &ExitError{3}), 500, plainText, "exit status 3\n"},
		"out of time":            {then(prints(), context.DeadlineExceeded), 504, plainText, "request timeout\n"},
		"closed":                 {then(prints(), ErrClosed), 503, plainText, "the function is shutting down\n"},
		"no content":             {prints("Status: 204\n\nbody all the same"), 204, "", ""},
		"not modified, a length": {prints("Status: 304\nContent-Length: 10\n\n"), 304, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			answer, body, broken := askCGI(t, tc.run, http.MethodPost)
			if broken {
				t.Fatal("the answer broke off")
			}
			if answer.StatusCode != tc.status || body != tc.body || answer.Header.Get("Content-Type") != tc.kind {
				t.Errorf("got %d %q %.200q, want %d %q %.200q", answer.StatusCode, answer.Header.Get("Content-Type"), body, tc.status, tc.kind, tc.body)
			}
			for _, not := range []string{"Status", "X-Evil", "Upgrade"} {
				if _, ok := answer.Header[not]; ok {
					t.Errorf("header %s got through", not)
				}
			}
		})
	}
}

// What goes wrong after the answer has begun breaks it off.
func TestCGIBreaksOff(t *testing.T) {
	for name, run := range map[string]Runner{
		"traps":         then(prints("Status: 200\n\nbegun"), &TrapError{errors.New("unreachable")}),
		"exits":         then(prints("begun\n"), &ExitError{2}),
		"out of time":   then(prints("begun\n"), context.DeadlineExceeded),
		"promised more": prints("Status: 200\nContent-Length: 10\n\nshort"),
		"promised":      prints("Status: 200\nContent-Length: 10\n\n"),
		"promised less": prints("Status: 200\nContent-Length: 2\n\ntoo long"),
	} {
		if _, body, broken := askCGI(t, run, http.MethodGet); !broken {
			t.Errorf("%s: got %q, whole", name, body)
		}
	}
}

func TestCGIHead(t *testing.T) {
	answer, body, broken := askCGI(t, prints("Status: 200\nContent-Length: 10\n\n0123456789"), http.MethodHead)
	if broken || body != "" || answer.ContentLength != 10 {
		t.Errorf("got %d bytes, length %d, broken %v", len(body), answer.ContentLength, broken)
	}
}

// A short answer goes at once, with its length; a long-lived one as it comes.
func TestCGIFlushes(t *testing.T) {
	answer, _, _ := askCGI(t, prints("Content-Type: a/b\n\nshort"), http.MethodGet)
	if answer.ContentLength != 5 {
		t.Errorf("length %d", answer.ContentLength)
	}
	seen := make(chan struct{})
	front := httptest.NewServer(newCGI(func(_ context.Context, call Call) error {
		_, _ = io.WriteString(call.Stdout, "Content-Type: a/b\n\nfirst")
		<-seen
		_, _ = io.WriteString(call.Stdout, "second")
		return nil
	}, nil))
	defer front.Close()
	got, err := front.Client().Get(front.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Body.Close()
	buf := make([]byte, 5)
	if _, err := io.ReadFull(got.Body, buf); string(buf) != "first" {
		t.Errorf("got %q, %v", buf, err)
	}
	close(seen)
	if rest, err := io.ReadAll(got.Body); string(rest) != "second" {
		t.Errorf("got %q, %v", rest, err)
	}
}

// A guest may answer before it has read all, and read on.
func TestCGIFullDuplex(t *testing.T) {
	body := strings.Repeat("0123456789", 1<<20)
	front := httptest.NewServer(newCGI(func(_ context.Context, call Call) error {
		_, _ = io.WriteString(call.Stdout, "Content-Type: a/b\n\n")
		_, err := io.Copy(call.Stdout, call.Stdin)
		return err
	}, nil))
	defer front.Close()
	got, err := front.Client().Post(front.URL, "a/b", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer got.Body.Close()
	if text, err := io.ReadAll(got.Body); string(text) != body {
		t.Errorf("got %d bytes, %v", len(text), err)
	}
}

// The end of the guest's time ends reads and writes that wait for the client.
func TestCGIInterrupts(t *testing.T) {
	for name, run := range map[string]Runner{
		"read": func(_ context.Context, call Call) error {
			time.AfterFunc(10*time.Millisecond, call.Interrupt)
			_, err := io.Copy(io.Discard, call.Stdin)
			return err
		},
		"write": func(_ context.Context, call Call) error {
			time.AfterFunc(10*time.Millisecond, call.Interrupt)
			for {
				if _, err := call.Stdout.Write(make([]byte, 1<<20)); err != nil {
					return err
				}
			}
		},
	} {
		ended := make(chan error, 1)
		front := httptest.NewServer(newCGI(func(ctx context.Context, call Call) error {
			err := run(ctx, call)
			ended <- err
			return err
		}, nil))
		in, out := io.Pipe()
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, front.URL, in)
		answered := make(chan *http.Response)
		go func() {
			answer, _ := front.Client().Do(r)
			answered <- answer
		}()
		if err := <-ended; err == nil {
			t.Errorf("%s goes on", name)
		}
		_ = out.Close()
		front.CloseClientConnections()
		if answer := <-answered; answer != nil {
			answer.Body.Close() // which was never read
		}
		front.Close()
	}
}

func TestCGIEnvironment(t *testing.T) {
	r := httptest.NewRequest(http.MethodPost, "http://fn.example.com:8080/a%20b/c?x=1&y=%20", strings.NewReader("12345"))
	r.Header = http.Header{
		"Content-Type":    {"text/csv"},
		"Content-Length":  {"5"},
		"Accept":          {"a/b", "c/d"},
		"Cookie":          {"a=1", "b=2"},
		"Proxy":           {"http://evil"},
		"X_forwarded-For": {"spoofed"},
		"X-Forwarded-For": {"192.0.2.7, 10.0.0.1"},
		"X-Odd.Name":      {"x"},
		"X-Ünicode":       {"x"},
		"Authorization":   {"Bearer x"},
	}
	got := new(environ).of(r)
	slices.Sort(got)
	want := []string{
		"AUTH_TYPE=", "CONTENT_LENGTH=5", "CONTENT_TYPE=text/csv", "GATEWAY_INTERFACE=CGI/1.1",
		"HTTP_ACCEPT=a/b, c/d", "HTTP_AUTHORIZATION=Bearer x", "HTTP_COOKIE=a=1; b=2", "HTTP_HOST=fn.example.com:8080",
		"HTTP_X_FORWARDED_FOR=192.0.2.7, 10.0.0.1", "PATH_INFO=/a b/c", "PATH_TRANSLATED=/a b/c", "QUERY_STRING=x=1&y=%20",
		"REMOTE_ADDR=192.0.2.7", "REMOTE_HOST=192.0.2.7", "REMOTE_USER=", "REQUEST_METHOD=POST", "REQUEST_URI=/a%20b/c?x=1&y=%20",
		"SCRIPT_NAME=", "SERVER_NAME=fn.example.com", "SERVER_PORT=8080", "SERVER_PROTOCOL=HTTP/1.1", "SERVER_SOFTWARE=wisp",
		"X_FULL_URL=http://fn.example.com:8080/a%20b/c?x=1&y=%20", "X_MATCHED_ROUTE=/...", "X_RAW_PATH_INFO=/a%20b/c",
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("got -, want +:\n%s", diff)
	}
}

// No request makes a variable with a zero byte, a name twice, or HTTP_PROXY.
func FuzzCGIEnvironment(f *testing.F) {
	f.Add("GET", "/a?b", "host", "X-A", "v")
	f.Add("POST", "/%00", "[::1]:80", "pROXY", "v\x00")
	f.Fuzz(func(t *testing.T, method, target, host, name, value string) {
		r, err := http.NewRequest(method, "http://x/", nil)
		if err != nil {
			return
		}
		if r.URL, err = r.URL.Parse(target); err != nil || strings.ContainsRune(r.URL.Path, 0) {
			return
		}
		for _, s := range []string{host, target, method} {
			if strings.ContainsRune(s, 0) {
				return // net/http lets none in
			}
		}
		r.Host = host
		r.Header.Set(name, value)
		names := map[string]bool{}
		for _, entry := range new(environ).of(r) {
			name, _, _ := strings.Cut(entry, "=")
			if names[name] || strings.ContainsRune(entry, 0) || name == "HTTP_PROXY" {
				t.Errorf("%q of %v", entry, slices.Collect(maps.Keys(names)))
			}
			names[name] = true
		}
	})
}

// However output is cut into writes, its meaning is the same, and what comes of
// it can be sent.
func FuzzCGIHeader(f *testing.F) {
	for _, text := range []string{
		"Content-Type: a/b\r\n\r\nbody", "Status: 404 Not Found\nX: y\n\n", "Location: /x\n\n", "plain", "A: b\n\nc",
		"Status: 99\n\n", "Content-Type:\n\n", "Status: 200\nA\rB: c\n\n", "\r\n", "\n", "Status: 200\n\r\n\r\n", ": x\n\n",
	} {
		f.Add([]byte(text), 3)
	}
	f.Fuzz(func(t *testing.T, output []byte, cut int) {
		cut = max(1, cut)
		var outcomes []string
		for _, size := range []int{len(output) + 1, cut} {
			outcomes = append(outcomes, outcomeOf(t, output, size))
		}
		if outcomes[0] != outcomes[1] {
			t.Errorf("whole %q, in parts %q", outcomes[0], outcomes[1])
		}
	})
}

// outcomeOf says what a headerBlock makes of output that comes in parts.
func outcomeOf(t *testing.T, output []byte, size int) string {
	var h headerBlock
	done, err := false, error(nil)
	rest := output
	for len(rest) > 0 && !done && err == nil {
		n := min(size, len(rest))
		done, err = h.add(rest[:n])
		rest = rest[n:]
	}
	if !done && err == nil {
		err = h.end()
	}
	if err != nil {
		return "error"
	}
	header := http.Header{}
	status, err := h.into(header)
	if err != nil {
		return "error"
	}
	if status < 200 || status > 599 {
		t.Errorf("status %d", status)
	}
	for name, values := range header {
		for _, v := range values {
			if strings.ContainsAny(name+v, "\r\n\x00") {
				t.Errorf("header %q: %q", name, v)
			}
		}
	}
	return fmt.Sprintln(status, header, h.plain, string(h.rest())+string(rest))
}
