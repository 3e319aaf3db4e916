package server

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/wisp-serving/wisp/xds/snapshot"
)

// tracker records, from the requests and responses on each stream, which version
// of each resource each Envoy holds. Its methods are safe for concurrent use.
type tracker struct {
	// changed is called without the lock after whatever a waiter may wait for.
	changed func()
	// rejected is called without the lock for each NACK.
	rejected func(Rejection)

	mu      sync.Mutex
	streams map[int64]*stream
	// current are the published versions of whole types.
	current func(typeURL string) string
}

// stream is one Envoy's ADS stream.
type stream struct {
	node string
	// host is the Envoy's address as its connection has it, or empty where it is on
	// this machine.
	host string
	// heard is when it was opened or last sent something.
	heard time.Time
	// silent streams have let a deadline pass and aren't waited for.
	silent bool
	types  map[string]*typeState
}

// typeState is what a stream holds of one type.
type typeState struct {
	// sent are the responses that wait for an answer, by nonce.
	sent map[string]response
	// acked maps names to versions.
	acked map[string]string
	// rejected is the last response, where Envoy refused it for the reason in
	// rejection.
	rejected  response
	rejection string
}

type response struct {
	versions map[string]string
	removed  []string
	// info is the version of all resources of the type together.
	info string
}

// Rejection is a response that an Envoy did not accept. It keeps what it had.
type Rejection struct {
	// Node is the Envoy's node id.
	Node string
	// TypeURL and Resources are what was sent.
	TypeURL   string
	Resources []string
	// Message is Envoy's own.
	Message string
	// info is the version of all resources of the type that it was sent from.
	info string
}

func newTracker(changed func(), rejected func(Rejection)) *tracker {
	return &tracker{changed: changed, rejected: rejected, streams: map[int64]*stream{}, current: func(string) string { return "" }}
}

func (t *tracker) opened(id int64, host string) {
	t.mu.Lock()
	t.streams[id] = &stream{host: host, heard: time.Now(), types: map[string]*typeState{}}
	t.mu.Unlock()
	t.changed()
}

func (t *tracker) closed(id int64) {
	t.mu.Lock()
	delete(t.streams, id)
	t.mu.Unlock()
	t.changed()
}

// published notes the versions of whole types that are published from now on.
func (t *tracker) published(current func(typeURL string) string) {
	t.mu.Lock()
	t.current = current
	t.mu.Unlock()
	t.changed()
}

// requested records a request, which may subscribe, acknowledge or reject. Of a
// rejected response it returns the resources and the version of them all.
func (t *tracker) requested(id int64, req *discoveryv3.DeltaDiscoveryRequest) (names []string, info string) {
	t.mu.Lock()
	rejection := t.record(id, req)
	t.mu.Unlock()
	if rejection != nil {
		t.rejected(*rejection)
		names, info = rejection.Resources, rejection.info
	}
	t.changed()
	return names, info
}

func (t *tracker) record(id int64, req *discoveryv3.DeltaDiscoveryRequest) *Rejection {
	s := t.streams[id]
	if s == nil {
		return nil
	}
	s.heard, s.silent = time.Now(), false
	s.node = cmp.Or(req.GetNode().GetId(), s.node)
	state := s.typeState(req.GetTypeUrl())
	// A reconnecting Envoy says what it already holds.
	maps.Copy(state.acked, req.GetInitialResourceVersions())
	for _, name := range req.GetResourceNamesUnsubscribe() {
		delete(state.acked, name)
		for _, r := range state.sent {
			delete(r.versions, name) // its answer says nothing about name any more
		}
	}
	sent, ok := state.sent[req.GetResponseNonce()]
	if !ok {
		return nil
	}
	delete(state.sent, req.GetResponseNonce())
	for _, name := range sent.removed { // Envoy removes even where it refuses the rest
		delete(state.acked, name)
	}
	if req.GetErrorDetail() != nil {
		state.rejected, state.rejection = sent, req.GetErrorDetail().GetMessage()
		return &Rejection{
			Node:      s.node,
			TypeURL:   req.GetTypeUrl(),
			Resources: slices.Sorted(maps.Keys(sent.versions)),
			Message:   state.rejection,
			info:      sent.info,
		}
	}
	state.rejected, state.rejection = response{}, ""
	maps.Copy(state.acked, sent.versions)
	return nil
}

