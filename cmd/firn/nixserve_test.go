//go:build programs

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"firn/internal/nixserve"
)

// A nixServeTester has a store with one path, and a key, that only this user may read.
type nixServeTester struct {
	*testing.T
	dir  string // everybody may enter
	path string // in the store
	port string
	url  string
	vars []string // of all its programs
}

func newNixServe(t *testing.T, vars ...string) *nixServeTester {
	t.Helper()
	needNix(t)
	dir, err := os.MkdirTemp("", "nix-serve")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // the user that is changed to reads the store
		t.Fatal(err)
	}
	n := &nixServeTester{T: t, dir: dir, port: freePort(t), vars: vars}
	n.url = "http://127.0.0.1:" + n.port
	n.path = n.add("snow")
	n.must("nix-store", "--generate-binary-cache-key", "demo-1", n.at("secret"), n.at("public"))
	return n
}

func (n *nixServeTester) at(name string) string { return filepath.Join(n.dir, name) }

// add adds a file to the store.
func (n *nixServeTester) add(name string) string {
	n.Helper()
	file := filepath.Join(n.TempDir(), name)
	if err := os.WriteFile(file, []byte(name+"\n"), 0o600); err != nil {
		n.Fatal(err)
	}
	return strings.TrimSpace(n.must("nix-store", "--store", n.at("root"), "--add", file))
}

func (n *nixServeTester) command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(n.Context(), name, args...)
	cmd.Env = environment(n.T, append(n.vars, "NIX_REMOTE=local?root="+n.at("root"), "NIX_SECRET_KEY_FILE="+n.at("secret"))...)
	cmd.Dir = n.dir
	return cmd
}

func (n *nixServeTester) must(name string, args ...string) string {
	n.Helper()
	cmd := n.command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		n.Fatalf("%s: %v\n%s", cmd, err, &stderr)
	}
	return string(out)
}

// mustFail runs nix-serve, which is to say that line and nothing else.
func (n *nixServeTester) mustFail(want string, args ...string) {
	n.Helper()
	out, err := n.command(nixserve.Name, args...).CombinedOutput()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || !strings.HasPrefix(string(out), want) || strings.Count(string(out), "\n") != 1 {
		n.Errorf("nix-serve %q: %v, it says\n%swant one line, %q", args, err, out, want)
	}
}

