package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The manual page of every command that can end with a status of its own says which, and so does
// that of firn itself.
func TestManualExitStatus(t *testing.T) {
	dir := t.TempDir()
	if code := run([]string{"manual", dir}); code != 0 {
		t.Fatalf("firn manual ends with %d", code)
	}
	for page, want := range map[string][]string{
		"firn.1":        {"0", "1", "2", "3", "3", "4"},
		"firn-backup.1": {"0", "1", "2", "3"},
		"firn-doctor.1": {"0", "1", "2", "4"},
		"firn-stats.1":  {"0", "1", "2"},
		"firn-verify.1": {"0", "1", "2", "3"},
	} {
		text, err := os.ReadFile(filepath.Join(dir, page))
		if err != nil {
			t.Fatal(err)
		}
		_, section, _ := strings.Cut(string(text), "\n.SH EXIT STATUS\n")
		section, _, _ = strings.Cut(section, "\n.SH ")
		var got []string
		for line := range strings.Lines(section) {
			if status, ok := strings.CutPrefix(line, ".B "); ok {
				got = append(got, strings.TrimSpace(status))
			}
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%s has the statuses %q, want %q", page, got, want)
		}
	}
}
