package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"firn/nix"
)

// A storeHost is a machine whose server serves its own store and keeps what is pushed.
type storeHost struct {
	*machine
	as []string // what runs a command as the user of the server
	*server
	token string
}

// newStoreHosts are hosts whose servers run as root, without a daemon, and as nobody, with one.
var newStoreHosts = map[string]func(t *testing.T, n nixSystem) *storeHost{
	"as root": func(t *testing.T, n nixSystem) *storeHost { return &storeHost{machine: newMachine(t, n)} },
	"as nobody": func(t *testing.T, n nixSystem) *storeHost {
		h := &storeHost{machine: newMachine(t, n)}
		startDaemon(h.machine)
		const nobody = 65534
		id := fmt.Sprint(nobody)
		h.as = []string{"setpriv", "--reuid", id, "--regid", id, "--clear-groups"}
		state := filepath.Join(h.dir, "state")
		if err := os.Mkdir(state, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(state, nobody, nobody); err != nil {
			t.Fatal(err)
		}
		return h
	},
}

// firn is a command line of a command on the state of the server.
func (h *storeHost) firn(command string, args ...string) []string {
	line := append(append([]string{}, h.as...), firnPath)
	line = append(line, strings.Fields(command)...)
	return append(append(line, "--state", filepath.Join(h.dir, "state")), args...)
}

// start starts the server, and makes a token when it is the first time.
func (h *storeHost) start(args ...string) {
	h.machine.t.Helper()
	h.server = startServer(h.machine, h.firn("serve", args...)...)
	if h.token == "" {
		h.token = tokenText.FindString(h.run(h.firn("token create", "--push", "main", "ci")...))
	}
}

// startOther starts another process on the state of the server, and returns the URL of its socket.
func (h *storeHost) startOther() (url string) {
	t := h.machine.t
	t.Helper()
	socket := filepath.Join(h.dir, "state/main.sock")
	ctx, cancel := context.WithCancel(context.Background())
	daemon := h.command(ctx, h.firn("daemon", "--socket", socket)...)
	logs := &lockedBuffer{}
	daemon.Stderr = logs
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if daemon.Wait(); daemon.ProcessState.ExitCode() != 0 {
			t.Errorf("firn daemon did not end well: %v\n%s", daemon.ProcessState, logs)
		}
	})
	eventually(t, "the socket is there", func() bool { _, err := os.Stat(socket); return err == nil })
	return "unix://" + socket
}

// restart ends the server and starts it again.
func (h *storeHost) restart() {
	t := h.machine.t
	t.Helper()
	if err := syscall.Kill(h.pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server ends", func() bool {
		res, err := h.get("nix-cache-info")
		if err == nil {
			res.Body.Close()
		}
		return err != nil
	})
	h.start()
}

// collect collects the garbage of the machine.
func (h *storeHost) collect() { h.run("nix-store", "--gc") }

// has reports whether the store of the machine has a path.
func (h *storeHost) has(p nix.StorePath) bool {
	_, err := os.Lstat(h.path(p.String()))
	return err == nil
}

// wantStatus checks what is answered to a URL.
func (h *storeHost) wantStatus(what, url string, want int) {
	t := h.machine.t
	t.Helper()
	if got, body := fetch(t, h.client, h.url+"/"+url); got != want {
		t.Errorf("%s: %s is answered with %d %.80q, want %d\n%s", what, url, got, body, want, h.errors)
	}
}

// wantPaths checks which paths are announced.
func (h *storeHost) wantPaths(what string, want int, paths ...nix.StorePath) {
	h.machine.t.Helper()
	for _, p := range paths {
		h.wantStatus(what, p.Hash().String()+".narinfo", want)
	}
}

// buildOn builds something on a machine that has the given text and refers to these paths.
func buildOn(m *machine, name, text string, refs ...nix.StorePath) nix.StorePath {
	m.t.Helper()
	var paths strings.Builder
	for _, ref := range refs {
		fmt.Fprintf(&paths, "(builtins.storePath %s) ", ref)
	}
	expr := m.write(name+".nix", fmt.Sprintf(`derivation {
  name = %q;
  system = builtins.currentSystem;
  builder = "/bin/sh";
  refs = [ %s ];
  args = [ "-c" "echo %s $refs >$out" ];
}`, name, &paths, text))
	p, err := nix.DefaultStoreDir.ParsePath(m.run("nix-build", "--no-out-link", expr))
	if err != nil {
		m.t.Fatal(err)
	}
	return p
}

func (h *storeHost) push(from *machine, paths ...nix.StorePath) {
	h.machine.t.Helper()
	line := []string{"nix", "copy", "--to", h.url, "--option", "narinfo-cache-positive-ttl", "0"} // it asks for what it was told before
	for _, p := range paths {
		line = append(line, p.String())
	}
	from.run(line...)
}

// wantFetched checks that a new client gets a path with all that it refers to.
func (h *storeHost) wantFetched(n nixSystem, p nix.StorePath) {
	t := h.machine.t
	t.Helper()
	m := newMachine(t, n)
	if _, err := m.try(append([]string{"nix-store", "--realise", p.String()}, h.trust()...)...); err != nil {
		t.Errorf("a client cannot fetch %s: %v\n%s", p, err, h.errors)
	}
}

// A pushed path may refer to one that only the store of the server has: that is kept for as long as
// the pushed one is there. When it is gone all the same, nothing that leads to it is announced,
// until it is there again.
func TestPushedClosure(t *testing.T) {
	t.Parallel()
	for name, newHost := range newStoreHosts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			withNixes(t, []nixSystem{systemNix(), newestNix()}, func(t *testing.T, n nixSystem) { pushedClosure(newHost(t, n)) })
		})
	}
}

