package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A notRun is a block of commands in README or handbook that no test runs as it stands. Whatever can be run is marked sh, and is part of a walk.
type notRun struct {
	page string
	text string // all of it
	why  string
}

// notRuns are all of them.
var notRuns = []notRun{
	{
		"README.md",
		"go run ./cmd/firn serve     # serves /nix/store at http://HOST:5000, and prints the lines that clients need\n" +
			"make test                   # runs every test, against real Nix; make unit runs those that need nothing but Go\n",
		"stays at port 5000 of all addresses, and is what runs this; the walk below it serves too",
	},
	{
		"README.md",
		"firn token create --push main ci          # on the server: prints a token, once\n" +
			"(umask 077; echo \"machine HOST login ci password TOKEN\" >>/etc/nix/netrc)  # for root only\n" +
			"nix copy --to http://HOST:5000 PATH       # from any Nix since 2.3\n",
		"has HOST in it, and writes to /etc/nix; docs/pushing.md has it as a walk",
	},
	{
		"README.md",
		"firn cache set main --host cache.example.org\n" +
			"firn serve --listen :80 --plain-http redirect --acme you@example.org\n",
		"takes an authority that reaches this machine by name; e2e has it with pebble, TestACME…",
	},
	{
		"README.md",
		"make unit     # the tests that need Go and nothing else: no root, no other programs\n" +
			"make test     # every test, against real Nix: some 12 minutes on two cores, and a few more the first time\n" +
			"make nix      # installs the programs that the tests run (make test, make check and make ci do that first)\n" +
			"make check    # gofmt, vet, staticcheck, known vulnerabilities, import rules, race detector\n" +
			"make ci       # what make test and make check do, each test once\n" +
			"make fuzz     # every fuzz target for a while: make fuzz FUZZTIME=10m\n" +
			"make bench    # firn against nginx on this machine; writes docs/benchmarks.md\n",
		"is what runs this",
	},
	{
		"docs/tls.md",
		"firn cache set main --host cache.example.org --host cache\n" +
			"firn cache create team --private --host team.example.org\n",
		"is for names that only their owner has; e2e has it with others, TestTwoNames",
	},
	{
		"docs/tls.md",
		"firn serve --listen :80 --plain-http redirect --acme you@example.org\n",
		"takes an authority that reaches this machine by name; e2e has it with pebble, TestACME…",
	},
	{
		"docs/container.md",
		"skopeo copy --all oci-archive:dist/firn-oci.tar docker://registry.example.org/firn\n",
		"takes a registry",
	},
	{
		"docs/container.md",
		"docker run --publish 5000:5000 --volume /nix:/nix:ro --volume firn:/var/lib/firn localhost/firn\n",
		"takes a host with a Nix daemon in a container's reach; e2e has the same user and the same store under systemd, TestService",
	},
	{
		"docs/nixos.md",
		"sudo firn-admin token create --push main ci\n",
		"takes NixOS; nixos/ has firn-admin evaluated, and compared",
	},
	{
		"docs/nixos.md",
		"sudo firn-admin import --cache team https://attic.example.org/team /nix/store/…-hello\n",
		"takes NixOS, and somebody's cache; docs/moving.md has firn import as a walk",
	},
}

// A block is a fenced or indented piece of a page.
type block struct {
	page, language, text string
	line                 int
}

// blocksOf returns the fenced blocks of a page. Indented ones are of language "indented".
func blocksOf(t *testing.T, page string) (blocks []block) {
	t.Helper()
	text, err := os.ReadFile("../../" + page)
	if err != nil {
		t.Fatal(err)
	}
	last := func() *block { return &blocks[len(blocks)-1] }
	fenced, indented := false, false
	before := ""
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		opens := strings.HasPrefix(line, "```")
		switch {
		case opens && !fenced:
			blocks = append(blocks, block{page, strings.TrimSpace(strings.TrimPrefix(line, "```")), "", number})
			fenced = true
		case opens:
			fenced = false
		case fenced:
			last().text += line
		case strings.HasPrefix(line, "    ") && (indented || before == "\n"):
			if !indented {
				blocks = append(blocks, block{page, "indented", "", number})
			}
			last().text += strings.TrimPrefix(line, "    ")
			indented = true
			continue
		}
		indented = false
		before = line
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

// command matches a line of what looks like something to be typed.
var command = regexp.MustCompile(`(?m)^(\$ |# )?(sudo |\./)?(firn|nix|nix-store|curl|systemctl|apt|apt-get|docker|podman|make|go) `)

// Every command in README and handbook is run by a test, but for the blocks that notRuns gives a reason for.
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
	used := make([]bool, len(notRuns))
	for _, page := range pages(t) {
		for _, b := range blocksOf(t, page) {
			switch {
			case b.language == "sh":
				if !strings.Contains(tests, page+`"`) {
					t.Errorf("%s:%d: no test names this page, and it has commands marked sh: give it a walk in readme_test.go", page, b.line)
				}
			case b.language == "console" || command.MatchString(b.text):
				i := slices.IndexFunc(notRuns, func(n notRun) bool { return n.page == page && n.text == b.text })
				if i < 0 {
					t.Errorf("%s:%d: nothing runs\n%smark it sh, in a walk of the page, or give a reason in notRuns", page, b.line, b.text)
					continue
				}
				used[i] = true
			}
		}
	}
	for i, n := range notRuns {
		if !used[i] {
			t.Errorf("notRuns has a reason for this, and %s does not have it:\n%s", n.page, n.text)
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