// pid returns the process that a pid file names, and ends it with the test.
func (n *nixServeTester) pid(path string) int {
	n.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		n.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() {
		if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && bytes.Contains(line, []byte(nixserve.Name)) {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	return pid
}

// waitEnd waits until a process that is no child of this one has ended.
func (n *nixServeTester) waitEnd(pid int) {
	n.Helper()
	for syscall.Kill(pid, 0) == nil {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-n.Context().Done():
			n.Fatalf("process %d goes on", pid)
		}
	}
}

// other returns the flags that change to another user, and that user: nobody where root runs the tests, else nobody else.
func (n *nixServeTester) other() (flags []string, uid, gid int) {
	n.Helper()
	if os.Geteuid() != 0 {
		return nil, os.Getuid(), os.Getgid()
	}
	u, err := nixserve.FindUser("nobody", "")
	if err != nil {
		n.Fatal(err)
	}
	return []string{"--user", "nobody"}, u.UID, u.GID
}

// The line that the tutorials have does what it does with nix-serve: in the background, as another user, who may read neither the key nor, alone, the database.
func TestNixServeDaemon(t *testing.T) {
	n := newNixServe(t)
	errorLog, pidFile := n.at("nix-serve.log"), n.at("nix-serve.pid")
	user, uid, gid := n.other()
	args := append([]string{"--listen", ":" + n.port, "--error-log", errorLog, "--pid", pidFile, "--daemonize", "--workers", "5"}, user...)
	if out := n.must(nixserve.Name, args...); out != "" {
		t.Errorf("it prints %q", out)
	}
	pid := n.pid(pidFile) // is there when the command has returned, and so is the server
	hash := filepath.Base(n.path)[:32]
	if got := get(t, http.DefaultClient, n.url+"/"+hash+".narinfo"); !strings.Contains(got, "\nSig: demo-1:") {
		t.Errorf("the narinfo is not signed:\n%s", got)
	}
	get(t, http.DefaultClient, "http://[::1]:"+n.port+"/nix-cache-info")

	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("process %d has no threads: %v", pid, err)
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if errors.Is(err, os.ErrNotExist) {
			continue // it has just ended
		}
		for _, want := range []string{fmt.Sprintf("\nUid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", uid), fmt.Sprintf("\nGid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", gid)} {
			if err != nil || !strings.Contains(string(text), want) {
				t.Errorf("no %q in %s: %v\n%s", want, task, err, text)
			}
		}
	}
	if log, err := os.ReadFile(errorLog); err != nil || !strings.Contains(string(log), "msg=serving") || !strings.Contains(string(log), "flags=[--workers]") {
		t.Errorf("the log holds %q, %v", log, err)
	}

	// What Nix adds now is served, signatures are right, and clients of both URLs get it.
	added := n.add("later")
	public, err := os.ReadFile(n.at("public"))
	if err != nil {
		t.Fatal(err)
	}
	n.must("nix", "--extra-experimental-features", "nix-command", "copy", "--from", n.url, "--to", n.at("other"),
		"--option", "trusted-public-keys", string(public), added, n.path)
	if text, err := os.ReadFile(n.at("other") + added); err != nil || string(text) != "later\n" {
		t.Errorf("what was copied holds %q, %v", text, err)
	}

	n.mustFail(fmt.Sprintf("firn: write pid file %s: process %d of that file is running; ", pidFile, pid), args...)
	n.mustFail("firn: listen on :"+n.port+": address already in use; ", "--listen", ":"+n.port, "--daemonize", "--pid", n.at("second.pid"))
	if _, err := os.Lstat(n.at("second.pid")); err == nil {
		t.Error("a start that failed left a pid file")
	}

	if user != nil { // what the user could have put there leads to no file of root's
		if err := os.Symlink(n.at("secret"), n.at("link")); err != nil {
			t.Fatal(err)
		}
		n.mustFail("firn: open log: open "+n.at("link")+": too many levels of symbolic links; no link is followed", append([]string{"--access-log", n.at("link")}, user...)...)
		for path, want := range map[string]int{n.at("secret"): 0, errorLog: uid} {
			if info, err := os.Stat(path); err != nil || int(info.Sys().(*syscall.Stat_t).Uid) != want {
				t.Errorf("%s is not of user %d: %v, %v", path, want, info, err)
			}
		}
	}

	// The directory is root's: the file of a process that is not becomes empty. Where it may, it is removed.
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	n.waitEnd(pid)
	text, err := os.ReadFile(pidFile)
	if user != nil && (err != nil || len(text) > 0) || user == nil && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("at the end the pid file holds %q, %v", text, err)
	}
	if err := errors.Join(os.Mkdir(n.at("run"), 0o755), os.Chown(n.at("run"), uid, gid), os.Chmod(n.at("public"), 0o644)); err != nil {
		t.Fatal(err)
	}
	args[5] = n.at("run/pid")
	n.must(nixserve.Name, args...)
	pid = n.pid(args[5])
	if err := syscall.Kill(pid, syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	n.waitEnd(pid)
	if _, err := os.Lstat(args[5]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pid file is still there: %v", err)
	}
}

// The Nix daemon takes it for the user that it has become, also where it asked the daemon before, as root.
func TestNixServeAtDaemon(t *testing.T) {
	n := newNixServe(t, "NIX_CONFIG=use-sqlite-wal = false") // such a database is not read: the daemon is asked for everything
	user, uid, _ := n.other()
	if user == nil {
		return // it becomes nobody else
	}
	socket := n.at("root/nix/var/nix/daemon-socket/socket")
	daemon := n.command("nix-daemon")
	daemon.Env = append(daemon.Env, "NIX_DAEMON_SOCKET_PATH="+socket)
	log := newLogBuffer()
	daemon.Stderr, daemon.WaitDelay = log, time.Second // its children have that, too
	if err := errors.Join(os.MkdirAll(filepath.Dir(socket), 0o755), daemon.Start()); err != nil {
		t.Fatal(err)
	}
	defer daemon.Wait()
	defer daemon.Process.Kill()
	waitForSocket(t, socket)
	n.must(nixserve.Name, append([]string{"-D", "--listen", "127.0.0.1:" + n.port, "--pid", n.at("pid")}, user...)...)
	pid := n.pid(n.at("pid"))
	log.wait(t, fmt.Sprintf("accepted connection from pid %d, user root", pid))
	get(t, http.DefaultClient, n.url+"/"+filepath.Base(n.path)[:32]+".narinfo")
	if want := fmt.Sprintf("accepted connection from pid %d, user nobody", pid); !strings.Contains(log.String(), want) {
		t.Errorf("a narinfo was asked for by another user than %d:\n%s", uid, log)
	}
}