// responded records a response that is about to be sent.
func (t *tracker) responded(id int64, resp *discoveryv3.DeltaDiscoveryResponse) {
	r := response{versions: make(map[string]string, len(resp.GetResources())), removed: resp.GetRemovedResources(), info: resp.GetSystemVersionInfo()}
	for _, res := range resp.GetResources() {
		r.versions[res.GetName()] = res.GetVersion()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.streams[id]; s != nil {
		s.typeState(resp.GetTypeUrl()).sent[resp.GetNonce()] = r
	}
}

func (s *stream) typeState(typeURL string) *typeState {
	state, ok := s.types[typeURL]
	if !ok {
		state = &typeState{sent: map[string]response{}, acked: map[string]string{}}
		s.types[typeURL] = state
	}
	return state
}

// holds reports whether the stream has acknowledged want; an empty version
// stands for any, snapshot.Absent for none.
func (s *stream) holds(typeURL string, want map[string]string) bool {
	for name, version := range want {
		got, ok := s.acked(typeURL, name)
		if version == snapshot.Absent {
			if ok {
				return false
			}
			continue
		}
		if !ok || version != "" && got != version {
			return false
		}
	}
	return true
}

func (s *stream) acked(typeURL, name string) (string, bool) {
	state, ok := s.types[typeURL]
	if !ok {
		return "", false
	}
	version, ok := state.acked[name]
	return version, ok
}

// refused returns Envoy's text where it has refused one of want. A refusal of
// other versions says nothing about these; nor does one of these from among
// others than those of now, since then they are sent again.
func (s *stream) refused(typeURL string, want map[string]string, now string) string {
	state, ok := s.types[typeURL]
	if !ok || state.rejected.info != now {
		return ""
	}
	for name, version := range state.rejected.versions {
		if w, ok := want[name]; ok && (w == "" || w == version) {
			return state.rejection
		}
	}
	return ""
}

// Envoys says how the streams stand towards some wanted resources.
type Envoys struct {
	// Acked, Rejected, Pending and Silent count the streams that hold what is
	// wanted, that have refused it, that are waited for and that are not.
	Acked, Rejected, Pending, Silent int
	// Rejection is the text of one of those that refused it.
	Rejection string
}

// Connected counts the streams that answer.
func (e Envoys) Connected() int { return e.Acked + e.Rejected + e.Pending }

// envoys compares all streams with want.
func (t *tracker) envoys(typeURL string, want map[string]string) Envoys {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out Envoys
	for _, s := range t.streams {
		text := s.refused(typeURL, want, t.current(typeURL))
		switch {
		case s.silent:
			out.Silent++
		case s.holds(typeURL, want):
			out.Acked++
		case text != "":
			out.Rejected++
			out.Rejection = text
		default:
			out.Pending++
		}
	}
	return out
}

// hosts returns the addresses of the streams that answer, each once, sorted.
func (t *tracker) hosts() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []string
	for _, s := range t.streams {
		if !s.silent {
			out = append(out, s.host)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// silence makes the streams silent that lack want and were last heard before the
// given time, and returns their nodes. One that has refused want has answered.
func (t *tracker) silence(typeURL string, want map[string]string, before time.Time) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var nodes []string
	for _, s := range t.streams {
		if !s.silent && s.heard.Before(before) && !s.holds(typeURL, want) && s.refused(typeURL, want, t.current(typeURL)) == "" {
			s.silent = true
			nodes = append(nodes, s.node)
		}
	}
	return nodes
}
