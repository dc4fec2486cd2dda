// Package archtest keeps the shape of the program: a test pins which package imports which.
package archtest

import (
	"errors"
	"go/build"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// module is the path of the module, which all packages of the table are in.
const module = "firn"

// A rule is what a package may import.
type rule struct {
	// rooms are the packages of this module that it may import; "*" stands for all but infrastructure.
	rooms []string
	// libraries says whether it may import other modules.
	libraries bool
}

// rules has every package of the module. A new one gets its row together with its first file:
// that is the moment to ask whether the code belongs into another package.
//
//	cmd -> everything
//	front ends (server, sshd, session) -> the core (cache) -> nix/nar -> nix
//	sources (localstore, depot) -> the core's types, nix/...; never each other, never a front end
var rules = map[string]rule{
	"nix":             {},
	"nix/nar":         {rooms: []string{"nix"}},
	"nix/protocol":    {rooms: []string{"nix"}},
	"nix/nar/nartest": {rooms: []string{"nix/nar"}},

	"internal/cache":                     {rooms: []string{"internal/memo", "nix", "nix/nar"}, libraries: true},
	"internal/cache/cachetest":           {rooms: []string{"internal/cache", "internal/memo", "nix", "nix/nar"}, libraries: true},
	"internal/localstore":                {rooms: []string{"internal/cache", "internal/memo", "internal/sqlitex", "nix", "nix/nar", "nix/protocol"}, libraries: true},
	"internal/sqlitex":                   {libraries: true},
	"internal/zstdcache":                 {rooms: []string{"internal/cache", "internal/fairlimit", "nix", "nix/nar"}, libraries: true},
	"internal/decompress":                {rooms: []string{"internal/cache", "internal/fairlimit", "nix"}, libraries: true},
	"internal/depot":                     {rooms: []string{"internal/cache", "internal/depot/blob", "internal/depot/index", "internal/catalog", "internal/chunk", "internal/memo", "internal/fairlimit", "nix", "nix/nar"}, libraries: true},
	"internal/depot/blob":                {},
	"internal/depot/blob/blobtest":       {rooms: []string{"internal/depot/blob"}},
	"internal/depot/blob/dir":            {rooms: []string{"internal/depot/blob"}, libraries: true},
	"internal/catalog":                   {rooms: []string{"internal/memo", "nix"}},
	"internal/catalog/catalogtest":       {rooms: []string{"internal/catalog", "internal/memo", "nix"}, libraries: true},
	"internal/catalog/sqlite/sqlitetest": {rooms: []string{"internal/catalog/sqlite"}},
	"internal/depot/index":               {rooms: []string{"internal/catalog", "nix"}},
	"internal/depot/index/indextest":     {rooms: []string{"internal/catalog", "internal/catalog/catalogtest", "internal/depot/index", "internal/memo", "nix"}, libraries: true},
	"internal/catalog/sqlite":            {rooms: []string{"internal/catalog", "internal/depot/index", "internal/memo", "internal/sqlitex", "nix"}, libraries: true},
	"internal/audit":                     {rooms: []string{"internal/fairlimit"}, libraries: true},
	"internal/server":                    {rooms: []string{"internal/audit", "internal/cache", "internal/decompress", "internal/logs", "internal/memo", "internal/fairlimit", "internal/server/connlimit", "internal/server/fastpath", "nix", "nix/nar"}, libraries: true},
	"internal/server/connlimit":          {rooms: []string{"internal/fairlimit"}, libraries: true},
	"internal/server/fastpath":           {},
	"internal/session":                   {rooms: []string{"internal/audit", "internal/cache", "nix", "nix/nar", "nix/protocol"}, libraries: true},
	"internal/testing/conversation":      {rooms: []string{"internal/cache", "internal/cache/cachetest", "internal/session", "nix"}},
	"internal/sshd":                      {rooms: []string{"internal/audit", "internal/cache", "internal/fairlimit"}, libraries: true},
	"internal/fairlimit":                 {},
	"internal/memo":                      {},
	"internal/remote":                    {rooms: []string{"internal/cache"}},
	"internal/transfer":                  {rooms: []string{"internal/cache", "internal/decompress", "internal/remote", "nix", "nix/nar"}, libraries: true},
	"internal/doctor":                    {rooms: []string{"internal/cache", "internal/decompress", "internal/remote", "nix", "nix/nar"}, libraries: true},

	"internal/chunk": {rooms: []string{"nix"}},

	"internal/backup":   {rooms: []string{"internal/depot/blob", "internal/depot/blob/dir", "internal/catalog/sqlite"}, libraries: true},
	"internal/access":   {rooms: []string{"internal/cache", "internal/catalog", "internal/memo", "internal/fairlimit"}, libraries: true},
	"internal/registry": {rooms: []string{"internal/cache", "internal/depot", "internal/catalog", "internal/memo", "nix"}},

	"internal/certs": {rooms: []string{"internal/cache", "internal/catalog"}, libraries: true},

	"internal/config":   {rooms: []string{"internal/listen", "nix"}, libraries: true},
	"internal/keyfile":  {rooms: []string{"nix"}},
	"internal/listen":   {libraries: true},
	"internal/logs":     {rooms: []string{"internal/config"}, libraries: true},
	"internal/nixserve": {rooms: []string{"internal/cache", "internal/certs", "internal/config", "internal/keyfile", "internal/listen", "internal/localstore", "internal/logs", "internal/server", "nix"}, libraries: true},
	"internal/cli":      {libraries: true},

	"nixos": {}, // tests only

	"cmd/firn": {rooms: []string{"*"}, libraries: true},

	"internal/testing/debstore": {rooms: []string{"nix"}, libraries: true},
	"internal/testing/archtest": {},
	"internal/testing/seed":     {},
}

// infrastructure is for tests and measurements, and never part of a program.
var infrastructure = []string{"internal/depot/blob/blobtest", "internal/testing/archtest", "internal/cache/cachetest", "internal/catalog/catalogtest", "internal/catalog/sqlite/sqlitetest", "internal/depot/index/indextest", "internal/testing/conversation", "internal/testing/debstore", "internal/testing/seed", "nix/nar/nartest"}

func TestImports(t *testing.T) {
	seen := map[string]bool{}
	for name, p := range packages(t) {
		seen[name] = true
		r, ok := rules[name]
		if !ok {
			t.Errorf("%s is in no row of the table in this file: say what it may import", name)
			continue
		}
		if len(p.CgoFiles) > 0 {
			t.Errorf("%s uses cgo, in %v", name, p.CgoFiles)
		}
		for _, path := range p.Imports {
			imported, in := strings.CutPrefix(path, module+"/")
			switch {
			case in && !mayImport(r, imported):
				t.Errorf("%s imports %s, which it may not: it may import %v", name, imported, r.rooms)
			case !in && !r.libraries && !isStandard(path):
				t.Errorf("%s imports %s, and may import the standard library only", name, path)
			}
		}
	}
	for name := range rules {
		if !seen[name] {
			t.Errorf("%s has a row in the table in this file, and is no package", name)
		}
	}
}

// TestTable checks that the README's table has every package, or one that it is in, and no other.
func TestTable(t *testing.T) {
	text, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(text), "\n## The packages\n")
	table, _, _ = strings.Cut(table, "\n## ")
	if !ok {
		t.Fatal("README.md has no part named The packages")
	}
	listed := map[string]bool{}
	for line := range strings.Lines(table) {
		row, ok := strings.CutPrefix(line, "| `")
		if !ok {
			continue
		}
		names, _, _ := strings.Cut(row, " |")
		for name := range strings.SplitSeq(names, ",") {
			name = strings.Trim(name, " `")
			if _, err := os.Stat("../../../" + name); err != nil {
				t.Errorf("README.md lists the package %s, which does not exist", name)
			}
			listed[name] = true
		}
	}
	for name := range packages(t) {
		in := name
		for !listed[in] && in != "." {
			in = filepath.Dir(in)
		}
		if in == "." {
			t.Errorf("README.md does not list the package %s: give it a row in The packages", name)
		}
	}
}

