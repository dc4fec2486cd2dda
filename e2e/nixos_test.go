package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every Nix reads the files for NixOS, and makes the same of them.
func TestNixOS(t *testing.T) {
	t.Parallel()
	examples, err := filepath.Glob("../nixos/testdata/examples/*.txtar")
	if err != nil || len(examples) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	eachNix(t, func(t *testing.T, n nixSystem) {
		m := newMachine(t, n)
		for _, dir := range []string{"nixos", "packaging/systemd"} {
			if err := os.CopyFS(filepath.Join(m.dir, dir), os.DirFS("../"+dir)); err != nil {
				t.Fatal(err)
			}
		}
		flake, err := os.ReadFile("../flake.nix")
		if err != nil {
			t.Fatal(err)
		}
		files := []string{m.write("flake.nix", string(flake))}
		for _, pattern := range []string{"nixos/*.nix", "nixos/testdata/*.nix"} {
			more, err := filepath.Glob(filepath.Join(m.dir, pattern))
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, more...)
		}
		m.run(append([]string{"nix-instantiate", "--parse"}, files...)...)
		m.run("nix-instantiate", "--eval", "--strict", "--json", m.dir+"/nixos/testdata/flake.nix", "--arg", "user", "null")

		for _, example := range examples {
			text, err := os.ReadFile(example)
			if err != nil {
				t.Fatal(err)
			}
			_, rest, _ := strings.Cut(string(text), "-- configuration.nix --\n")
			configuration, want, found := strings.Cut(rest, "\n-- ")
			if !found {
				t.Fatalf("%s has no configuration and files", example)
			}
			want = "\n-- " + want
			out, err := m.try("nix-instantiate", "--eval", "--strict", "--json", m.dir+"/nixos/testdata/nixos.nix",
				"--arg", "configuration", m.write("configuration.nix", configuration))
			if refused := strings.HasPrefix(want, "\n-- error --"); err != nil || refused {
				if err == nil || !refused || !strings.Contains(err.Error(), "Failed assertions:") {
					t.Errorf("%s: %v", example, err)
				}
				continue
			}
			var files map[string]string
			if err := json.Unmarshal([]byte(out), &files); err != nil {
				t.Fatal(err)
			}
			for name, text := range files {
				if filepath.Ext(name) != ".json" && !strings.Contains(want, "\n-- "+name+" --\n"+strings.TrimRight(text, "\n")+"\n") {
					t.Errorf("%s: %s is another, go test ./nixos tells what it has to be:\n%s", example, name, text)
				}
			}
		}
	})
}
