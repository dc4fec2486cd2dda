//go:build programs

package nixos

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The flake has what flakes have, for the systems that it should, when its inputs are the stand-in.
func TestFlake(t *testing.T) {
	t.Parallel()
	out, err := nix(t, "nix-instantiate", "--eval", "--strict", "--json", "testdata/flake.nix", "--arg", "user", "null")
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	delete(got, "package") // TestPackage
	linux, all := []any{"aarch64-linux", "x86_64-linux"}, []any{"aarch64-darwin", "aarch64-linux", "x86_64-darwin", "x86_64-linux"}
	want := map[string]any{
		"packages":  map[string]any{"default": all, "firn": all},
		"checks":    map[string]any{"nixos": linux, "package": linux},
		"devShells": map[string]any{"default": all},
		"overlay":   "firn-0-unstable-20261126",
		"module":    "firn-0-unstable-20261126", // the package that it chooses
		"program":   "/firn/bin/firn",
		// Evaluated as virtual machines: the cache's settings, and that there is a script.
		"server": map[string]any{"priority": 20.0, "ports": []any{5000.0, 443.0}},
		"script": true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("outputs (-want +got):\n%s", diff)
	}
}
