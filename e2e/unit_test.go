package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// unitDir is where the units for systemd are.
const unitDir = "../packaging/systemd"

// mostExposed bounds what systemd finds a service exposed to, in tenths: it goes from 0 to 100.
const mostExposed = "20"

// systemd takes the units as they are, and finds little that firn could do beyond its work.
func TestUnits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var units []string
	for _, name := range []string{"firn.service", "firn.socket"} {
		text, err := os.ReadFile(filepath.Join(unitDir, name))
		if err != nil {
			t.Fatal(err)
		}
		// systemd looks whether the program is there.
		installed := strings.ReplaceAll(string(text), "/usr/bin/firn", firnPath)
		unit := filepath.Join(dir, name)
		if err := os.WriteFile(unit, []byte(installed), 0o644); err != nil {
			t.Fatal(err)
		}
		units = append(units, unit)
	}
	analyze := func(args ...string) {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "systemd-analyze", append([]string{"--no-pager"}, args...)...).CombinedOutput()
		if err != nil {
			t.Errorf("systemd-analyze %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	analyze(append([]string{"verify", "--man=no"}, units...)...)
	analyze("security", "--offline=true", "--threshold="+mostExposed, units[0])
}
