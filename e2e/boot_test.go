package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// units is where the units for systemd are.
const units = "../packaging/systemd"

// serviceLog is where services log in a system that was booted.
const serviceLog = "/var/log/services"

// bootTimeout bounds the start of systemd, which takes some tenths of a second.
const bootTimeout = time.Minute

// enterGroups moves this process into control groups of its own, all named $1: whatever is done to them, and below them, is done to no other.
// systemd wants the ones listed here, of which a machine has the first alone, or some of the others.
const enterGroups = `set -e
for h in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup/memory /sys/fs/cgroup/pids; do
	if [ -e $h/cgroup.procs ]; then
		mkdir $h/$1
		echo $$ >$h/$1/cgroup.procs
	fi
done
script=$2
shift 2
exec unshare --mount --pid --fork --kill-child --ipc --uts --cgroup --propagation private sh -c "$script" sh "$@"`

// bootSystemd makes a copy of the system in $2 in memory that no other process sees, with the files
// of $1/files, and runs its systemd as the first process. The rest of its arguments are variables
// and arguments of that.
const bootSystemd = `set -e
cd $1
system=$2
shift 2
mount -t tmpfs -o mode=755 tmpfs memory
mkdir memory/upper memory/work memory/root
mount -t overlay -o lowerdir=$system,upperdir=memory/upper,workdir=memory/work overlay memory/root
cp -r files/. memory/root
cd memory/root
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
if [ $system = / ]; then
	mount -t tmpfs -o mode=755 tmpfs var/lib
	# Nor does it have the store of this machine, even for users who may ask its daemon.
	mkdir -p nix
	mount -t tmpfs -o mode=755 tmpfs nix
fi
mount --rbind /sys sys
if [ -e sys/fs/cgroup/cgroup.procs ]; then
	umount -R sys/fs/cgroup
	mount -t cgroup2 cgroup sys/fs/cgroup
else
	umount -R sys/fs/cgroup
	mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
	mkdir sys/fs/cgroup/systemd
	mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
fi
mkdir -p old
pivot_root . old
umount -l old
mount --make-rshared /
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=test "$@" --log-target=console --show-status=no`

// A booted is a system of its own, in which systemd runs as it does on a machine. It shares the network with this one.
type booted struct {
	t   testing.TB
	pid int // of systemd
}

// boots counts them.
var boots atomic.Int64

// boot boots a system with firn, its units, and more files with the given texts; only root can read
// secrets. The system has no state, and only the units that firn's units need.
func boot(t testing.TB, files, secrets map[string]string) *booted {
	t.Helper()
	dir := tempDir(t)
	at := func(path string) string { return filepath.Join(dir, "files", path) }
	put := func(path string, text []byte, mode fs.FileMode) {
		t.Helper()
		err := os.MkdirAll(filepath.Dir(at(path)), 0o755)
		if err == nil {
			err = os.WriteFile(at(path), text, mode)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	take := func(path, from string, mode fs.FileMode) {
		t.Helper()
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		put(path, text, mode)
	}
	take("usr/bin/firn", firnPath, 0o755)
	for _, name := range []string{"basic", "sysinit", "sockets", "timers", "network", "shutdown", "multi-user"} {
		take("etc/systemd/test/"+name+".target", "/lib/systemd/system/"+name+".target", 0o644)
	}
	own, err := filepath.Glob(units + "/firn*")
	if err != nil || len(own) == 0 {
		t.Fatalf("there are no units in %s: %v", units, err)
	}
	for _, path := range own {
		take("etc/systemd/test/"+filepath.Base(path), path, 0o644)
	}
	// There is no journal. This is for all services.
	put("etc/systemd/test/service.d/log.conf", []byte("[Service]\nStandardOutput=append:"+serviceLog+"\nStandardError=append:"+serviceLog+"\n"), 0o644)
	put("etc/nix/nix.conf", []byte(nixConf), 0o644)
	for path, text := range files {
		put(path, []byte(text), 0o644)
	}
	for path, text := range secrets {
		put(path, []byte(text), 0o600)
	}
	return start(t, dir, "/", "SYSTEMD_UNIT_PATH=/etc/systemd/test", "/lib/systemd/systemd", "--unit=basic.target")
}

// start starts the systemd of a system, with more files from dir/files.
func start(t testing.TB, dir, system string, command ...string) *booted {
	t.Helper()
	if err := os.Mkdir(filepath.Join(dir, "memory"), 0o755); err != nil {
		t.Fatal(err)
	}

	b := &booted{t: t}
	said := &lockedBuffer{}
	group := fmt.Sprintf("firn-%d-%d", os.Getpid(), boots.Add(1))
	cmd := exec.Command("sh", append([]string{"-c", enterGroups, "sh", group, bootSystemd, dir, system}, command...)...)
	cmd.Stdout, cmd.Stderr = said, said
	cmd.WaitDelay = killDelay
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() && b.pid != 0 {
			status, _ := b.try("systemctl", "status", "firn.service", "firn.socket")
			t.Logf("%s\nand the services said:\n%s", status, b.log())
		}
		cmd.Process.Kill() // and with it systemd, and so all in there
		cmd.Wait()
		removeGroups(t, group)
	})
	deadline := time.Now().Add(bootTimeout)
	for {
		if b.pid = child(cmd.Process.Pid); b.pid != 0 {
			if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/run/systemd/private", b.pid)); err == nil {
				return b
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("systemd does not run:\n%s", said)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// child returns the one child of a process, 0 if there is none.
func child(pid int) (child int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err != nil {
		return 0
	}
	fmt.Sscan(string(text), &child)
	return child
}

// removeGroups removes control groups whose processes are ending.
func removeGroups(t testing.TB, name string) {
	t.Helper()
	for _, hierarchy := range []string{"", "systemd", "unified", "memory", "pids"} {
		top := filepath.Join("/sys/fs/cgroup", hierarchy, name)
		for deadline := time.Now().Add(killDelay); ; time.Sleep(10 * time.Millisecond) {
			err := removeGroup(top)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("remove control group: %v", err)
				break
			}
		}
	}
}

// removeGroup removes a control group and all below it.
func removeGroup(path string) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, removeGroup(filepath.Join(path, e.Name())))
		}
	}
	return errors.Join(err, os.Remove(path))
}

// try runs a command in the system.
func (b *booted) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout) // also at the end of a test
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--target", fmt.Sprint(b.pid), "--mount", "--pid", "--net", "--root", "--wd"}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
	cmd.WaitDelay = killDelay
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return strings.TrimSuffix(stdout.String(), "\n"), err
}

// run runs one that must succeed, and returns what it prints.
func (b *booted) run(args ...string) string {
	b.t.Helper()
	out, err := b.try(args...)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// walk runs the commands of the blocks marked sh on a page of the handbook.
func (b *booted) walk(page string) {
	b.t.Helper()
	for _, block := range fenced(b.t, page, "sh") {
		b.run("sh", "-euc", block)
	}
}

// property returns what systemd says of firn.service.
func (b *booted) property(name string) string {
	b.t.Helper()
	return b.run("systemctl", "show", "--value", "--property", name, "firn.service")
}

// at returns where a file of the system is to be had from here.
func (b *booted) at(path string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", b.pid), path)
}

// write writes a file in the system.
func (b *booted) write(path, text string) {
	b.t.Helper()
	if err := os.WriteFile(b.at(path), []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// log returns what the services have said.
func (b *booted) log() string {
	text, err := os.ReadFile(b.at(serviceLog))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		b.t.Error(err)
	}
	return string(text)
}
