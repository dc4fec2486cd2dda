//go:build programs

package localstore

import (
	"errors"
	"os"
	"strings"
	"testing"

	"firn/internal/cache"
	"firn/nix"
)

// mounts are scripts that make a directory read-only, for those who see the mount.
var mounts = map[string]string{
	"read-only file system": `
		memory=$(mktemp -d)
		mount -t tmpfs tmpfs "$memory"
		cp --archive "$DIR/." "$memory"
		mount -o remount,ro "$memory"
		mount --bind "$memory" "$DIR"`,
	"read-only bind mount": `
		mount --bind "$DIR" "$DIR"
		mount -o remount,bind,ro "$DIR"`,
}

// A store that lies where nothing can be written is served: in both journal modes, to root and to
// others, with no daemon.
func TestReadOnlyStore(t *testing.T) {
	for name, script := range mounts {
		for _, wal := range []string{"true", "false"} {
			for who, uid := range map[string]uint32{"root": 0, "nobody": nobody} {
				t.Run(name+", WAL "+wal+", "+who, func(t *testing.T) {
					t.Parallel()
					n := newNix(t, "use-sqlite-wal = "+wal)
					path := n.add("file", "hello\n")
					for _, suffix := range []string{"-wal", "-shm"} {
						if _, err := os.Stat(n.dbPath() + suffix); err == nil {
							t.Fatalf("Nix has left db.sqlite%s", suffix)
						}
					}
					c := n.startChildAfter(t, uid, "DIR="+n.dir+script)
					if c.first != "ready" {
						t.Fatal(c.first)
					}
					want := func(p nix.StorePath) {
						t.Helper()
						if got := c.ask("info " + p.Hash().String()); !strings.HasPrefix(got, p.String()+" ") {
							t.Errorf("it says %q of %v", got, p)
						}
					}
					want(path)
					if got := c.ask("filter"); got != "<nil>" {
						t.Fatal(got)
					}
					want(path)
					if got := c.ask("info " + strings.Repeat("0", 32)); !strings.HasSuffix(got, "not found") {
						t.Errorf("it says %q of an absent path", got)
					}
					if got := c.ask("open " + path.Hash().String()); got != "opened <nil>" {
						t.Fatal(got)
					}
					if got := c.ask("send"); got != "sent <nil>" {
						t.Error(got)
					}
					if name == "read-only file system" {
						return
					}
					// Nix changes it at another mount.
					added := n.add("added", "added later\n")
					want(added)
					n.run("nix-store", "--delete", added.String())
					if got := c.ask("info " + added.Hash().String()); !strings.HasSuffix(got, "not found") {
						t.Errorf("it says %q of %v, which was deleted", got, added)
					}
					want(path)
				})
			}
		}
	}
}

// What is read without locks while Nix changes it does not count: it is read again.
func TestChangedWhileRead(t *testing.T) {
	n := newNix(t, "use-sqlite-wal = false")
	n.add("file", "hello\n")
	s := n.open()
	if s.db == nil || s.db.rest == nil {
		t.Fatal("it has locks")
	}
	var added nix.StorePath
	reads := 0
	found, err := read(t.Context(), s, func(d *database, _ uint64) (bool, error) {
		if reads++; reads == 1 {
			added = n.add("meanwhile", "meanwhile\n")
		}
		_, err := d.pathInfo(t.Context(), added.Hash())
		return err == nil, nil
	})
	if err != nil || !found || reads != 2 {
		t.Errorf("after %d reads: found %t, %v; want that the second finds it", reads, found, err)
	}

	// One that never rests is not read.
	changes := 0
	_, err = read(t.Context(), s, func(d *database, _ uint64) (bool, error) {
		changes++
		if err := os.Chtimes(n.dbPath(), s.db.opened, s.db.opened); err != nil {
			t.Error(err)
		}
		return true, nil
	})
	if !errors.Is(err, cache.ErrUnavailable) || changes != maxReads {
		t.Errorf("a database that changes all the time: %v after %d reads, want ErrUnavailable after %d", err, changes, maxReads)
	}
}

