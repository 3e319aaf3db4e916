package kubelet

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/gorilla/mux"

	"github.com/wisp-serving/wisp/provider/podlog"
)

// logs answers `kubectl logs`. virtual-kubelet's own handler can't tell
// --tail=0 from no --tail.
func (s *Server) logs(w http.ResponseWriter, r *http.Request) {
	options, err := parseOptions(r.URL.Query(), time.Now())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	vars := mux.Vars(r)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	out := &flusher{ResponseWriter: w, always: options.Follow}
	if options.Follow {
		out.flush() // a follower wants to know that there is a log
	}
	err = s.cfg.Node.Logs(r.Context(), vars["namespace"], vars["pod"], vars["container"], out, options)
	told := new(Error)
	switch {
	case err == nil:
	case out.begun:
		s.cfg.Log.Infow("a log's reader was cut off", "pod", vars["pod"], "error", err)
	case errors.As(err, &told):
		http.Error(w, told.Text, told.Status)
	default:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// flusher hands each line on at once if always.
type flusher struct {
	http.ResponseWriter
	always, begun bool
}

func (f *flusher) Write(b []byte) (int, error) {
	f.begun = true
	n, err := f.ResponseWriter.Write(b)
	if f.always {
		f.flush()
	}
	return n, err
}

func (f *flusher) flush() { _ = http.NewResponseController(f.ResponseWriter).Flush() }

// parseOptions reads the query of corev1.PodLogOptions.
func parseOptions(q url.Values, now time.Time) (podlog.Options, error) {
	p := parser{query: q}
	o := podlog.Options{
		Follow:     p.flag("follow"),
		Previous:   p.flag("previous"),
		Timestamps: p.flag("timestamps"),
		Tail:       p.number("tailLines", -1, 0),
		LimitBytes: p.number("limitBytes", 0, 1),
	}
	if seconds := p.number("sinceSeconds", 0, 1); seconds > 0 {
		o.Since = now.Add(-time.Duration(seconds) * time.Second)
	}
	if text := q.Get("sinceTime"); text != "" {
		at, err := time.Parse(time.RFC3339, text)
		if err != nil || !o.Since.IsZero() {
			p.refuse("sinceTime", text, "a time as in RFC 3339, and alone")
		}
		o.Since = at
	}
	return o, errors.Join(p.errs...)
}

type parser struct {
	query url.Values
	errs  []error
}

func (p *parser) refuse(key, value, rule string) {
	p.errs = append(p.errs, fmt.Errorf("%s = %q, must be %s", key, value, rule))
}

func (p *parser) flag(key string) bool {
	text := p.query.Get(key)
	if text == "" {
		return false
	}
	is, err := strconv.ParseBool(text)
	if err != nil {
		p.refuse(key, text, "true or false")
	}
	return is
}

func (p *parser) number(key string, none, least int64) int64 {
	text := p.query.Get(key)
	if text == "" {
		return none
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < least {
		p.refuse(key, text, fmt.Sprintf("a number of at least %d", least))
	}
	return n
}
