//go:build programs

package localstore

import (
	"bufio"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"firn/nix"
)

// addTree adds a directory as a store path: files by name.
func (n *nixStore) addTree(name string, files map[string]string) nix.StorePath {
	n.t.Helper()
	for file, text := range files {
		n.write(filepath.Join("src", name, file), text)
	}
	return n.path(n.run("nix-store", "--add", filepath.Join(n.dir, "src", name)))
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
