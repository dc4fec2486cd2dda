//go:build programs

package nixos

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// What the handbook has people write is a configuration that evaluates, and firn and systemd take.
func TestDocumentation(t *testing.T) {
	text, err := os.ReadFile("../docs/nixos.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```nix\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(blocks) == 0 {
		t.Fatal("there are no blocks")
	}
	for i, block := range blocks {
		heading := string(text[:strings.Index(string(text), block[1])])
		heading = heading[strings.LastIndex(heading, "\n## ")+len("\n## "):]
		name, _, _ := strings.Cut(heading, "\n")
		t.Run(fmt.Sprintf("%d %s", i, name), func(t *testing.T) {
			t.Parallel()
			if strings.Contains(block[1], "outputs =") {
				checkFlake(t, block[1])
				return
			}
			// Some blocks show only what they add.
			files, err := evaluate(t, "{ imports = [ ("+block[1]+") ]; services.firn.enable = true; }")
			if err != nil {
				t.Fatal(err)
			}
			check(t, files)
		})
	}
}

// checkFlake evaluates a flake that uses this one.
func checkFlake(t *testing.T, text string) {
	t.Helper()
	text = strings.ReplaceAll(text, "./configuration.nix", "{ services.firn.enable = true; }")
	out, err := nix(t, "nix-instantiate", "--eval", "--strict", "testdata/flake.nix", "--attr", "used.services.firn.package.name", "--arg", "user", text)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(out)); got != `"firn-0-unstable-20261126"` {
		t.Errorf("its machine has %s", got)
	}
}
