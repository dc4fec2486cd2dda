package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// closure returns the closure of a path of the Debian store, sorted.
func closure(t testing.TB, path string) []string {
	t.Helper()
	paths := lines(debianMachine(t).run("nix-store", "--query", "--requisites", path))
	slices.Sort(paths)
	return paths
}

// wantStore checks that m has exactly the given paths, that all their bytes are what their hashes say,
// and that s has signed them.
func wantStore(m *machine, s *server, want []string, store ...string) {
	m.t.Helper()
	got := lines(m.run(append([]string{"nix", "path-info", "--all"}, store...)...))
	slices.Sort(got)
	if !slices.Equal(want, got) {
		m.t.Errorf("%s: the store has %d paths, want %d:\n%s", m.nix.version, len(got), len(want), strings.Join(got, "\n"))
	}
	m.run(append([]string{"nix", "store", "verify", "--all", "--option", "trusted-public-keys", s.publicKey}, store...)...)
}

// sameTree checks that two trees are the same, byte for byte.
func sameTree(t testing.TB, a, b string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "diff", "--recursive", "--no-dereference", a, b).CombinedOutput(); err != nil {
		t.Errorf("compare %s with %s: %v\n%s", a, b, err, out)
	}
}

func TestSubstitute(t *testing.T) {
	t.Parallel()
	s := serveDebian(t)
	git := debianPath(t, "git").String()
	want := closure(t, git)
	eachNix(t, func(t *testing.T, n nixSystem) {
		m := newMachine(t, n)
		m.run(append([]string{"nix-store", "--realise", git}, s.trust()...)...)
		wantStore(m, s, want)
		sameTree(t, m.path(git), debian(t).Root+git)
	})
}

// A signature by a key that is not trusted is as good as none.
func TestUntrustedKey(t *testing.T) {
	t.Parallel()
	s := serveDebian(t)
	bash := debianPath(t, "bash").String()
	eachNix(t, func(t *testing.T, n nixSystem) {
		m := newMachine(t, n)
		m.run("nix-store", "--generate-binary-cache-key", "other-1", filepath.Join(m.dir, "secret"), filepath.Join(m.dir, "public"))
		other, err := os.ReadFile(filepath.Join(m.dir, "public"))
		if err != nil {
			t.Fatal(err)
		}
		for _, trusted := range []string{"", string(other)} {
			trust := []string{"--option", "trusted-public-keys", trusted}
			m.refused([]string{"not signed by any of the keys", "lacks a signature", "does not have a valid signature"},
				append([]string{"nix-store", "--realise", bash, "--option", "substituters", s.url}, trust...)...)
			refusals := []string{"lacks a valid signature", "lacks a signature"}
			if n.isOld() {
				refusals = append(refusals, "the thread pool is shutting down") // which it says at times in place of why
			}
			m.refused(refusals,
				append([]string{"nix", "copy", "--from", s.url, bash}, trust...)...)
			m.refused([]string{"is untrusted"},
				append([]string{"nix", "store", "verify", "--store", s.url, bash}, trust...)...)
		}
		if _, err := os.Stat(m.path(bash)); err == nil {
			t.Errorf("%s is in the store", bash)
		}
	})
}

// A server signs with all of its keys, whichever program made them, and a client needs to trust one.
func TestKeys(t *testing.T) {
	t.Parallel()
	bash := debianPath(t, "bash").String()
	eachNix(t, func(t *testing.T, n nixSystem) {
		m := newMachine(t, n)
		file := func(name string) string { return filepath.Join(m.dir, name) }
		m.run("nix-store", "--generate-binary-cache-key", "by-nix-1", file("nix.secret"), file("nix.public"))
		m.run(firnPath, "key", "generate", "by-firn-1", file("firn.secret"), file("firn.public"))
		s := startFirn(debianMachine(t), "--key", file("nix.secret"), "--key", file("firn.secret"))
		for _, public := range []string{"nix.public", "firn.public"} {
			key, err := os.ReadFile(file(public))
			if err != nil {
				t.Fatal(err)
			}
			m.run("nix", "store", "verify", "--store", s.url, bash, "--option", "trusted-public-keys", string(key))
		}
		if n.isOld() {
			return // it has no command that shows a public key
		}
		// Nix reads firn's secret key, and sees the same public key in it.
		convert := m.command(t.Context(), "sh", "-c", "nix key convert-secret-to-public <"+file("firn.secret"))
		got, err := convert.Output()
		if err != nil {
			t.Fatal(err)
		}
		if want := m.run(firnPath, "key", "public", file("firn.secret")); strings.TrimSpace(string(got)) != want {
			t.Errorf("Nix says that the public key is %s, firn says %s", got, want)
		}
	})
}

func TestCopyFrom(t *testing.T) {
	t.Parallel()
	s := serveDebian(t)
	bash := debianPath(t, "bash").String()
	want := closure(t, bash)
	eachLaterNix(t, func(t *testing.T, n nixSystem) {
		m := newMachine(t, n)
		m.run("nix", "copy", "--from", s.url, bash, "--option", "trusted-public-keys", s.publicKey)
		wantStore(m, s, want)
	})
}

// Another store root, on both sides.
func TestAnotherRoot(t *testing.T) {
	t.Parallel()
	s := serveDebian(t)
	bash := debianPath(t, "bash").String()
	want := closure(t, bash)
	eachLaterNix(t, func(t *testing.T, n nixSystem) {
		m := newMachine(t, n)
		root := filepath.Join(m.dir, "root")
		m.run(append([]string{"nix-store", "--store", root, "--realise", bash}, s.trust()...)...)
		wantStore(m, s, want, "--store", root)
		sameTree(t, root+bash, debian(t).Root+bash)
	})
}

// All that there is, in one go. It has the limits of a client in it: 25 connections, hundreds of narinfos at once.
func TestCopyEverything(t *testing.T) {
	t.Parallel()
	s := serveDebian(t)
	everything := debian(t).Everything.String()
	m := newMachine(t, newestNix())
	m.run("nix", "copy", "--from", s.url, everything, "--option", "trusted-public-keys", s.publicKey)
	if got, want := lines(m.run("nix", "path-info", "--all")), len(debian(t).Packages)+1; len(got) != want {
		t.Errorf("the store has %d paths, want %d", len(got), want)
	}
}
