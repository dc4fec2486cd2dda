package localstore

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"firn/internal/cache"
	"firn/nix"
)

// nixStore is a store of real Nix in a directory of its own, readable for everybody.
type nixStore struct {
	t                     testing.TB
	dir, stateDir, logDir string
	storeDir              nix.StoreDir
}

// newNix makes an empty store, with further lines in its nix.conf.
// The programs of Nix have to be there: these tests are worth nothing without.
func newNix(t testing.TB, settings ...string) *nixStore {
	t.Helper()
	if _, err := exec.LookPath("nix-store"); err != nil {
		t.Fatalf("these tests need real Nix, which `make test` installs: %v", err)
	}
	// Not t.TempDir, which only its owner may enter. Short, for the sockets in it.
	dir, err := os.MkdirTemp("", "firn")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				os.Chmod(path, 0o755)
			}
			return nil
		})
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	n := &nixStore{
		t: t, dir: dir,
		stateDir: filepath.Join(dir, "var"), logDir: filepath.Join(dir, "log"),
		storeDir: nix.StoreDir(filepath.Join(dir, "store")),
	}
	settings = append(settings, "build-users-group =", "substituters =", "sandbox = false", "experimental-features = nix-command ca-derivations", "")
	n.write("etc/nix.conf", strings.Join(settings, "\n"))
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	n.run("nix-store", "--init")
	return n
}

// write writes a file into the directory of the store, and returns its path.
func (n *nixStore) write(name, text string) string {
	n.t.Helper()
	path := filepath.Join(n.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		n.t.Fatal(err)
	}
	return path
}

func (n *nixStore) environ() []string {
	return append(os.Environ(),
		"NIX_STORE_DIR="+string(n.storeDir), "NIX_STATE_DIR="+n.stateDir, "NIX_LOG_DIR="+n.logDir,
		"NIX_CONF_DIR="+filepath.Join(n.dir, "etc"), "NIX_REMOTE=", "HOME="+n.dir, "NIX_PATH=")
}

// run runs a program of Nix on the store and returns what it prints, less the final newline.
func (n *nixStore) run(name string, args ...string) string {
	n.t.Helper()
	out, err := n.try(name, args...)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

func (n *nixStore) try(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = n.environ()
	if len(args) > 0 && args[0] == "--store" { // which says where the store is, as the variables do
		cmd.Env = slices.DeleteFunc(cmd.Env, func(v string) bool {
			return strings.HasPrefix(v, "NIX_STORE_DIR=") || strings.HasPrefix(v, "NIX_STATE_DIR=") || strings.HasPrefix(v, "NIX_LOG_DIR=")
		})
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(append([]string{name}, args...), " "), err, stderr.String())
	}
	return strings.TrimSuffix(string(out), "\n"), nil
}

// add adds a file with the given text as a store path.
func (n *nixStore) add(name, text string) nix.StorePath {
	n.t.Helper()
	return n.path(n.run("nix-store", "--add", n.write("src/"+name, text)))
}

// addTree adds a directory as a store path: files by name.
func (n *nixStore) addTree(name string, files map[string]string) nix.StorePath {
	n.t.Helper()
	for file, text := range files {
		n.write(filepath.Join("src", name, file), text)
	}
	return n.path(n.run("nix-store", "--add", filepath.Join(n.dir, "src", name)))
}

func (n *nixStore) path(s string) nix.StorePath {
	n.t.Helper()
	path, err := n.storeDir.ParsePath(s)
	if err != nil {
		n.t.Fatal(err)
	}
	return path
}

// options open the store.
func (n *nixStore) options() Options {
	return Options{StoreDir: n.storeDir, StateDir: n.stateDir, LogDir: n.logDir}
}

// open opens the store until the test ends.
func (n *nixStore) open() *Store {
	n.t.Helper()
	return openStore(n.t, n.options())
}

func openStore(t testing.TB, opts Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// startDaemon runs a Nix daemon for the store until the test ends, or stop is called.
// It is given its socket as systemd does, so nobody has to wait for it.
// Stopping it leaves the connections there are: each has a process of its own, which ends with it.
func (n *nixStore) startDaemon() (stop func()) {
	n.t.Helper()
	socket := filepath.Join(n.stateDir, "daemon-socket/socket")
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		n.t.Fatal(err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		n.t.Fatal(err)
	}
	defer listener.Close()
	listener.SetUnlinkOnClose(false)
	if err := os.Chmod(socket, 0o666); err != nil {
		n.t.Fatal(err)
	}
	file, err := listener.File()
	if err != nil {
		n.t.Fatal(err)
	}
	defer file.Close()
	cmd := exec.Command("/bin/sh", "-c", "LISTEN_FDS=1 LISTEN_PID=$$ exec nix-daemon")
	cmd.Env = n.environ()
	cmd.ExtraFiles = []*os.File{file}
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait()
		os.Remove(socket)
	})
	n.t.Cleanup(stop)
	return stop
}

