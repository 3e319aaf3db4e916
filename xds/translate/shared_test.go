package translate

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"
)

func TestParsePlaces(t *testing.T) {
	tests := map[string][]Place{
		"POST /sort":                     {{"POST", "/sort", false}},
		"/docs/*":                        {{"", "/docs/", true}},
		"/*":                             {{"", "/", true}},
		"/":                              {{"", "/", false}},
		" GET  /a , PUT /a/*\n\n/b/ ,\n": {{"GET", "/a", false}, {"PUT", "/a/", true}, {"", "/b/", false}},
		"/a-b_c.d~e;f=1":                 {{"", "/a-b_c.d~e;f=1", false}},
	}
	for text, want := range tests {
		got, err := parsePlaces(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
	wrong := map[string]string{
		"":                           "names no route",
		" , \n":                      "names no route",
		"POST":                       `has "POST", must be a path that begins with /`,
		"post /a":                    `has "post /a", must be METHOD /path or /path`,
		"GET POST /a":                "must be METHOD /path or /path",
		"/a*":                        "must be /path/* to mean all below /path",
		"/a/*/b":                     "must be a path",
		"/a?b":                       "must be a path",
		"/a#b":                       "must be a path",
		"/a%2f":                      "must be a path",
		`/a\b`:                       "must be a path",
		"/\u00e4":                    "must be a path",
		"/a//b":                      "must be the path /a/b, which is the same",
		"/a/../b/*":                  "must be the path /b/, which is the same",
		strings.Repeat("/a,", 33):    "has 33 routes, must have at most 32",
		"GET /ok, http://other/path": "must be a path",
	}
	for text, want := range wrong {
		if got, err := parsePlaces(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v; want an error with %q", text, got, err, want)
		}
	}
}

func FuzzParsePlaces(f *testing.F) {
	f.Add("POST /sort, /a/*\n/")
	f.Fuzz(func(t *testing.T, text string) {
		places, err := parsePlaces(text)
		if err != nil {
			return
		}
		for _, p := range places {
			again, err := parsePlaces(p.String())
			if err != nil || len(again) != 1 || again[0] != p {
				t.Errorf("%q: %+v becomes %+v, %v", text, p, again, err)
			}
		}
	})
}

func TestShare(t *testing.T) {
	claim := func(name string, places ...string) Claim {
		c := Claim{
			Key:     types.NamespacedName{Namespace: "ns", Name: name},
			Ingress: Ingress{External: []VirtualHost{{Routes: []Route{{Path: "/", Hash: "h"}, {Path: "/part"}, {Path: "/", RewriteHost: name}}}}},
		}
		for _, text := range places {
			p, err := parsePlace(text)
			if err != nil {
				t.Fatal(err)
			}
			c.Ingress.Shared = append(c.Ingress.Shared, p)
		}
		return c
	}
	tests := []struct {
		name    string
		claims  []Claim // oldest first
		routes  []string
		refused map[string]string
	}{{
		name:   "the more exact comes first",
		claims: []Claim{claim("a", "/x/*", "/*", "/x/y", "POST /x/y")},
		routes: []string{"POST /x/y a", "/x/y a", "/x/* a", "/* a"},
	}, {
		name:   "one path, two methods",
		claims: []Claim{claim("a", "GET /x"), claim("b", "POST /x")},
		routes: []string{"GET /x a", "POST /x b"},
	}, {
		name:    "the older one keeps its place, and the other has none of its own",
		claims:  []Claim{claim("a", "/x"), claim("b", "/y", "GET /x"), claim("c", "/y")},
		routes:  []string{"/x a", "/y c"},
		refused: map[string]string{"b": "RouteConflict: route GET /x overlaps with /x of the older ingress ns/a"},
	}, {
		name:    "nothing within an older one's part",
		claims:  []Claim{claim("a", "/x/*"), claim("b", "/x/y")},
		routes:  []string{"/x/* a"},
		refused: map[string]string{"b": "RouteConflict: route /x/y overlaps with /x/* of the older ingress ns/a"},
	}, {
		name:    "nothing around an older one's place",
		claims:  []Claim{claim("a", "POST /x/y"), claim("b", "/x/*"), claim("c", "GET /x/*")},
		routes:  []string{"POST /x/y a", "GET /x/* c"},
		refused: map[string]string{"b": "RouteConflict: route /x/* overlaps with POST /x/y of the older ingress ns/a"},
	}, {
		name:   "a path that begins alike is another",
		claims: []Claim{claim("a", "/x/*"), claim("b", "/x"), claim("c", "/xy/*")},
		routes: []string{"/x b", "/xy/* c", "/x/* a"},
	}, {
		name:   "nobody asks",
		claims: []Claim{claim("a")},
	}}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			routes, refusals := Share(test.claims)
			var got []string
			for _, r := range routes {
				got = append(got, Place{r.Method, r.Path, !r.Exact}.String()+" "+r.RewriteHost)
			}
			if diff := cmp.Diff(test.routes, got); diff != "" {
				t.Errorf("routes (-want +got):\n%s", diff)
			}
			refused := map[string]string(nil)
			for key, r := range refusals {
				if refused == nil {
					refused = map[string]string{}
				}
				refused[key.Name] = r.Error()
			}
			if diff := cmp.Diff(test.refused, refused); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
		})
	}
}
