// Package archtest keeps the shape of the house: a test pins which room imports which.
package archtest

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// module is the path of the module, which all packages of the table are in.
const module = "firn"

// A rule is what a room may import.
type rule struct {
	// rooms are the packages of this module that it may import; "*" stands for all but commands.
	rooms []string
	// libraries says whether it may import other modules.
	libraries bool
}

// rules has every package of the module. A new one gets its row together with its first file:
// that is the moment to ask whether its room is the right one.
//
//	cmd -> everything
//	doors (server) -> the hall (cache) -> nix/nar -> nix
//	sources (localstore) -> the hall's types, nix/...; never each other, never a door
var rules = map[string]rule{
	"nix":     {},
	"nix/nar": {rooms: []string{"nix"}},

	"internal/cache":           {rooms: []string{"nix", "nix/nar"}, libraries: true},
	"internal/cache/cachetest": {rooms: []string{"internal/cache", "nix", "nix/nar"}, libraries: true},
	"internal/localstore":      {rooms: []string{"internal/cache", "nix", "nix/nar"}, libraries: true},
	"internal/server":          {rooms: []string{"internal/cache", "nix", "nix/nar"}, libraries: true},

	"internal/config":     {rooms: []string{"internal/listen", "nix"}, libraries: true},
	"internal/keyfile":    {rooms: []string{"nix"}},
	"internal/listen":     {},
	"internal/completion": {libraries: true},

	"cmd/firn": {rooms: []string{"*"}, libraries: true},

	"bench":             {rooms: []string{"internal/debstore", "nix", "nix/nar"}, libraries: true},
	"internal/debstore": {rooms: []string{"nix"}, libraries: true},
	"internal/archtest": {},
}

// infrastructure is for tests and measurements, and never part of a program.
var infrastructure = []string{"bench", "internal/archtest", "internal/cache/cachetest", "internal/debstore"}

// listed is what `go list -json` says of a package.
type listed struct {
	ImportPath string
	Standard   bool
	CgoFiles   []string
	Imports    []string
	Error      *struct{ Err string }
}

func TestImports(t *testing.T) {
	packages := list(t, module+"/...")
	var outside []string
	for _, p := range packages {
		for _, path := range p.Imports {
			if !inModule(path) && path != "C" && !slices.Contains(outside, path) {
				outside = append(outside, path)
			}
		}
	}
	isStandard := map[string]bool{}
	for _, p := range list(t, outside...) {
		isStandard[p.ImportPath] = p.Standard
	}

	for _, p := range packages {
		room := strings.TrimPrefix(p.ImportPath, module+"/")
		r, ok := rules[room]
		if !ok {
			t.Errorf("%s is in no row of the table in this file: say what it may import", room)
			continue
		}
		if len(p.CgoFiles) > 0 {
			t.Errorf("%s uses cgo, in %v", room, p.CgoFiles)
		}
		for _, path := range p.Imports {
			imported, in := strings.CutPrefix(path, module+"/")
			switch {
			case in && !mayImport(r, imported):
				t.Errorf("%s imports %s, which it may not: it may import %v", room, imported, r.rooms)
			case !in && !r.libraries && path != "C" && !isStandard[path]:
				t.Errorf("%s imports %s, and may import the standard library only", room, path)
			}
		}
	}
}

func mayImport(r rule, room string) bool {
	if slices.Contains(r.rooms, room) {
		return true
	}
	return slices.Contains(r.rooms, "*") && !slices.Contains(infrastructure, room)
}

func inModule(path string) bool {
	return path == module || strings.HasPrefix(path, module+"/")
}

// list returns what go list says of packages.
func list(t *testing.T, patterns ...string) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-e", "-json=ImportPath,Standard,CgoFiles,Imports,Error"}, patterns...)...)
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=1") // without it files with cgo are not seen at all
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var packages []listed
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		switch err := decoder.Decode(&p); {
		case errors.Is(err, io.EOF):
			return packages
		case err != nil:
			t.Fatalf("parse what go list says: %v", err)
		case p.Error != nil:
			t.Fatalf("go list %s: %s", p.ImportPath, p.Error.Err)
		}
		packages = append(packages, p)
	}
}
