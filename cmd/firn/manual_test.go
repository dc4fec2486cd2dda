package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"firn/internal/config"
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
		text, err := os.ReadFile(filepath.Join(dir, "man1", page))
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

// The page of the configuration file names every setting, with its default as the file has it, and
// the pages of the program and of the commands that read the file point to it.
func TestManualSettings(t *testing.T) {
	dir := t.TempDir()
	if code := run([]string{"manual", dir}); code != 0 {
		t.Fatalf("firn manual ends with %d", code)
	}
	read := func(page string) string {
		text, err := os.ReadFile(filepath.Join(dir, page))
		if err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(string(text), `\-`, "-")
	}
	page := read("man5/firn.toml.5")
	for _, s := range config.Settings() {
		if !strings.Contains(page, "\n.TP\n.B "+s.Key+"\n"+strings.ReplaceAll(s.Help, "…", `\[u2026]`)) {
			t.Errorf("the page does not say what %s is", s.Key)
		}
		if !strings.Contains(page, s.Flag()+"; as a variable: "+s.Variable()+".\n") {
			t.Errorf("the page does not name the flag and the variable of %s", s.Key)
		}
	}
	for _, want := range []string{`listen = ["[::]:5000"]`, "priority = 30", `compression = "none"`, "http2 = true", "\n.B /etc/firn/firn.toml\n", ".BR firn (1)", ".BR firn-config-check (1)"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for name, want := range map[string]bool{"firn": true, "firn-serve": true, "firn-verify": true, "firn-config-check": true, "firn-key-generate": false} {
		if got := strings.Contains(read("man1/"+name+".1"), ".BR firn.toml (5)"); got != want {
			t.Errorf("%s(1) points to firn.toml(5): %t, want %t", name, got, want)
		}
	}
}
