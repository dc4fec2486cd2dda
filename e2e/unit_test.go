package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// unitFile is the unit for systemd.
const unitFile = "../packaging/systemd/firn.service"

// mostExposed bounds what systemd finds a service exposed to, in tenths: it goes from 0 to 100.
const mostExposed = "20"

// systemd takes the unit as it is, and finds little that firn could do beyond its work.
func TestUnit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	// systemd looks whether the program is there.
	unit := filepath.Join(dir, filepath.Base(unitFile))
	if err := os.WriteFile(unit, []byte(strings.ReplaceAll(string(text), "/usr/bin/firn", firnPath)), 0o644); err != nil {
		t.Fatal(err)
	}
	analyze := func(args ...string) {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "systemd-analyze", append([]string{"--no-pager"}, args...)...).CombinedOutput()
		if err != nil {
			t.Errorf("systemd-analyze %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	analyze("verify", "--man=no", unit)
	analyze("security", "--offline=true", "--threshold="+mostExposed, unit)
}
