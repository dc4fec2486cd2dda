package nixos

import (
	"encoding/base64"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const packageFile = "package.nix"

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
		t.Errorf("%s has vendorHash %s, and go.mod and go.sum come to %s; go test ./nixos -run VendorHash -update writes that", packageFile, got[2], want)
	}
}
