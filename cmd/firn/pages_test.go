package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// notRun are the blocks of commands in README and handbook that no test runs as they stand, by page and first line, each with the reason.
// Whatever can be run is marked sh, and is part of a walk.
var notRun = map[string]string{
	"README.md: go run ./cmd/firn serve":                         "stays at port 5000 of all addresses; the walk below it serves too",
	"README.md: firn token create --push main ci":                "has HOST in it, and writes to /etc/nix; docs/pushing.md has it as a walk",
	"README.md: firn cache set main --host cache.example.org":    "takes an authority that reaches this machine by name; e2e has it with pebble, TestACME…",
	"README.md: make test":                                       "is what runs this",
	"docs/tls.md: firn cache set main --host cache.example.org":  "is for names that only their owner has; e2e has it with others, TestTwoNames",
	"docs/tls.md: firn serve --listen :80 --plain-http redirect": "takes an authority that reaches this machine by name; e2e has it with pebble, TestACME…",
}

// elsewhere are the programs that take a machine of another kind than the tests have, by the first words of a block. What they do there is tested in other ways.
var elsewhere = map[string]string{
	"systemctl":       "takes a machine with systemd as its init",
	"apt-get":         "changes the machine that it runs on",
	"podman":          "takes a container runtime",
	"docker":          "takes a container runtime",
	"sudo firn-admin": "takes NixOS",
}

// A block is a fenced or indented piece of a page.
type block struct {
	page, language, first string
	line                  int
}

// blocksOf returns the fenced blocks of a page. Indented ones are of language "indented".
func blocksOf(t *testing.T, page string) (blocks []block) {
	t.Helper()
	text, err := os.ReadFile("../../" + page)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	inside := false
	for i, line := range lines {
		switch {
		case strings.HasPrefix(line, "```"):
			if inside = !inside; inside {
				blocks = append(blocks, block{page, strings.TrimPrefix(line, "```"), lines[i+1], i + 1})
			}
		case !inside && strings.HasPrefix(line, "    ") && i > 0 && lines[i-1] == "":
			blocks = append(blocks, block{page, "indented", strings.TrimSpace(line), i + 1})
		}
	}
	return blocks
}

// pages returns README and the pages of the handbook.
func pages(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	all := []string{"README.md"}
	for _, path := range found {
		all = append(all, "docs/"+filepath.Base(path))
	}
	return all
}

// command matches the first line of what looks like something to be typed.
var command = regexp.MustCompile(`^(\$ |# )?(sudo |\./)?(firn|nix|nix-store|curl|systemctl|apt|apt-get|docker|podman|make|go) `)

// Every command in README and handbook is run by a test, but for those that notRun and elsewhere give a reason for.
func TestEveryCommandIsRun(t *testing.T) {
	tests := ""
	for _, pattern := range []string{"*_test.go", "../../e2e/*_test.go", "../../packaging/*_test.go", "../../nixos/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			tests += string(text)
		}
	}
	used := map[string]bool{}
	for _, page := range pages(t) {
		for _, b := range blocksOf(t, page) {
			switch {
			case b.language == "sh":
				if !strings.Contains(tests, page+`"`) {
					t.Errorf("%s:%d: no test names this page, and it has commands marked sh: give it a walk in readme_test.go", page, b.line)
				}
			case b.language == "console" || command.MatchString(b.first):
				key := ""
				for k := range notRun {
					if strings.HasPrefix(page+": "+b.first, k) {
						key = k
					}
				}
				for program := range elsewhere {
					if strings.HasPrefix(b.first, program+" ") {
						key = program
					}
				}
				if key == "" {
					t.Errorf("%s:%d: nothing runs %q: mark it sh, in a walk of the page, or give a reason in notRun", page, b.line, b.first)
				}
				used[key] = true
			}
		}
	}
	for key := range notRun {
		if !used[key] {
			t.Errorf("notRun has a reason for %q, and no page has that", key)
		}
	}
}

// Every page can be found from README or the index of the handbook, or from a page that is in one of them, and no link between pages leads nowhere.
func TestIndex(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]*)(#[^)]*)?\)`)
	anchor := regexp.MustCompile(`[^a-z0-9 _-]`)
	anchors := func(page string) (list []string) {
		text, err := os.ReadFile(page)
		if err != nil {
			return nil
		}
		for line := range strings.Lines(string(text)) {
			if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
				list = append(list, "#"+strings.ReplaceAll(anchor.ReplaceAllString(strings.ToLower(strings.TrimSpace(title)), ""), " ", "-"))
			}
		}
		return list
	}
	linked := map[string][]string{}
	for _, page := range append(pages(t), "CHANGELOG.md") {
		text, err := os.ReadFile("../../" + page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			target := filepath.Join(filepath.Dir("../../"+page), m[1])
			if m[1] == "" {
				target = "../../" + page
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: the link to %s leads nowhere", page, m[1])
			} else if m[2] != "" && !slices.Contains(anchors(target), m[2]) {
				t.Errorf("%s: %s has no part %s", page, m[1], m[2])
			}
			linked[page] = append(linked[page], m[1])
		}
	}
	const index = "docs/README.md"
	if !slices.Contains(linked["README.md"], index) {
		t.Errorf("README.md does not lead to %s", index)
	}
	found := map[string]bool{}
	for from, links := range linked {
		for _, l := range links {
			if to := filepath.Join(filepath.Dir(from), l); to != from {
				found[to] = true
			}
		}
	}
	for _, page := range pages(t) {
		if page != "README.md" && !found[page] {
			t.Errorf("nothing leads to %s: give it a line in %s", page, index)
		}
	}
}
