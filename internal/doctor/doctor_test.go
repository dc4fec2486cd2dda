package doctor

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// A fault is something wrong with a cache, or nothing, and what is to be found: of each check whose verdict is not ok,
// the verdict and a part of what was seen.
type fault struct {
	breakIt func(*fixture)
	want    map[string]string
}

// findAll breaks a new cache with each fault. All other checks have to find it good, or else a fault would be told for another one.
func findAll(t *testing.T, faults map[string]fault) {
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			fault.breakIt(f)
			want := maps.Clone(fault.want)
			if want == nil {
				want = map[string]string{}
			}
			if _, set := want["certificate"]; !set && f.server == nil {
				want["certificate"] = "skip there is none over http"
			}
			wantFindings(t, f.examine(), want)
		})
	}
}

// skips adds to what is wanted that checks are skipped.
func skips(want map[string]string, names ...string) map[string]string {
	want = maps.Clone(want)
	for _, name := range names {
		want[name] = "skip"
	}
	return want
}

// after are the names of the checks after one, but for some.
func after(name string, but ...string) (names []string) {
	at := slices.IndexFunc(checks, func(c check) bool { return c.name == name })
	for _, c := range checks[at+1:] {
		if !slices.Contains(but, c.name) && c.wanted == nil {
			names = append(names, c.name)
		}
	}
	return names
}

// What was examined without a store path, or without what was asked for, says nothing of whether
// clients will be fine.
func TestComplete(t *testing.T) {
	for _, test := range []struct {
		check   string
		verdict Verdict
		maxSize int64
		want    bool
	}{
		{"path", Skip, 1, false}, {"nar", Skip, 1, false}, {"push", Skip, 1, false},
		{"nar", Skip, -1, true}, // as was asked for
		{"path", OK, 1, true}, {"path", Fail, 1, true}, {"certificate", Skip, 1, true}, {"substituters", Skip, 1, true},
	} {
		findings := []Finding{{Check: "cache-info", Verdict: OK}, {Check: test.check, Verdict: test.verdict}, {Check: "speed", Verdict: OK}}
		if got := Complete(findings, Options{MaxSize: test.maxSize}); got != test.want {
			t.Errorf("%+v: %t", test, got)
		}
	}
}

func TestURLs(t *testing.T) {
	for text, want := range map[string]string{
		"http://host":                    "",
		"https://me:secret@host/a/b/":    "",
		"http://[::1]:5000":              "",
		"cache.example.org":              `"cache.example.org" has neither in front`,
		"127.0.0.1:5000":                 "this has neither in front",
		"ssh://me@host":                  "nix store info --store ssh://me@host",
		"ssh-ng://me:secret@host":        "ssh-ng://me:xxxxx@host",
		"s3://bucket":                    "this begins with s3",
		"https://host?priority=10":       "question mark",
		"https://host#x":                 "want http://HOST/PATH",
		"http://":                        "want http://HOST/PATH",
		"http://me:secret@host:what/ho ": "invalid port",
	} {
		_, err := ParseURL(text)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error shows a password: %v", text, err)
		}
	}
}