func pushedClosure(h *storeHost) {
	t, n := h.machine.t, h.nix
	lib, other := add(h.machine, "lib", 100_000), add(h.machine, "other", 100)
	h.start()
	client := newMachine(t, n)
	login(client, h.token)
	if got := add(client, "lib", 100_000); got != lib {
		t.Fatalf("the client has %s, the server %s", got, lib)
	}
	app := buildOn(client, "app", "app", lib)
	top := buildOn(client, "top", "top", app)
	id := "sha256:" + strings.Repeat("0", 64) + "!out"
	realisation := "realisations/" + id + ".doi"

	// Everything but lib is pushed.
	h.push(client, top)
	if err := put(newClient(t), h.url+"/"+realisation, h.token,
		fmt.Appendf(nil, `{"id":%q,"outPath":%q,"signatures":[],"dependentRealisations":{}}`, id, app.Base())); err != nil {
		t.Fatal(err)
	}
	if out := h.run(h.firn("path list")...); strings.Contains(out, lib.Base()) || !strings.Contains(out, app.Base()) {
		t.Errorf("the pushed path is\n%s", out)
	}
	h.collect()
	if !h.has(lib) || h.has(other) {
		t.Errorf("after a collection, the store has lib: %t, other: %t", h.has(lib), h.has(other))
	}
	h.wantPaths("after a collection", http.StatusOK, lib, app, top)
	h.wantFetched(n, top)
	h.restart()
	h.collect()
	h.wantPaths("after a restart", http.StatusOK, lib, app, top)
	h.run(h.firn("verify")...)
	socket := h.startOther()

	// The root is removed by hand.
	info, err := h.narInfo(app)
	if err != nil {
		t.Fatal(err)
	}
	lose := func() {
		t.Helper()
		eventually(t, "lib is collected", func() bool { // the server may just make sure of its roots
			for _, dir := range []string{h.path("/nix/var/nix/gcroots/firn-*"), filepath.Join(h.dir, "state/gcroots")} {
				links, _ := filepath.Glob(filepath.Join(dir, "*-lib"))
				for _, link := range links {
					if err := os.Remove(link); err != nil {
						t.Fatal(err)
					}
				}
			}
			h.collect()
			return !h.has(lib)
		})
		h.wantPaths("with lib gone", http.StatusNotFound, lib, app, top)
		h.wantStatus("with lib gone", realisation, http.StatusNotFound)
		client.refused([]string{"is not valid"}, "nix", "path-info", "--store", socket, top.String())
	}
	h.wantStatus("before", realisation, http.StatusOK)
	lose()
	h.wantStatus("for clients that remember it", info.URL, http.StatusOK)
	if log := h.errors.String(); !strings.Contains(log, lib.String()) || !strings.Contains(log, app.String()) {
		t.Errorf("the log says\n%s", log)
	}
	for _, p := range []nix.StorePath{app, top} {
		h.refused([]string{p.Base() + " in cache main: not announced, as " + lib.String() + " is gone"}, "sh", "-c", strings.Join(h.firn("verify"), " ")+" >&2")
	}
	_, err = h.try(h.firn("export", filepath.Join(h.dir, "state/exported"))...)
	if err == nil || !strings.Contains(err.Error(), app.Base()) {
		t.Errorf("firn export: %v", err)
	}

	// It comes back to the store, and goes again.
	add(h.machine, "lib", 100_000)
	h.wantPaths("with lib back in the store", http.StatusOK, lib, app, top)
	h.wantStatus("with lib back in the store", realisation, http.StatusOK)
	lose()

	// It is pushed.
	h.push(client, top)
	h.wantPaths("with lib pushed", http.StatusOK, lib, app, top)
	h.wantStatus("with lib pushed", realisation, http.StatusOK)
	h.wantFetched(n, top)
	h.run(h.firn("verify")...)

	// firn does not keep a path that nothing refers to any more. The other process has pushed that.
	more := add(h.machine, "more", 1000)
	add(client, "more", 1000)
	last := buildOn(client, "last", "last", more)
	client.run("nix", "copy", "--to", socket, last.String())
	h.collect()
	h.wantPaths("before it is deleted", http.StatusOK, lib, app, top, more, last)
	h.run(h.firn("path delete", last.String())...)
	h.restart()
	eventually(t, "what nothing refers to is collected", func() bool {
		h.collect()
		return !h.has(more)
	})
}

// If firn cannot make a root, it copies the references of a pushed path into the depot.
func TestPushedClosureWithoutRoots(t *testing.T) {
	t.Parallel()
	n := newestNix()
	h := newStoreHosts["as nobody"](t, n)
	base, lib := add(h.machine, "base", 50_000), nix.StorePath{}
	lib = buildOn(h.machine, "lib", "lib", base)
	// The daemon does not see the directory for roots.
	roots := filepath.Join(h.dir, "state/gcroots")
	h.run(append(append([]string{}, h.as...), "mkdir", roots)...)
	h.as = append([]string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs -o mode=777 tmpfs ` + roots + ` && exec "$@"`, "sh"}, h.as...)
	h.start()
	client := newMachine(t, n)
	login(client, h.token)
	add(client, "base", 50_000)
	if got := buildOn(client, "lib", "lib", base); got != lib {
		t.Fatalf("the client has %s, the server %s", got, lib)
	}
	app := buildOn(client, "app", "app", lib)
	h.push(client, app)
	if log := h.errors.String(); !strings.Contains(log, "copied into the depot") {
		t.Errorf("the log says\n%s", log)
	}
	h.restart() // which ends the protection of the copied path
	h.collect()
	if h.has(lib) {
		t.Errorf("%s was kept", lib)
	}
	h.wantPaths("after a collection", http.StatusOK, base, lib, app)
	h.wantFetched(n, app)
	h.run(h.firn("verify")...)
}
