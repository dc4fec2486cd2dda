package config

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// An example says nothing but what was set; without its comment signs it says the defaults.
func TestExample(t *testing.T) {
	environment := func(name string) (string, bool) {
		value, ok := map[string]string{"HOME": "/home/me", "FIRN_PRIORITY": "50", "FIRN_KEY": "/a,/b"}[name]
		return value, ok
	}
	want, origins, err := Load("", environment)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := want.Example(&b, origins); err != nil {
		t.Fatal(err)
	}
	for _, s := range Settings() {
		line := regexp.MustCompile(`(?m)^#?` + s.Key + ` = `)
		if n := len(line.FindAllString(b.String(), -1)); n != 1 {
			t.Errorf("the example has %s %d times:\n%s", s.Key, n, &b)
		}
	}
	for line := range strings.Lines(b.String()) {
		if line = strings.TrimSuffix(line, "\n"); len(line) > exampleWidth && strings.HasPrefix(line, "# ") {
			t.Errorf("%d characters, want %d: %s", len(line), exampleWidth, line)
		}
	}

	home := func(name string) (string, bool) { return map[string]string{"HOME": "/home/me"}[name], name == "HOME" }
	load := func(text string) (*Config, Origins) {
		t.Helper()
		path := filepath.Join(t.TempDir(), "firn.toml")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		c, origins, err := Load(path, home)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		maps.DeleteFunc(origins, func(_, place string) bool { return place == fromDefault })
		return c, origins
	}
	shown := func(c *Config) string { // an empty list and none are the same
		t.Helper()
		var b strings.Builder
		if err := c.Show(&b, Origins{}); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	got, set := load(b.String())
	if diff := cmp.Diff(shown(want), shown(got)); diff != "" || len(set) != 2 {
		t.Errorf("the example sets %v and comes to (-want +got):\n%s", set, diff)
	}
	got, set = load(regexp.MustCompile(`(?m)^#(\S+ = )`).ReplaceAllString(b.String(), "$1"))
	if diff := cmp.Diff(shown(want), shown(got)); diff != "" || len(set) != len(Settings()) {
		t.Errorf("without its comment signs the example sets %d of %d settings and comes to (-want +got):\n%s", len(set), len(Settings()), diff)
	}
}
