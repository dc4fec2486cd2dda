package cache

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestCheckName(t *testing.T) {
	for _, name := range []string{"main", "a", "0", "a-b_c.d", strings.Repeat("a", 64), "narinfo", "ls", "nar-cache", "logs", "v2"} {
		if err := CheckName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{
		"", ".", "..", ".a", "-a", "_a", "A", "a/b", "a b", "a\n", "ä", "a\x00", "a%20", strings.Repeat("a", 65),
		"nar", "log", "realisations", "build-trace-v2", "debuginfo", "version", "health", "metrics", "robots.txt", "nix-cache-info", "favicon.ico", "api", "push", "pins", "_",
		"x.narinfo", "x.ls",
	} {
		if err := CheckName(name); err == nil {
			t.Errorf("%q is taken for a name of a cache", name)
		}
	}
}

// docs/http.md has the list of reserved names.
func TestReservedNames(t *testing.T) {
	doc, err := os.ReadFile("../../docs/http.md")
	if err != nil {
		t.Fatal(err)
	}
	list := regexp.MustCompile("(?s)or that is one of these:\n(.*?)\\.\n").FindSubmatch(doc)
	if list == nil {
		t.Fatal("docs/http.md has no list of reserved names")
	}
	names := strings.Split(strings.ReplaceAll(string(list[1]), "`", ""), ", ")
	if !slices.Equal(names, reservedNames) {
		t.Errorf("docs/http.md has %q, and the code %q", names, reservedNames)
	}
}