// A database whose newest changes are not in it yet is not read without locks, and the error says
// what to do. That helps.
func TestUnsavedChanges(t *testing.T) {
	n := newNix(t)
	path := n.add("file", "hello\n")
	// A copy that was made while Nix had it open.
	db := n.sqlite("")
	if _, err := db.Exec(`update ValidPaths set ultimate = 1`); err != nil {
		t.Fatal(err)
	}
	n.run("cp", n.dbPath(), n.dbPath()+"-wal", n.dir)
	db.Close()
	n.run("mv", n.dir+"/db.sqlite", n.dir+"/db.sqlite-wal", n.stateDir+"/db")
	for who, uid := range map[string]uint32{"root": 0, "nobody": nobody} {
		c := n.startChildAfter(t, uid, "DIR="+n.dir+mounts["read-only file system"])
		for _, want := range []string{"-wal has changes that are not in the database yet", "start nix-daemon", "nix-store --init"} {
			if !strings.Contains(c.first, want) {
				t.Errorf("%s: want %q in %q", who, want, c.first)
			}
		}
		if strings.Contains(c.first, "as root") {
			t.Errorf("%s is told to be root: %q", who, c.first)
		}
	}
	n.run("nix-store", "--init")
	c := n.startChildAfter(t, nobody, "DIR="+n.dir+mounts["read-only file system"])
	if got := c.ask("info " + path.Hash().String()); !strings.HasPrefix(got, path.String()+" ") {
		t.Errorf("after nix-store --init it says %q, %q", c.first, got)
	}
}

// What keeps this process from the daemon is called what it is, with what helps.
func TestDaemonErrors(t *testing.T) {
	// Something holds a lock, so that only the daemon can be asked.
	locked := func(t *testing.T, settings ...string) *nixStore {
		n := newNix(t, settings...)
		n.add("file", "hello\n")
		if err := os.Mkdir(n.dbPath()+".lock", 0o755); err != nil {
			t.Fatal(err)
		}
		return n
	}
	wants := func(t *testing.T, n *nixStore, uid uint32, want ...string) {
		t.Helper()
		c := n.startChild(t, uid)
		for _, want := range want {
			if !strings.Contains(c.first, want) {
				t.Errorf("want %q in %q", want, c.first)
			}
		}
		if strings.Contains(c.first, "as root") || strings.Contains(c.first, "does not answer") {
			t.Errorf("that is not what is wrong: %q", c.first)
		}
	}
	t.Run("none", func(t *testing.T) {
		n := locked(t, "use-sqlite-wal = false")
		wants(t, n, nobody, "use-sqlite-wal = false", "none runs: start nix-daemon", "another process uses it")
		wants(t, n, 0, "use-sqlite-wal = false", "none runs: start nix-daemon", "another process uses it")
	})
	t.Run("allowed-users", func(t *testing.T) {
		n := locked(t, "allowed-users = root")
		n.startDaemon()
		wants(t, n, nobody, "hung up at once", "allowed-users", "the user nobody", "restart nix-daemon")
	})
	t.Run("group", func(t *testing.T) {
		n := locked(t)
		n.startDaemon()
		dir := n.stateDir + "/daemon-socket"
		if err := errors.Join(os.Chmod(dir, 0o770), os.Chown(dir, 0, 1)); err != nil {
			t.Fatal(err)
		}
		wants(t, n, nobody, "permission denied: "+dir+" is for the group daemon: adduser nobody daemon, and restart firn")
	})
	t.Run("owner", func(t *testing.T) {
		n := locked(t)
		n.startDaemon()
		socket := n.stateDir + "/daemon-socket/socket"
		if err := os.Chmod(socket, 0o600); err != nil {
			t.Fatal(err)
		}
		wants(t, n, nobody, "permission denied: "+socket, "is not for the user nobody: chmod o+w "+socket)
	})
}

// So is what keeps it from the database.
func TestDeniedDatabase(t *testing.T) {
	n := newNix(t)
	n.add("file", "hello\n")
	dir := n.stateDir + "/db"
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if c := n.startChild(t, nobody); !strings.Contains(c.first, "permission denied: "+dir+" (drwx------) is not for the user nobody: chmod o+x "+dir) {
		t.Errorf("it says %q", c.first)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(n.dbPath(), 0o640), os.Chown(n.dbPath(), 0, 1)); err != nil {
		t.Fatal(err)
	}
	if c := n.startChild(t, nobody); !strings.Contains(c.first, "permission denied: "+n.dbPath()+" is for the group daemon: adduser nobody daemon, and restart firn") {
		t.Errorf("it says %q", c.first)
	}
}
