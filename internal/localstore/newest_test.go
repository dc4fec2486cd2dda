//go:build programs

package localstore

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is signed comes first, then the rest, each the newest first, and no derivations.
func TestNewest(t *testing.T) {
	n := newNix(t)
	paths := n.register([]string{"one", "two", "three", "four"}, "")
	n.run("nix-instantiate", "--expr", `derivation { name = "five"; system = "none"; builder = "none"; }`)
	secret := filepath.Join(n.dir, "secret")
	n.run("nix-store", "--generate-binary-cache-key", "test-1", secret, filepath.Join(n.dir, "public"))
	n.run("nix", "store", "sign", "--key-file", secret, paths[0].String(), paths[1].String())
	s := n.open()
	for count, want := range map[int]string{1: "two four", 2: "two one four three", 9: "two one four three"} {
		got, err := s.Newest(t.Context(), count)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, p := range got {
			names = append(names, p.Name())
		}
		if diff := cmp.Diff(want, strings.Join(names, " ")); diff != "" {
			t.Errorf("the newest %d (-want +got):\n%s", count, diff)
		}
	}
}
