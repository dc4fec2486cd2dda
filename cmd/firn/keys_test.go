package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A server that has made a key, which clients trust, and is given others says that its own signs no
// more: at the start, at a reload and when the file is checked.
func TestUnusedKey(t *testing.T) {
	dir := t.TempDir()
	state, file, secret := filepath.Join(dir, "state"), filepath.Join(dir, "firn.toml"), filepath.Join(dir, "secret")
	run := func(args ...string) (said string) {
		t.Helper()
		cmd := exec.Command("firn", args...)
		cmd.Env = environment(t, "FIRN_STATE="+state)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("firn %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	configure := func(keys ...string) {
		t.Helper()
		text := "state = '" + state + "'\nstore = 'off'\nlisten = ['127.0.0.1:0']\n"
		if len(keys) > 0 {
			text += "key = ['" + strings.Join(keys, "', '") + "']\n"
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run("key", "generate", "other-1", secret, secret+".pub")
	configure()
	s := startServer(t, environment(t, "FIRN_STATE="+state), "--config", file)
	made, own := s.keyName(), filepath.Join(state, "signing-key.secret")
	// warns checks for the warning in a text, which names both keys and what to add.
	warns := func(when, said string, want bool) {
		t.Helper()
		got := false
		for line := range strings.Lines(said) {
			got = got || strings.Contains(line, "signs nothing, as key names others") && strings.Contains(line, "made="+made+" key=other-1 add="+own)
		}
		if got != want {
			t.Errorf("%s: warned is %t, want %t:\n%s", when, got, want, said)
		}
	}
	reloaded := func() string {
		t.Helper()
		before := len(s.stderr.String())
		s.signal(t, syscall.SIGHUP)
		for !strings.Contains(s.stderr.String()[before:], "reloaded settings, keys and certificates") {
			if t.Context().Err() != nil {
				t.Fatal("the server was not reloaded")
			}
			time.Sleep(time.Millisecond)
		}
		return s.stderr.String()[before:]
	}
	warns("the first start", s.stderr.String(), false)
	warns("a check without key", run("config", "check", file), false)
	if named := run("config", "check", "--config", file); named != run("config", "check", file) {
		t.Errorf("a check with --config says %s", named)
	}

	configure(secret)
	warns("a check with another key", run("config", "check", file), true)
	said := reloaded()
	warns("a reload with another key", said, true)
	if n := strings.Count(said, "level=WARN"); n != 1 {
		t.Errorf("a reload that takes a key away warns %d times:\n%s", n, said)
	}
	again := startServer(t, environment(t, "FIRN_STATE="+state), "--config", file)
	warns("a start with another key", again.stderr.String(), true)

	configure(own, secret)
	warns("a check with both keys", run("config", "check", file), false)
	said = reloaded()
	warns("a reload with both keys", said, false)
	if strings.Contains(said, "signs nothing") {
		t.Errorf("a reload that adds a key says\n%s", said)
	}
	configure(own)
	said = reloaded()
	if strings.Count(said, "level=WARN") != 1 || !strings.Contains(said, "a key signs nothing any more") || !strings.Contains(said, "key=other-1\n") {
		t.Errorf("a reload that takes away a key of the settings says\n%s", said)
	}
}
