package e2e

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"firn/nix"
)

// pushDebian returns a machine that runs a server with the closure of a package pushed to it.
func pushDebian(t testing.TB, name string) (host *machine, s *server, root string, closureOf []string) {
	t.Helper()
	path := debianPath(t, name).String()
	host = newMachine(t, systemNix())
	s = startDepot(host)
	client := debianMachine(t)
	login(client, newToken(host, "ci", "--push", "main"))
	client.run("nix", "copy", "--to", s.url+"?compression=none", path)
	return host, s, path, closure(t, path)
}

// What was pushed leaves as files that any web server serves, and comes back.
func TestExportImport(t *testing.T) {
	t.Parallel()
	host, s, root, want := pushDebian(t, "git")
	dir := filepath.Join(tempDir(t), "cache")
	admin(host, "export", dir)
	front := *s
	front.url = startNginx(t, tempDir(t), "location / { root "+dir+"; }")
	eachLaterNix(t, func(t *testing.T, n nixSystem) { // nobody is there to give 2.3 anything but zstd
		m := newMachine(t, n)
		m.run("nix", "copy", "--from", front.url, root, "--option", "trusted-public-keys", s.publicKey)
		wantStore(m, s, want)
		sameTree(t, m.path(root), debian(t).Root+root)
		m = newMachine(t, n)
		m.run("nix", "copy", "--from", "file://"+dir, root, "--option", "trusted-public-keys", s.publicKey)
		wantStore(m, s, want)
	})
	before := files(t, dir)
	admin(host, "export", dir)
	if after := files(t, dir); !slices.Equal(before, after) {
		t.Errorf("a second export changed the directory:\n%q\n%q", before, after)
	}

	for name, from := range map[string][]string{"directory": {dir}, "file": {"file://" + dir}, "HTTP": {front.url, root}, "server": {s.url, root}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			into := newMachine(t, systemNix())
			imported := startDepot(into)
			admin(into, "import", from...)
			sameCaches(t, s, imported, want)
			if out := admin(into, "verify"); out == "" {
				t.Error("firn verify says nothing")
			}
		})
	}

	// An import that is killed goes on where it was.
	t.Run("killed", func(t *testing.T) {
		t.Parallel()
		into := newMachine(t, systemNix())
		imported := startDepot(into)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for kills := range 3 {
			cmd := into.command(ctx, firnPath, "import", "--state", filepath.Join(into.dir, "state"), dir)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				cmd.Wait()
				close(done)
			}()
			eventually(t, "some of it is there", func() bool {
				select {
				case <-done:
					return true
				default:
					return count(t, imported, want) > len(want)*(kills+1)/5
				}
			})
			if err := cmd.Process.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
				t.Fatal(err)
			}
			<-done
			if !cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() {
				t.Errorf("it ended before it was killed: %v\n%s", cmd.ProcessState, &stderr)
			}
			admin(into, "verify")
		}
		admin(into, "import", dir)
		sameCaches(t, s, imported, want)
		admin(into, "verify")
	})
}

// count returns how many of the paths s has.
func count(t testing.TB, s *server, paths []string) (n int) {
	t.Helper()
	for _, text := range paths {
		p, err := nix.DefaultStoreDir.ParsePath(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.narInfo(p); err == nil {
			n++
		}
	}
	return n
}

// sameCaches checks that two servers say the same of all paths, each with its own signature, and serve the same NARs.
func sameCaches(t testing.TB, a, b *server, paths []string) {
	t.Helper()
	for _, text := range paths {
		p, err := nix.DefaultStoreDir.ParsePath(text)
		if err != nil {
			t.Fatal(err)
		}
		first, err := a.narInfo(p)
		if err != nil {
			t.Fatal(err)
		}
		second, err := b.narInfo(p)
		if err != nil {
			t.Error(err)
			continue
		}
		fingerprint := second.AppendFingerprint(nil)
		if !bytes.Equal(first.AppendFingerprint(nil), fingerprint) || first.Deriver != second.Deriver || first.CA != second.CA {
			t.Errorf("%s is %+v, imported %+v", p, first, second)
		}
		for _, public := range []string{a.publicKey, b.publicKey} {
			key, err := nix.ParsePublicKey(public)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(second.Signatures, func(s nix.Signature) bool { return key.Verify(fingerprint, s) }) {
				t.Errorf("%s is not signed by %s", p, key.Name())
			}
		}
		var one, two bytes.Buffer
		for s, w := range map[*server]*bytes.Buffer{a: &one, b: &two} {
			info := *first
			info.URL = "nar/" + info.Path.Hash().String() + "-" + info.NARHash.Nix32() + ".nar" // both serve that too
			if err := s.fetchNAR(&info, w); err != nil {
				t.Error(err)
			}
		}
		if !bytes.Equal(one.Bytes(), two.Bytes()) {
			t.Errorf("the NARs of %s differ", p)
		}
	}
}

// files returns the names and times of the files below dir.
func files(t testing.TB, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			all = append(all, path+" "+info.ModTime().String())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A cache that Nix wrote is taken over, in every compression, also from nginx.
func TestImportFromNix(t *testing.T) {
	t.Parallel()
	small := debianPath(t, smallClosure).String()
	smallWant := closure(t, small)
	for _, compression := range []string{"none", "xz", "zstd", "bzip2", "gzip", "br"} {
		t.Run(compression, func(t *testing.T) {
			t.Parallel()
			client, root, want := debianMachine(t), small, smallWant
			if compression == "br" { // with which Nix takes a minute for 30 MB
				client = newMachine(t, systemNix())
				root, _ = build(client, "", "/bin/cat /bin/sh >$out")
				want = []string{root}
			}
			dir := filepath.Join(tempDir(t), "cache")
			client.run("nix-store", "--generate-binary-cache-key", "theirs-1", filepath.Join(client.dir, "key"), filepath.Join(client.dir, "key.pub"))
			client.run("nix", "copy", "--to", "file://"+dir+"?compression="+compression+"&secret-key="+filepath.Join(client.dir, "key"), root)
			nginx := startNginx(t, tempDir(t), "location / { root "+dir+"; }")
			host := newMachine(t, systemNix())
			s := startDepot(host)

			// Not without the signature that is asked for.
			other := client.run("nix-store", "--generate-binary-cache-key", "other-1", filepath.Join(client.dir, "other"), filepath.Join(client.dir, "other.pub"))
			_, err := host.try(firnPath, "import", "--state", filepath.Join(host.dir, "state"), "--trusted-public-keys", filepath.Join(client.dir, "other.pub"), nginx, root)
			if err == nil || !strings.Contains(err.Error(), "no trusted key has signed it") || count(t, s, want) != 0 {
				t.Errorf("with another key %s: %v, %d paths", other, err, count(t, s, want))
			}
			admin(host, "import", "--trusted-public-keys", filepath.Join(client.dir, "key.pub"), nginx, root)
			m := newMachine(t, newestNix())
			m.run("nix", "copy", "--from", s.url, root, "--option", "trusted-public-keys", s.publicKey)
			wantStore(m, s, want)
			sameTree(t, m.path(root), client.path(root))
		})
	}
}
