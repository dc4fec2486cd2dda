//go:build programs

package nixos

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"firn/internal/config"
)

const packageFile = "package.nix"

// asNixpkgs are the commands of nixpkgs that the installation uses, as far as it does.
const asNixpkgs = `set -eu
installManPage() {
	for page in "$@"; do install -D --mode=644 "$page" "$out/share/man/man${page##*.}/${page##*/}"; done
}
installShellCompletion() {
	test "$1 $2 $3 $5 $7" = "--cmd firn --bash --zsh --fish"
	mkdir -p "$out/completions"
	cat "$4" >"$out/completions/bash"; cat "$6" >"$out/completions/zsh"; cat "$8" >"$out/completions/fish"
}
substituteInPlace() {
	files=
	while [ "$1" != --replace-quiet ]; do files="$files $1"; shift; done
	sed --in-place "s|$2|$3|g" $files
}
`

// The package has the program with its version, manual pages, completions and units.
func TestPackage(t *testing.T) {
	t.Parallel()
	out, err := nix(t, "nix-instantiate", "--eval", "--strict", "--json", "testdata/flake.nix", "--arg", "user", "null", "--attr", "package")
	if err != nil {
		t.Fatal(err)
	}
	var p struct {
		LDFlags     []string
		SubPackages []string
		PostInstall string
	}
	if err := json.Unmarshal(out, &p); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "bin", "firn")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", strings.Join(p.LDFlags, " "), "-o", program, "./"+p.SubPackages[0])
	build.Dir, build.Env = "..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out := run(t, program, "version"); !strings.HasPrefix(string(out), "firn 0-unstable-20261126 ") {
		t.Errorf("firn version: %s", out)
	}

	// It runs in the sources, where it makes a directory.
	sources := t.TempDir()
	if err := os.CopyFS(filepath.Join(sources, "packaging", "systemd"), os.DirFS(packagedUnits)); err != nil {
		t.Fatal(err)
	}
	install := exec.CommandContext(t.Context(), "bash", "-c", asNixpkgs+p.PostInstall)
	install.Dir, install.Env = sources, append(os.Environ(), "out="+dir)
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, want := range map[string]string{
		"share/man/man1/firn.1":           `.TH "FIRN" 1 "" "firn 0\-unstable\-20261126"`,
		"share/man/man1/firn-serve.1":     `.TH "FIRN\-SERVE" 1`,
		"share/man/man5/firn.toml.5":      `.TH "FIRN.TOML" 5`,
		"completions/bash":                "complete ",
		"completions/zsh":                 "#compdef firn",
		"completions/fish":                "complete ",
		"lib/systemd/system/firn.service": "ExecStart=" + program + " serve --config /etc/firn/firn.toml\n",
	} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: %v, without %q:\n%.300s", name, err, want, text)
		}
		if bad := regexp.MustCompile(`(?m)^Exec\w+=/(usr|bin|sbin)/.*`).Find(bytes.ReplaceAll(text, []byte("=/bin/sh "), nil)); bad != nil {
			t.Errorf("%s: there is no such program on NixOS: %s", name, bad)
		}
	}
}

// The options of settings are settings, of the kind and with the default that firn has.
func TestSettings(t *testing.T) {
	t.Parallel()
	out, err := nix(t, "nix-instantiate", "--eval", "--strict", "--json", "testdata/nixos.nix", "--arg", "whole", "true",
		"--arg", "configuration", "{ }", "--attr", "services.firn.settings")
	if err != nil {
		t.Fatal(err)
	}
	var declared map[string]any
	if err := json.Unmarshal(out, &declared); err != nil {
		t.Fatal(err)
	}
	settings := map[string]config.Setting{}
	for _, s := range config.Settings() {
		settings[s.Key] = s
	}
	for name, value := range declared {
		s, ok := settings[name]
		list, isList := value.([]any)
		switch {
		case !ok:
			t.Errorf("there is no setting %s", name)
		case value != nil && isList != s.List:
			t.Errorf("%s is %v, and a list: %t", name, value, s.List)
		case len(list) > 0 && (len(list) != 1 || list[0] != s.Default):
			t.Errorf("%s is %v by default, and %s of firn", name, value, s.Default)
		}
	}
	if len(declared) == 0 {
		t.Error("no setting is declared")
	}
}

// The hash that Nix wants of the modules is that of the modules in go.sum.
func TestVendorHash(t *testing.T) {
	t.Parallel()
	vendor := filepath.Join(t.TempDir(), "vendor")
	cmd := exec.CommandContext(t.Context(), "go", "mod", "vendor", "-o", vendor)
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go mod vendor: %v\n%s", err, out)
	}
	out, err := nix(t, "nix-hash", "--type", "sha256", vendor)
	if err != nil {
		t.Fatal(err)
	}
	sum, err := hex.DecodeString(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	want := "sha256-" + base64.StdEncoding.EncodeToString(sum)

	text, err := os.ReadFile(packageFile)
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(vendorHash = ")([^"]*)(";)`)
	got := line.FindStringSubmatch(string(text))
	switch {
	case got == nil:
		t.Fatalf("%s has no vendorHash", packageFile)
	case *update:
		if err := os.WriteFile(packageFile, line.ReplaceAll(text, []byte("${1}"+want+"${3}")), 0o644); err != nil {
			t.Fatal(err)
		}
	case got[2] != want:
		t.Errorf("%s has vendorHash %s, and go.mod and go.sum come to %s; go test -tags programs ./nixos -run VendorHash -update writes that", packageFile, got[2], want)
	}
}
