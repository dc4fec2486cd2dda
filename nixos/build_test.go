//go:build programs

package nixos

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// When the system is built, firn reads the file, and what is wrong ends the build with its line.
func TestSettingsAreCheckedAtBuildTime(t *testing.T) {
	t.Parallel()
	build := func(settings string) error {
		_, err := nix(t, "nix-build", "--no-out-link", "testdata/nixos.nix", "--arg", "build", "true", "--argstr", "firn", firnDir,
			"--arg", "configuration", "{ services.firn = { enable = true; signKeyPaths = [ \"/etc/firn/secret\" ]; settings = {"+settings+"}; }; }")
		return err
	}
	if err := build(`priority = 10; depot-level = 3;`); err != nil {
		t.Error(err)
	}
	if err := build(`prioirty = 10;`); err == nil || !strings.Contains(err.Error(), "unknown key prioirty") {
		t.Errorf("a setting that is typed wrong: %v", err)
	}
}

// What runs before the server brings the caches into the declared state: from nothing, again, and from another state.
func TestCaches(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	firn := filepath.Join(firnDir, "bin", "firn")
	settings := filepath.Join(dir, "firn.toml")
	if err := os.WriteFile(settings, []byte(`state = "`+dir+`/state"`), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, firn, "key", "generate", "team-7", filepath.Join(dir, "key.team.0"), filepath.Join(dir, "public"))

	type state struct {
		Name       string
		Private    bool
		Sources    []string
		Priority   int
		Hosts      []string
		PublicKeys []string
	}
	apply := func(caches string) map[string]state {
		t.Helper()
		files, err := evaluate(t, "{ services.firn = { enable = true; caches = {"+caches+"}; }; }")
		if err != nil {
			t.Fatal(err)
		}
		script := strings.NewReplacer("/firn/bin/firn", firn, "/etc/firn/firn.toml", settings, "/run/credentials/firn-caches.service", dir).Replace(files["firn-caches"])
		run(t, "sh", write(t, "script", script))
		out, err := exec.CommandContext(t.Context(), firn, "cache", "list", "--json", "--config", settings).Output()
		var list []state
		if err != nil || json.Unmarshal(out, &list) != nil {
			t.Fatalf("firn cache list: %v\n%s", err, out)
		}
		byName := map[string]state{}
		for _, c := range list {
			if c.Name != "team" {
				c.PublicKeys = nil // made by firn
			}
			byName[c.Name] = c
		}
		return byName
	}

	public, err := os.ReadFile(filepath.Join(dir, "public"))
	if err != nil {
		t.Fatal(err)
	}
	keys := []string{strings.TrimSpace(string(public))}
	const before = `main.private = true; team = { priority = 5; hosts = [ "a.example" "b.example" ]; signKeyPaths = [ "/k" ]; }; old.hosts = [ "c.example" ];`
	want := map[string]state{
		"main": {Name: "main", Private: true, Sources: []string{"local", "depot"}, Priority: 30, Hosts: []string{}},
		"team": {Name: "team", Sources: []string{"depot"}, Priority: 5, Hosts: []string{"a.example", "b.example"}, PublicKeys: keys},
		"old":  {Name: "old", Sources: []string{"depot"}, Priority: 30, Hosts: []string{"c.example"}},
	}
	for range 2 {
		if diff := cmp.Diff(want, apply(before)); diff != "" {
			t.Fatalf("caches (-want +got):\n%s", diff)
		}
	}
	// Names change places; a cache that is not declared any more stays.
	want["main"] = state{Name: "main", Sources: []string{"depot"}, Priority: 30, Hosts: []string{"a.example"}}
	want["team"] = state{Name: "team", Private: true, Sources: []string{"depot"}, Priority: 5, Hosts: []string{}, PublicKeys: keys}
	after := apply(`main = { sources = [ "depot" ]; hosts = [ "a.example" ]; }; team.private = true;`)
	if diff := cmp.Diff(want, after); diff != "" {
		t.Errorf("caches (-want +got):\n%s", diff)
	}
}
