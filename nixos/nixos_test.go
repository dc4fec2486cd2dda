// Package nixos tests the module, the package and the flake for NixOS, on a machine that has Nix and systemd but no nixpkgs:
// testdata has a stand-in for what they use of it.
package nixos

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// firnDir has bin/firn, the program of this tree.
var firnDir string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		var err error
		if firnDir, err = os.MkdirTemp("", "firn-nixos"); err != nil {
			fmt.Println(err)
			return 1
		}
		defer os.RemoveAll(firnDir)
		out, err := exec.Command("go", "build", "-o", filepath.Join(firnDir, "bin", "firn"), "firn/cmd/firn").CombinedOutput()
		if err != nil {
			fmt.Printf("build firn: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}
