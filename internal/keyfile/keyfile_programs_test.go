//go:build programs

package keyfile

import (
	"bytes"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Files made here and by Nix have the same shape, and either program reads the other's.
func TestGenerateIsNixs(t *testing.T) {
	dir := t.TempDir()
	ours, ourPublic := filepath.Join(dir, "ours"), filepath.Join(dir, "ours.pub")
	public, err := Generate("cache-1", ours, ourPublic)
	if err != nil {
		t.Fatal(err)
	}
	theirs, theirPublic := filepath.Join(dir, "theirs"), filepath.Join(dir, "theirs.pub")
	runNix(t, nil, "nix-store", "--generate-binary-cache-key", "cache-1", theirs, theirPublic)

	for _, pair := range [][2]string{{ours, theirs}, {ourPublic, theirPublic}} {
		us, them := read(t, pair[0]), read(t, pair[1])
		if len(us) != len(them) || !strings.HasPrefix(us, "cache-1:") || strings.HasSuffix(us, "\n") != strings.HasSuffix(them, "\n") {
			t.Errorf("%s has %d bytes, Nix's %s has %d", filepath.Base(pair[0]), len(us), filepath.Base(pair[1]), len(them))
		}
	}
	if diff := cmp.Diff([]fs.FileMode{mode(t, theirs), 0o600, 0o644}, []fs.FileMode{mode(t, ours), mode(t, ours), mode(t, ourPublic)}); diff != "" {
		t.Errorf("modes (-want +got):\n%s", diff)
	}

	convert := []string{"nix", "--extra-experimental-features", "nix-command", "key", "convert-secret-to-public"}
	if got := runNix(t, strings.NewReader(read(t, ours)), convert...); got != public.String() || got != read(t, ourPublic) {
		t.Errorf("Nix reads the public key %q, we %q, the file is %q", got, public, read(t, ourPublic))
	}
	key, err := Load(theirs, discard)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := key.Public().String(), read(t, theirPublic); got != want {
		t.Errorf("the public key of Nix's secret key is %q, want %q", got, want)
	}
}

// runNix runs a command of Nix and returns what it prints.
func runNix(t *testing.T, stdin *strings.Reader, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(args[0])
	if err != nil {
		t.Fatalf("%v; `make test` brings Nix", err)
	}
	cmd := exec.CommandContext(t.Context(), path, args[1:]...)
	if stdin != nil {
		cmd.Stdin = stdin
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return string(out)
}