// Which files of a certificate the user cannot read again is said at the start, and not when the certificate has run out.
func TestNixServeUnreadableKey(t *testing.T) {
	n := newNixServe(t)
	user, _, _ := n.other()
	n.must("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30", "-subj", "/CN=server", "-keyout", n.at("key"), "-out", n.at("cert"))
	if err := errors.Join(os.Chmod(n.at("key"), 0o600), os.Chmod(n.at("cert"), 0o644)); err != nil {
		t.Fatal(err)
	}
	n.must(nixserve.Name, append([]string{"-D", "--listen", "127.0.0.1:" + n.port + ":ssl", "--ssl-cert", n.at("cert"), "--ssl-key", n.at("key"), "--error-log", n.at("log"), "--pid", n.at("pid")}, user...)...)
	n.pid(n.at("pid"))
	log, err := os.ReadFile(n.at("log"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"key": user != nil, "cert": false} {
		if got := regexp.MustCompile(`level=WARN .* file=` + n.at(name) + ` `).Match(log); got != want {
			t.Errorf("a warning of %s: %t, want %t\n%s", name, got, want, log)
		}
	}
}

// waitForSocket waits until somebody listens at a Unix socket.
func waitForSocket(t *testing.T, path string) {
	t.Helper()
	for {
		conn, err := net.Dial("unix", path)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal(err)
		}
	}
}

// The logs of a server that may not write to their directory are rotated as docs/moving-from-nix-serve.md has it, by logrotate itself.
func TestNixServeRotation(t *testing.T) {
	n := newNixServe(t)
	user, _, _ := n.other()
	n.must(nixserve.Name, append([]string{"-D", "--listen", "127.0.0.1:" + n.port, "--error-log", n.at("nix-serve.log"), "--access-log", n.at("nix-serve-access.log"), "--pid", n.at("nix-serve.pid")}, user...)...)
	pid := n.pid(n.at("nix-serve.pid"))
	get(t, http.DefaultClient, n.url+"/nix-cache-info")
	waitFor(t, n.at("nix-serve-access.log"), func(text string) bool { return strings.Contains(text, "GET /nix-cache-info HTTP/1.1") })

	conf := documentedRotation(t, "moving-from-nix-serve.md", "/var/log/", n.dir+"/", "/var/run/", n.dir+"/")
	if out, err := logrotate(t, conf, "--force").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// What is asked for until the signal has arrived is in the old file.
	for access := n.at("nix-serve-access.log"); ; {
		get(t, http.DefaultClient, n.url+"/version")
		if text, err := os.ReadFile(access); err == nil && strings.Contains(string(text), "GET /version") {
			break
		}
		if t.Context().Err() != nil {
			t.Fatal("nothing is in the new file")
		}
		time.Sleep(50 * time.Millisecond)
	}
	if text, err := os.ReadFile(n.at("nix-serve.log.1")); err != nil || !strings.Contains(string(text), "msg=serving") {
		t.Errorf("the rotated log holds %q, %v", text, err)
	}
	if err := syscall.Kill(pid, syscall.SIGHUP); err != nil { // likewise, and no end
		t.Fatal(err)
	}
	get(t, http.DefaultClient, n.url+"/version")
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	n.waitEnd(pid)
}

