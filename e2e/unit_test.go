package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// mostExposed bounds what systemd finds a service exposed to, in tenths: it goes from 0 to 100.
const mostExposed = "20"

// systemd takes the units as they are, and finds little that firn could do beyond its work.
func TestUnits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files, err := filepath.Glob(units + "/firn*")
	if err != nil {
		t.Fatal(err)
	}
	var placed []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		// systemd looks whether the program is there.
		unit := filepath.Join(dir, filepath.Base(file))
		if err := os.WriteFile(unit, []byte(strings.ReplaceAll(string(text), "/usr/bin/firn", firnPath)), 0o644); err != nil {
			t.Fatal(err)
		}
		placed = append(placed, unit)
	}
	analyze := func(args ...string) {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "systemd-analyze", append([]string{"--no-pager"}, args...)...).CombinedOutput()
		if err != nil {
			t.Errorf("systemd-analyze %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	analyze(append([]string{"verify", "--man=no"}, placed...)...)
	analyze("security", "--offline=true", "--threshold="+mostExposed, filepath.Join(dir, "firn.service"))
}
