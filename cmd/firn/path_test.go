package main

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"firn/internal/cache/cachetest"
	"firn/nix"
)

// What is deleted is not there at the next request, and nothing is left that lacks a reference.
func TestDeletePaths(t *testing.T) {
	t.Parallel()
	a := newAdmin(t)
	a.mustRun("cache", "create", "team")
	token := a.mustRun("token", "create", "ci", "--push", "*")
	library := cachetest.NewPath(t, nix.DefaultStoreDir, "library", "library\n")
	program := cachetest.NewPath(t, nix.DefaultStoreDir, "program", "program\n")
	system := cachetest.NewPath(t, nix.DefaultStoreDir, "system", "system\n")
	other := cachetest.NewPath(t, nix.DefaultStoreDir, "other", "other\n")
	for _, p := range []struct{ path, ref cachetest.Path }{{program, library}, {system, program}} {
		p.path.Info.CA, p.path.Info.References = nix.ContentAddress{}, []nix.StorePath{p.ref.Info.Path}
	}
	for _, p := range []cachetest.Path{library, program, system, other} {
		a.push("", token, p, http.StatusCreated)
	}
	a.push("/team", token, library, http.StatusCreated)
	there := func(all ...cachetest.Path) {
		t.Helper()
		for _, p := range []cachetest.Path{library, program, system, other} {
			status := http.StatusNotFound
			for _, is := range all {
				if is.Info.Path == p.Info.Path {
					status = http.StatusOK
				}
			}
			a.want(http.MethodGet, narinfoOf(p), "", nil, status, "")
		}
	}
	there(library, program, system, other)
	if out := strings.Fields(a.mustRun("path", "list")); len(out) != 4 || !slices.Contains(out, program.Info.Path.String()) {
		t.Errorf("firn path list says %s", out)
	}
	if out := a.mustRun("path", "list", "--cache", "team"); out != library.Info.Path.String() {
		t.Errorf("firn path list --cache team says %s", out)
	}
	if out := a.mustRun("path", "list", "--withheld"); out != "" {
		t.Errorf("firn path list --withheld says %s", out)
	}

	for _, args := range [][]string{
		{program.Info.Path.String()},
		{program.Info.Path.String(), other.Info.Path.String()},
		{"--with-referrers", library.Info.Path.String()}, // without being sure
		{"--keep-referrers", library.Info.Path.String()},
		{"--cache", "team", other.Info.Path.String()},
		{"--cache", "none", other.Info.Path.String()},
		{"no-path"},
	} {
		if out, code := a.run(append([]string{"path", "delete"}, args...)...); code == 0 {
			t.Errorf("firn path delete %v says %s", args, out)
		}
	}
	there(library, program, system, other)

	out := a.mustRun("path", "delete", "--dry-run", "--with-referrers", program.Info.Path.String())
	if !strings.Contains(out, "would delete "+system.Info.Path.String()) || strings.Contains(out, library.Info.Path.String()) {
		t.Errorf("a dry run says %s", out)
	}
	there(library, program, system, other)
	if out := a.mustRun("stats"); strings.Contains(out, "no path has") {
		t.Errorf("before a deletion firn stats says\n%s", out)
	}
	a.mustRun("path", "delete", "--with-referrers", "--yes", program.Info.Path.Hash().String())
	there(library, other)
	if out := a.mustRun("stats"); !strings.Contains(out, "\nup to ") || !strings.Contains(out, " belongs to NARs that no path has") {
		t.Errorf("after a deletion firn stats says\n%s", out)
	}
	out = a.mustRun("path", "delete", "--json", other.Info.Path.String(), library.Info.Path.String())
	var shown shownDeletion
	if err := json.Unmarshal([]byte(out), &shown); err != nil || len(shown.Paths) != 2 || shown.DryRun || shown.Served == 0 {
		t.Errorf("as JSON: %s, %v", out, err)
	}
	there()
	a.want(http.MethodGet, "/"+cachetest.URL(library.NAR, ""), "", nil, http.StatusNotFound, "")
	a.want(http.MethodGet, "/team"+narinfoOf(library), "", nil, http.StatusOK, "")

	// They can come again, in their order, and their NARs need not be sent.
	for _, p := range []cachetest.Path{library, program} {
		url := cachetest.URL(p.NAR, "")
		a.want(http.MethodHead, "/"+url, token, nil, http.StatusOK, "")
		info := nix.NARInfo{PathInfo: *p.Info, URL: url, Compression: nix.None, FileHash: p.Info.NARHash, FileSize: p.Info.NARSize}
		a.want(http.MethodPut, narinfoOf(p), token, info.AppendText(nil), http.StatusCreated, "")
	}
	there(library, program)

	a.mustRun("cache", "set", "main", "--allow-missing-references")
	a.mustRun("path", "delete", "--keep-referrers", library.Info.Path.String())
	there(program)
}
