package e2e

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestPathInfo(t *testing.T) {
	t.Parallel()
	s := serveDebian(t)
	git := debianPath(t, "git").String()
	want := closure(t, git)
	eachNix(t, func(t *testing.T, n nixSystem) {
		m := newMachine(t, n)
		got := lines(m.run("nix", "path-info", "--store", s.url, "--recursive", git))
		slices.Sort(got)
		if !slices.Equal(want, got) {
			t.Errorf("closure of %d paths, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
		}
		name, _, _ := strings.Cut(s.publicKey, ":")
		if sigs := m.run("nix", "path-info", "--store", s.url, "--sigs", git); !strings.Contains(sigs, name+":") {
			t.Errorf("signatures %q, want one by %s", sigs, name)
		}
		m.run("nix", "store", "verify", "--store", s.url, "--recursive", git, "--option", "trusted-public-keys", s.publicKey)
		m.refused([]string{"is not valid"}, "nix", "path-info", "--store", s.url, "/nix/store/"+strings.Repeat("0", 32)+"-absent")
	})
}

func TestListAndRead(t *testing.T) {
	t.Parallel()
	s := serveDebian(t)
	bash := debianPath(t, "bash").String()
	eachNix(t, func(t *testing.T, n nixSystem) {
		m := newMachine(t, n)
		list := []string{"nix", "store", "ls", "--long", "--recursive", bash}
		if got, want := m.run(append(list, "--store", s.url)...), debianMachine(t).run(list...); got != want {
			t.Errorf("over HTTP:\n%s\nfrom the store:\n%s", got, want)
		}
		for _, file := range []string{"/bin/bash", "/nix-support/propagated-build-inputs"} {
			want, err := os.ReadFile(debian(t).Root + bash + file)
			if err != nil {
				t.Fatal(err)
			}
			if got := m.run("nix", "store", "cat", "--store", s.url, bash+file); got != strings.TrimSuffix(string(want), "\n") {
				t.Errorf("%s has %d bytes over HTTP, and not the %d of the store", file, len(got), len(want))
			}
		}
	})
}

// build has m build a derivation with the given attributes, and returns the output and the derivation.
func build(m *machine, attributes, script string, options ...string) (output, drv string) {
	m.t.Helper()
	expr := m.write("test.nix", `derivation {
  name = "firn-test";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [ "-c" "`+script+`" ];
  `+attributes+`
}`)
	drv, _, _ = strings.Cut(m.run("nix-instantiate", expr), "!")
	return m.run(append([]string{"nix-build", "--no-out-link", expr}, options...)...), drv
}

func TestLog(t *testing.T) {
	t.Parallel()
	eachNix(t, func(t *testing.T, n nixSystem) {
		builder := newMachine(t, n)
		output, drv := build(builder, "", "echo the log of a build; echo hello >$out")
		s := startFirn(builder)
		m := newMachine(t, n)
		for _, path := range []string{output, drv} {
			if got := m.run("nix", "log", "--store", s.url, path); got != "the log of a build" {
				t.Errorf("log of %s is %q", path, got)
			}
		}
		m.run(append([]string{"nix-store", "--realise", output}, s.trust()...)...)
		if got, err := os.ReadFile(m.path(output)); err != nil || string(got) != "hello\n" {
			t.Errorf("%s has %q, %v", output, got, err)
		}
	})
}

// The realisations of a content-addressed derivation come from the server: the client builds nothing.
func TestRealisation(t *testing.T) {
	t.Parallel()
	const attributes = `__contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";`
	const script = "echo content-addressed >$out"
	eachNix(t, func(t *testing.T, n nixSystem) {
		builder := newMachine(t, n)
		want, _ := build(builder, attributes, script)
		s := startFirn(builder)
		m := newMachine(t, n)
		got, _ := build(m, attributes, script, append(s.trust(), "--option", "max-jobs", "0")...)
		if got != want {
			t.Errorf("substituted %s, want %s", got, want)
		}
		if text, err := os.ReadFile(m.path(got)); err != nil || string(text) != "content-addressed\n" {
			t.Errorf("%s has %q, %v", got, text, err)
		}
	})
}
