package nixserve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The tests run this program again, as what these variables say.
const (
	roleVariable  = "PROCESS_TEST_ROLE"
	whereVariable = "PROCESS_TEST_WHERE"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		if err := play(role, os.Getenv(whereVariable)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// play is what the program does when a test runs it.
func play(role, where string) error {
	starter := Started()
	switch {
	case role == "lock":
		_, err := WritePID(where, "x")
		return err
	case role == "assume":
		u, err := FindUser("nobody", "")
		if err == nil {
			err = u.Assume()
		}
		if err == nil {
			fmt.Print(threadIDs())
		}
		return err
	case starter == nil:
		return Detach(context.Background())
	case role == "holds":
		// What was given by number can be read until it is ready.
		text, err := os.ReadFile("/dev/fd/4")
		if err == nil {
			err = os.WriteFile(where, text, 0o600)
		}
		if err != nil {
			starter.Failed(err)
			return err
		}
		if err := starter.Ready(); err != nil {
			return err
		}
		for range 1000 {
			if _, err := os.Stat(where); err != nil {
				return nil
			}
			time.Sleep(10 * time.Millisecond)
		}
		return errors.New("it was not told to end")
	case role == "fails":
		starter.Failed(errors.New("two\nlines"))
		return nil
	case role == "dies":
		os.Exit(7)
	}
	// What a daemon is, for the test to read.
	text := fmt.Sprintf("%d %d %t %s", os.Getpid(), os.Getppid(), os.Getenv(pipeVariable) == "", os.Args[0])
	if sid, _, errno := syscall.RawSyscall(syscall.SYS_GETSID, 0, 0, 0); errno != 0 || int(sid) != os.Getpid() {
		text += " no session"
	}
	if err := os.WriteFile(where, []byte(text), 0o600); err != nil {
		return err
	}
	if err := starter.Ready(); err != nil {
		return err
	}
	// It goes on when its starter has ended.
	for range 1000 {
		if os.Getppid() != ppid(text) {
			return os.WriteFile(where, []byte(text+" alone"), 0o600)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("the starter goes on")
}

func ppid(text string) int {
	n, _ := strconv.Atoi(strings.Fields(text)[1])
	return n
}

// threadIDs returns the Uid and Gid lines of all threads.
func threadIDs() string {
	var b strings.Builder
	tasks, _ := os.ReadDir("/proc/self/task")
	for _, task := range tasks {
		text, _ := os.ReadFile("/proc/self/task/" + task.Name() + "/status")
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "Uid:") || strings.HasPrefix(line, "Gid:") || strings.HasPrefix(line, "Groups:") || strings.HasPrefix(line, "CapEff:") {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

// run runs this program in a role.
func run(t *testing.T, role, where string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+role, whereVariable+"="+where)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// A daemon goes on when the command that started it has returned, in a session of its own.
func TestDetach(t *testing.T) {
	where := filepath.Join(t.TempDir(), "where")
	if _, stderr, err := run(t, "daemon", where); err != nil {
		t.Fatalf("%v\n%s", err, stderr)
	}
	for {
		text, err := os.ReadFile(where)
		if err != nil {
			t.Fatalf("the command returned before the daemon was ready: %v", err)
		}
		if strings.HasSuffix(string(text), " alone") {
			if want := "true " + os.Args[0] + " alone"; !strings.HasSuffix(string(text), want) {
				t.Errorf("it says %q, want an end of %q", text, want)
			}
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// A daemon keeps nothing open of what was open where it was started; it can be given files in this way all the same.
func TestDetachInherits(t *testing.T) {
	where := filepath.Join(t.TempDir(), "where")
	key, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ours, held, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"=holds", whereVariable+"="+where)
	cmd.ExtraFiles = []*os.File{held, key, held}
	if _, err := theirs.WriteString("secret"); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	out, err := cmd.CombinedOutput()
	key.Close()
	held.Close()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	defer os.Remove(where) // ends it
	if text, err := os.ReadFile(where); err != nil || string(text) != "secret" {
		t.Errorf("it read %q, %v", text, err)
	}
	if err := ours.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := ours.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the pipe is open yet: %d, %v", n, err)
	}
}

// Why a daemon did not come up is said by the command.
func TestDetachFails(t *testing.T) {
	for role, want := range map[string]string{
		"fails": "two\nlines\n",
		"dies":  "run in the background: it ended before it was ready: exit status 7\n",
	} {
		_, stderr, err := run(t, role, "")
		if err == nil || stderr != want {
			t.Errorf("%s: %v, it says %q, want %q", role, err, stderr, want)
		}
	}
}

// A copied environment makes nobody a daemon.
func TestNotStarted(t *testing.T) {
	t.Setenv(pipeVariable, "1")
	if Started() != nil {
		t.Error("a process that nobody has started believes that somebody did")
	}
	var none *Starter
	if err := none.Ready(); err != nil {
		t.Error(err)
	}
	none.Failed(errors.New("x"))
}

func TestPIDFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	dead := exec.CommandContext(t.Context(), "true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	for _, left := range []string{"", strconv.Itoa(dead.Process.Pid) + "\n", "no number", "1\n" /* runs, and is no server */, "-1"} {
		if err := os.WriteFile(path, []byte(left), 0o600); err != nil {
			t.Fatal(err)
		}
		p := mustWrite(t, path)
		if text, err := os.ReadFile(path); err != nil || string(text) != fmt.Sprintf("%d\n", os.Getpid()) {
			t.Errorf("after %q it holds %q, %v", left, text, err)
		}
		_, stderr, err := run(t, "lock", path)
		if want := fmt.Sprintf("process %d of that file is running; end it first", os.Getpid()); err == nil || !strings.Contains(stderr, want) {
			t.Errorf("a second process: %v\n%swant %q", err, stderr, want)
		}
		if err := p.Remove(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); err == nil {
			t.Error("it is still there")
		}
	}
	if err := (*PIDFile)(nil).Remove(); err != nil {
		t.Error(err)
	}
}

// The file of a program that takes no lock, as nix-serve itself, counts while the program runs.
func TestPIDFileOfOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	other := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Wait()
	defer other.Process.Kill()
	for { // Start returns within its execve, a moment before the kernel knows the arguments
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", other.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		if len(line) > 0 {
			break
		}
	}
	if err := os.WriteFile(path, fmt.Appendf(nil, "%d\n", other.Process.Pid), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := WritePID(path, "starman", "sleep"); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d of that file is running", other.Process.Pid)) {
		t.Errorf("%v, want that it runs", err)
	}
	if err := mustWrite(t, path).Remove(); err != nil {
		t.Error(err)
	}
}

func TestPIDFileErrors(t *testing.T) {
	dir := t.TempDir()
	link, target := filepath.Join(dir, "link"), filepath.Join(dir, "target")
	hard, pipe := filepath.Join(dir, "hard"), filepath.Join(dir, "pipe")
	if err := errors.Join(os.Symlink(target, link), os.WriteFile(target, []byte("keep"), 0o600), os.Link(target, hard), syscall.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		link: "is a symbolic link; name the file itself", dir + "/no/pid": "make its directory first", dir: "is a directory",
		hard: "has another name as well, by a hard link", pipe: "is no regular file", os.DevNull: "is no regular file",
	} {
		if _, err := WritePID(path, "x"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if text, _ := os.ReadFile(target); string(text) != "keep" {
		t.Errorf("what the link leads to holds %q", text)
	}
}

func mustWrite(t *testing.T, path string) *PIDFile {
	t.Helper()
	p, err := WritePID(path, "some program")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestFindUser(t *testing.T) {
	for _, test := range []struct{ user, group, want string }{
		{"no-such-user", "", "find user no-such-user: user: unknown user no-such-user"},
		{"", "no-such-group", "find group no-such-group: group: unknown group no-such-group"},
		{"4000000", "", "find user 4000000: "},
	} {
		if _, err := FindUser(test.user, test.group); err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%+v: %v", test, err)
		}
	}
	if u, err := FindUser("", ""); u != nil || err != nil {
		t.Errorf("nobody in particular is %v, %v", u, err)
	}
}

// TestAssume is for root, who the end-to-end tests need as well.
func TestAssume(t *testing.T) {
	if os.Geteuid() != 0 {
		_, err := FindUser("root", "")
		if err == nil || !strings.Contains(err.Error(), "only root can do that") {
			t.Errorf("a user that is not root becomes root: %v", err)
		}
		return
	}
	stdout, stderr, err := run(t, "assume", "")
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr)
	}
	u, err := FindUser("nobody", "")
	if err != nil {
		t.Fatal(err)
	}
	uid, gid := strings.Repeat(fmt.Sprintf("\t%d", u.UID), 4), strings.Repeat(fmt.Sprintf("\t%d", u.GID), 4)
	threads := strings.Count(stdout, "Uid:")
	if threads < 2 {
		t.Errorf("%d threads, want several", threads)
	}
	for _, want := range []string{"Uid:" + uid + "\n", "Gid:" + gid + "\n", fmt.Sprintf("Groups:\t%d \n", u.GID), "CapEff:\t0000000000000000\n"} {
		if n := strings.Count(stdout, want); n != threads {
			t.Errorf("%d of %d threads have %q:\n%s", n, threads, want, stdout)
		}
	}
	number, err := FindUser("4000000", "4000001")
	if err != nil || number.UID != 4000000 || number.GID != 4000001 {
		t.Errorf("a number without a name is %v, %v", number, err)
	}
}
