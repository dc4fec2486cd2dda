package config

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The handbook and the README have the same table of the settings, and it is the one that the code has.
func TestDocumentation(t *testing.T) {
	const begin, end = "<!-- settings -->\n", "<!-- /settings -->\n"
	for _, path := range []string{"../../README.md", "../../docs/configuration.md"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, ok := strings.Cut(string(text), begin)
		got, _, closed := strings.Cut(rest, end)
		if !ok || !closed {
			t.Errorf("%s has no table between %q and %q", path, begin, end)
		}
		if diff := cmp.Diff(table(), got); diff != "" {
			t.Errorf("%s is not in step with Config (-want +got):\n%s\nwanted is\n%s", path, diff, table())
		}
	}
}

// table returns the settings as a table in Markdown.
func table() string {
	var b strings.Builder
	b.WriteString("| in the file | flag | variable | default | |\n|---|---|---|---|---|\n")
	for _, s := range Settings() {
		fallback := "`" + s.Default + "`"
		if s.Default == "" {
			fallback = ""
		}
		fmt.Fprintf(&b, "| `%s` | `%s` | `%s` | %s | %s |\n", s.Key, s.Flag(), s.Variable(), fallback, s.Help)
	}
	return b.String()
}