// What clients of nix-serve ask for is answered as it answers, and better where it is wrong.
func TestNixServeURLs(t *testing.T) {
	n := newNixServe(t)
	const drv = "00000000000000000000000000000000-a.drv"
	logs := n.at("root/nix/var/log/nix/drvs/00")
	if err := errors.Join(os.MkdirAll(logs, 0o755), os.WriteFile(filepath.Join(logs, drv[2:]), []byte("built\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	socket := n.at("s")
	s := n.command("firn", "nix-serve", "--listen", "127.0.0.1:"+n.port, "-l", socket, "--priority", "7", "--access-log", "/dev/stderr")
	log := newLogBuffer()
	s.Stderr = log
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	defer s.Wait()
	defer s.Process.Kill()
	log.wait(t, "address="+socket)

	dump := n.must("nix-store", "--store", n.at("root"), "--dump", n.at("root")+n.path)
	hash := filepath.Base(n.path)[:32]
	narinfo := n.must("curl", "--silent", "--fail", n.url+"/"+hash+".narinfo")
	_, url, _ := strings.Cut(narinfo, "\nURL: ")
	url, _, _ = strings.Cut(url, "\n")
	if !strings.HasPrefix(url, "nar/"+hash+"-") || !strings.HasSuffix(url, ".nar") {
		t.Fatalf("the URL of the NAR is %q", url)
	}
	for _, path := range []string{"/nar/" + hash + ".nar", "/" + url} {
		if got := n.must("curl", "--silent", "--fail", n.url+path); got != dump {
			t.Errorf("%s is not the NAR", path)
		}
		if got := n.must("curl", "--silent", "--fail", "--head", n.url+path); !strings.Contains(got, fmt.Sprintf("\r\nContent-Length: %d\r\n", len(dump))) {
			t.Errorf("HEAD %s says\n%s", path, got)
		}
	}
	for path, want := range map[string]string{
		"/nix-cache-info": "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 7\n200",
		"/log/" + drv:     "built\n200",
		"/log/" + strings.Replace(drv, "-a", "-b", 1):           "404", // nix-serve says 200 with an empty log
		"/nar/" + hash + "-" + strings.Repeat("0", 52) + ".nar": "404",
		"/nar/" + strings.Repeat("0", 32) + ".nar":              "404",
		"/" + strings.Repeat("0", 32) + ".narinfo":              "404",
	} {
		got := n.must("curl", "--silent", "--write-out", "%{http_code}", n.url+path)
		if !strings.HasSuffix(got, want) || want != "404" && got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	if got := n.must("curl", "--silent", "--fail", "--unix-socket", socket, "http://x/nix-cache-info"); !strings.HasPrefix(got, "StoreDir: ") {
		t.Errorf("over the socket: %q", got)
	}
	log.wait(t, `"GET /log/`+drv+` HTTP/1.1" 200 6 "-" "curl/`)
	if err := s.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := s.Wait(); err != nil {
		t.Errorf("%v\n%s", err, log)
	}
}

// Without a key nothing is signed, and none is made. A key that is wrong is no key.
func TestNixServeWithoutKey(t *testing.T) {
	n := newNixServe(t)
	cmd := n.command(nixserve.Name, "-p", n.port, "--host", "127.0.0.1", "--daemonize", "--pid", n.at("pid"))
	cmd.Env = environment(t, "NIX_REMOTE="+n.at("root"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	pid := n.pid(n.at("pid"))
	if got := get(t, http.DefaultClient, n.url+"/"+filepath.Base(n.path)[:32]+".narinfo"); strings.Contains(got, "\nSig:") {
		t.Errorf("somebody signed it:\n%s", got)
	}
	if err := syscall.Kill(pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	n.waitEnd(pid)

	if err := os.WriteFile(n.at("secret"), []byte("no key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.mustFail("firn: read signing key "+n.at("secret")+": ", "--daemonize", "--port", n.port)
	n.mustFail("firn: open log: ", "--daemonize", "--error-log", n.at("no/log"))
	n.mustFail("firn: find user no-such-user: ", "--user", "no-such-user")
	if got := n.must(nixserve.Name, "--version"); !strings.HasPrefix(got, "firn ") {
		t.Errorf("its version is %q", got)
	}
}
