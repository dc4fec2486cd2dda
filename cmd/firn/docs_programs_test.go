//go:build programs

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// logrotate takes the configuration of the handbook, and would rotate both logs.
func TestDocumentedRotation(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"firn.log", "access.log"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	conf := documentedRotation(t, "operations.md", "/var/log/firn/", dir+"/", " firn firn\n", "\n")
	out, err := logrotate(t, conf, "--debug", "--force").CombinedOutput()
	if err != nil || strings.Contains(string(out), "error") || strings.Count(string(out), "log needs rotating") != 2 {
		t.Errorf("%v\n%s", err, out)
	}
}

// documentedRotation returns the configuration of logrotate on a page of the handbook, with some of its text replaced.
func documentedRotation(t *testing.T, page string, replaced ...string) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/" + page)
	if err != nil {
		t.Fatal(err)
	}
	_, conf, ok := strings.Cut(string(text), "```logrotate\n")
	conf, _, closed := strings.Cut(conf, "```")
	if !ok || !closed {
		t.Fatalf("%s has no configuration of logrotate", page)
	}
	return strings.NewReplacer(replaced...).Replace(conf)
}

// logrotate returns a command that rotates as the configuration says.
func logrotate(t *testing.T, conf string, flags ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath("logrotate")
	if err != nil {
		path = "/usr/sbin/logrotate" // which is not in everybody's PATH
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	return exec.CommandContext(t.Context(), path, append(flags, "--state", filepath.Join(dir, "state"), file)...)
}
