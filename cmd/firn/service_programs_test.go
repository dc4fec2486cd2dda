//go:build programs

package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"firn/nix"
)

// writeKey makes a signing key in a file.
func writeKey(t *testing.T, path, name string) {
	t.Helper()
	key, err := nix.GenerateKey(name)
	if err == nil {
		err = os.WriteFile(path, []byte(key.Reveal()), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// SIGHUP changes keys and what else can change, says what cannot, and leaves all as it was when something is wrong.
func TestReload(t *testing.T) {
	m := newManager(t)
	root, paths := makeStore(t)
	dir := t.TempDir()
	credentials := filepath.Join(dir, "credentials")
	if err := os.Mkdir(credentials, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "firn.toml")
	configure := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	writeKey(t, a, "a-1")
	writeKey(t, b, "b-1")
	writeKey(t, filepath.Join(credentials, "key"), "credential-1")
	configure("key = ['" + a + "']\n")
	env := environment(t, "CREDENTIALS_DIRECTORY="+credentials)
	s := startCommand(t, m.command(env, "--config", file, "--store", root, "--listen", "127.0.0.1:0"))
	m.wait(t, "READY=1")

	signers := func() (names string) {
		t.Helper()
		for line := range strings.Lines(s.get(t, "/"+filepath.Base(paths["small"])[:32]+".narinfo")) {
			if sig, ok := strings.CutPrefix(line, "Sig: "); ok {
				name, _, _ := strings.Cut(sig, ":")
				names += name + " "
			}
		}
		return names
	}
	reload := func() {
		t.Helper()
		s.signal(t, syscall.SIGHUP)
		if got := m.wait(t, "RELOADING=1"); !strings.Contains(got, "\nMONOTONIC_USEC=") {
			t.Errorf("told was %q", got)
		}
		m.wait(t, "READY=1")
	}
	priority := func(want string) {
		t.Helper()
		if got := s.get(t, "/nix-cache-info"); !strings.HasSuffix(got, "\nPriority: "+want+"\n") {
			t.Errorf("nix-cache-info is %q, want the priority %s", got, want)
		}
	}
	if got, want := signers(), "a-1 credential-1 "; got != want {
		t.Errorf("signed by %s, want %s", got, want)
	}

	big := s.openNAR(t, paths["big"])
	defer big.Body.Close()
	configure("key = ['" + a + "', '" + b + "']\npriority = 7\nmax-nar-size = '1GiB'\n")
	reload()
	if got, want := signers(), "a-1 b-1 credential-1 "; got != want {
		t.Errorf("after another key was named, signed by %s, want %s", got, want)
	}
	priority("7")
	s.stderr.wait(t, `msg="a setting has changed and needs a restart" setting=max-nar-size`)
	s.stderr.wait(t, `changed="[key priority]"`)

	for _, wrong := range []string{"key = ['" + b + "']\npriority = 8\nno-such = 1\n", "key = ['" + file + "']\npriority = 8\n"} {
		configure(wrong)
		reload()
		s.stderr.wait(t, "the settings could not be reloaded and stay as they were")
		if got, want := signers(), "a-1 b-1 credential-1 "; got != want {
			t.Errorf("with a mistake in the file, signed by %s, want %s", got, want)
		}
		priority("7")
	}
	wantWhole(t, big)
}