// The test binary serves as another process that has the store open, under another user or to be killed:
// with childEnv set it reads questions from its standard input, a line each, and writes answers.
const childEnv = "FIRN_LOCALSTORE_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if err := serveChild(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func serveChild(dir string) error {
	ctx := context.Background()
	storeDir := nix.StoreDir(filepath.Join(dir, "store"))
	s, err := Open(ctx, Options{
		StoreDir: storeDir, StateDir: filepath.Join(dir, "var"), LogDir: filepath.Join(dir, "log"), Roots: filepath.Join(dir, "roots"),
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		fmt.Println("cannot open:", err)
		return nil
	}
	defer s.Close()
	fmt.Println("ready")
	var opened cache.NAR
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		verb, arg, _ := strings.Cut(lines.Text(), " ")
		var hash nix.PathHash
		if arg == "nothing" {
			verb, arg = lines.Text(), ""
		}
		if arg != "" {
			if hash, err = nix.ParsePathHash(arg); err != nil {
				return err
			}
		}
		switch verb {
		case "info":
			info, err := s.PathInfo(ctx, hash)
			if err != nil {
				fmt.Println(err)
				continue
			}
			fmt.Println(info.Path, info.NARHash)
		case "open":
			info, err := s.PathInfo(ctx, hash)
			if err == nil {
				opened, err = s.OpenNAR(ctx, info)
			}
			fmt.Println("opened", err)
		case "send":
			err := opened.WriteRange(ctx, io.Discard, 0, opened.Size())
			fmt.Println("sent", err)
		case "close":
			opened.Close()
			s.roots.close() // as when the time of the epoch is over
			fmt.Println("closed")
		case "keep":
			info, err := s.PathInfo(ctx, hash)
			if err == nil {
				var done func()
				if done, err = s.Keep(ctx, info.Path); err == nil {
					done()
				}
			}
			fmt.Println("kept", err)
		case "keep nothing":
			fmt.Println("kept nothing", s.KeepOnly(ctx, func(context.Context) ([]nix.StorePath, error) { return nil, nil }))
		case "writable":
			fmt.Println(s.db != nil && s.db.writable)
		case "filter":
			fmt.Println(waitForFilter(s))
		}
	}
	return lines.Err()
}

// waitForFilter waits until the filter has all of the database as it is now.
func waitForFilter(s *Store) error {
	for {
		ready := false
		err := s.withDatabase(context.Background(), func(d *database, version uint64) {
			d.filter.mu.RLock()
			ready = d.filter.ready && d.filter.version == version
			d.filter.mu.RUnlock()
			if !ready {
				select {
				case d.filter.wake <- struct{}{}:
				default:
				}
			}
		})
		if err != nil || ready {
			return err
		}
		runtime.Gosched()
	}
}

// child is another process that has the store open.
type child struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Reader
	first string // what it said at first
}

// startChild starts one, as the user "nobody" if unprivileged.
func (n *nixStore) startChild(t *testing.T, uid uint32) *child {
	t.Helper()
	return n.startChildAfter(t, uid, "")
}

// startChildAfter starts one that sees the mounts which a script of root's makes, and no other
// process does.
func (n *nixStore) startChildAfter(t *testing.T, uid uint32, script string) *child {
	t.Helper()
	// The binary lies where only its owner may look for it.
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(n.dir, "child.test")
	if _, err := os.Stat(copied); err != nil {
		if err := os.WriteFile(copied, text, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if os.Getuid() != 0 {
		t.Fatal("this test has to be run as root, to be able to become another user")
	}
	id := strconv.Itoa(int(uid))
	c := &child{t: t, cmd: exec.Command("unshare", "--mount", "sh", "-euc", script+"\ncd /\nexec setpriv --reuid="+id+" --regid="+id+" --clear-groups "+copied)}
	c.cmd.Dir = n.dir
	c.cmd.Env = append(os.Environ(), childEnv+"="+n.dir)
	c.cmd.Stderr = os.Stderr
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.kill)
	c.first = c.line()
	return c
}

// nobody is the user id of nobody.
const nobody = 65534

func (c *child) line() string {
	c.t.Helper()
	s, err := c.out.ReadString('\n')
	if err != nil {
		c.t.Fatalf("the other process ended: %v", err)
	}
	return strings.TrimSuffix(s, "\n")
}

// ask asks one question.
func (c *child) ask(question string) string {
	c.t.Helper()
	if _, err := io.WriteString(c.in, question+"\n"); err != nil {
		c.t.Fatal(err)
	}
	return c.line()
}

// kill kills the process, as a crash does.
func (c *child) kill() {
	if c.cmd.ProcessState == nil {
		c.cmd.Process.Kill()
		c.in.Close()
		c.cmd.Wait()
	}
}

// input is run with text on the standard input.
func (n *nixStore) input(text, name string, args ...string) {
	n.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = n.environ()
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		n.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// tempRoots returns the names of the files of temporary roots.
func (n *nixStore) tempRoots() []string {
	n.t.Helper()
	entries, err := os.ReadDir(filepath.Join(n.stateDir, "temproots"))
	if err != nil {
		n.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func textLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