// Every test that ADR 25 names for a limited resource exists.
func TestLimitsAreTested(t *testing.T) {
	text, err := os.ReadFile("../../../docs/adr/0025-hostile-clients.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "\n## What there is little of\n")
	named := regexp.MustCompile("`(Test[A-Za-z]+)`")
	rows := 0
	var all strings.Builder
	for name, p := range packages(t) {
		for _, file := range slices.Concat(p.TestGoFiles, p.XTestGoFiles) {
			text, err := os.ReadFile(filepath.Join("../../..", name, file))
			if err != nil {
				t.Fatal(err)
			}
			all.Write(text)
		}
	}
	for line := range strings.Lines(table) {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| what |") {
			continue
		}
		rows++
		tests := named.FindAllStringSubmatch(line, -1)
		if len(tests) == 0 {
			t.Errorf("no test is named in: %s", line)
		}
		for _, name := range tests {
			if !strings.Contains(all.String(), "\nfunc "+name[1]+"(") {
				t.Errorf("there is no test %s, which ADR 25 names", name[1])
			}
		}
	}
	if rows < 20 {
		t.Errorf("the table has %d rows", rows)
	}
}

func mayImport(r rule, name string) bool {
	if slices.Contains(r.rooms, name) {
		return true
	}
	return slices.Contains(r.rooms, "*") && !slices.Contains(infrastructure, name)
}

// isStandard reports whether an import path that is not of this module is of the standard library:
// other modules have a domain in front.
func isStandard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}

// packages returns all packages of the module by their rooms, with the files for every system.
// It reads them in this process and does not ask `go list`, so that go test knows what the result depends on and does not
// take an old one for it.
func packages(t *testing.T) map[string]*build.Package {
	t.Helper()
	const root = "../../.."
	context := build.Default
	context.CgoEnabled = true
	context.UseAllFiles = true
	found := map[string]*build.Package{}
	err := filepath.WalkDir(root, func(dir string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(root, dir)
		if err != nil {
			return err
		}
		if name := entry.Name(); dir != root && (name[0] == '.' || name[0] == '_' || name == "testdata") {
			return fs.SkipDir
		}
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil && dir != root {
			return fs.SkipDir // a module of its own
		}
		p, err := context.ImportDir(dir, 0)
		var none *build.NoGoError
		if errors.As(err, &none) {
			return nil
		}
		found[filepath.ToSlash(name)] = p
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
