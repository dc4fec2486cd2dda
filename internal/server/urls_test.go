package server

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"firn/internal/cache"
)

// urlRows are the rows of the tables of URLs in docs/http.md: the URLs, and the route of each.
var (
	urlRow   = regexp.MustCompile("(?m)^\\| (`/[^|]*) \\| ([a-z.-]+) \\|")
	urlInRow = regexp.MustCompile("`(/[^`]*)`")
)

// TestURLs: docs/http.md and the code have the same table of URLs, and no cache can have a name that the
// table needs.
func TestURLs(t *testing.T) {
	doc, err := os.ReadFile("../../docs/http.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := strings.NewReplacer("FILEHASH", helloNARHash, "NARHASH", helloNARHash, "HASH", helloHash, "TAG", "0123456789abcdef",
		"NAME.drv", strings.Repeat("0", 32)+"-x.drv", "HEX", strings.Repeat("0", 64), "OUTPUT", "out", "BUILDID", strings.Repeat("0", 40), "TOKEN", "x")
	documented := map[urlForm]bool{}
	for _, row := range urlRow.FindAllStringSubmatch(string(doc), -1) {
		for _, url := range urlInRow.FindAllStringSubmatch(row[1], -1) {
			path, query, _ := strings.Cut(examples.Replace(url[1]), "?")
			found := false
			for _, f := range urlForms {
				if _, ok := f.match(path[1:]); ok {
					documented[f], found = true, true
					break
				}
			}
			target := parsePath(path)
			if !found || target.route.String() != row[2] {
				t.Errorf("docs/http.md says that %s is %s, and the code that it is %s", url[1], row[2], target.route)
			}
			if _, tag, ok := parseNARName(target.name, query); target.isNAR() && !strings.Contains(url[1], "FILEHASH") && (!ok || strings.Contains(url[1], "TAG") != (tag != "")) {
				t.Errorf("%s is no name of a NAR", url[1])
			}
		}
	}
	if len(documented) < 15 {
		t.Fatalf("docs/http.md has %d forms of URLs", len(documented))
	}

	for _, f := range urlForms {
		if !documented[f] {
			t.Errorf("docs/http.md does not have /%s…%s", f.prefix, f.suffix)
		}
		if name, _, _ := strings.Cut(f.prefix, "/"); name != "" && cache.CheckName(name) == nil {
			t.Errorf("a cache can be named %s, which the server answers", name)
		}
		if f.prefix == "" && f.suffix != "" && cache.CheckName("x"+f.suffix) == nil {
			t.Errorf("a cache can be named x%s, which the server answers", f.suffix)
		}
	}
	for _, path := range []string{"/_/x", "/_", "/team/_/x"} {
		if got := parsePath(path).route; got != routeOther {
			t.Errorf("%s is %s", path, got)
		}
	}
}
