package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	// commandTimeout bounds one command of a client. The longest copies a closure of some GB.
	commandTimeout = 5 * time.Minute
	// killDelay is how long a command may take to end when it is asked to.
	killDelay = 20 * time.Second
)

// A nixSystem is a system with Nix: this one, or a Debian in a directory.
type nixSystem struct {
	version string // "2.26.3"
	root    string // "" for this system
}

// suites are the Debians with another Nix than this system: 2.3, 2.26 and, in sid, 2.34.
var suites = []string{"bullseye", "trixie", "sid"}

// findNixes returns the systems that can be had: this one and those of the suites.
// A system that cannot be made does not fail the tests of the others, because Debian sid has days on
// which it does not install, but is reported loudly.
func findNixes() ([]nixSystem, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("only root can run the end-to-end tests: every client has mounts of its own")
	}
	system, err := newNix("")
	if err != nil {
		return nil, fmt.Errorf("find Nix (make test installs it): %w", err)
	}
	found := []nixSystem{system}
	for _, suite := range suites {
		out, err := exec.Command("./nixroot", suite).Output()
		var n nixSystem
		if err == nil {
			n, err = newNix(strings.TrimSpace(string(out)))
		}
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w\n%s", err, exit.Stderr)
		}
		if err != nil {
			fmt.Printf("################ NOT TESTED with the Nix of Debian %s: %v\n", suite, err)
			continue
		}
		found = append(found, n)
	}
	for _, n := range found {
		fmt.Printf("testing with Nix %s\n", n.version)
	}
	if len(found) == 1 {
		return nil, errors.New("of all systems with Nix, only this one is there")
	}
	return found, nil
}

// newNix returns the Nix of the system in root.
func newNix(root string) (nixSystem, error) {
	out, err := nixSystem{root: root}.command(context.Background(), "", nil, "nix", "--version").Output()
	if err != nil {
		return nixSystem{}, fmt.Errorf("run nix --version in %q: %w", root, err)
	}
	version := regexp.MustCompile(`\d+(\.\d+)+`).FindString(string(out))
	if version == "" {
		return nixSystem{}, fmt.Errorf("nix --version in %q says %q", root, out)
	}
	return nixSystem{version: version, root: root}, nil
}

// enter runs a command in the system $1, with $2 as its /nix; "" leaves /nix alone.
// Devices and the directory for temporary files are those of this system, so that a path there means the same to all.
// All else in the system cannot be written, and the mounts are in a namespace of the command:
// however it ends, it leaves nothing behind.
const enter = `set -e
root=$1 nix=$2 tmp=$3
shift 3
if [ -n "$root" ]; then
	mkdir -p "$root$tmp"
	[ -e "$root/etc/hosts" ] || : >"$root/etc/hosts"
	mount --bind "$root" "$root"
	mount -t proc proc "$root/proc"
	mount --rbind /dev "$root/dev"
	mount --bind "$tmp" "$root$tmp"
	mount -o remount,bind,ro "$root"
fi
if [ -n "$nix" ]; then mount --bind "$nix" "$root/nix"; fi
exec chroot "${root:-/}" "$@"`

// command returns a command of the system that n is of, with dir as its /nix; "" leaves /nix alone.
func (n nixSystem) command(ctx context.Context, dir string, env []string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "unshare", append([]string{"--mount", "sh", "-c", enter, "sh", n.root, dir, os.TempDir()}, args...)...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/usr/bin:/sbin:/bin"}, env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = killDelay
	return cmd
}

// isOld reports whether it is older than 2.4: it knows no zstd, no experimental features, and its commands have other names.
func (n nixSystem) isOld() bool { return strings.HasPrefix(n.version, "2.3.") }

// compressions are some in which it can upload.
func (n nixSystem) compressions() []string {
	if n.isOld() {
		return []string{"none", "xz", "bzip2"} // br, at the only level that it has, takes a minute for 30 MB
	}
	return []string{"none", "xz", "zstd"}
}

// oldNames are what commands were called before 2.4.
var oldNames = map[string][]string{
	"store verify":    {"verify"},
	"store sign":      {"sign-paths"},
	"store copy-sigs": {"copy-sigs"},
	"store ping":      {"ping-store"},
	"store ls":        {"ls-store"},
	"store cat":       {"cat-store"},
}

// words returns a command line as this Nix has it.
func (n nixSystem) words(args []string) []string {
	at := slices.Index(args, "nix")
	if !n.isOld() || at < 0 || len(args) < at+3 {
		return args
	}
	if old, ok := oldNames[args[at+1]+" "+args[at+2]]; ok {
		return slices.Concat(args[:at+1], old, args[at+3:])
	}
	return args
}

// eachNix runs a test with each Nix.
func eachNix(t *testing.T, test func(t *testing.T, n nixSystem)) { withNixes(t, nixes, test) }

// eachLaterNix runs a test with each Nix but 2.3: for what does not hang on the age of a client, and takes long or is what 2.3 cannot do.
func eachLaterNix(t *testing.T, test func(t *testing.T, n nixSystem)) {
	withNixes(t, slices.DeleteFunc(slices.Clone(nixes), nixSystem.isOld), test)
}

func withNixes(t *testing.T, nixes []nixSystem, test func(t *testing.T, n nixSystem)) {
	for _, n := range nixes {
		t.Run("nix-"+n.version, func(t *testing.T) {
			t.Parallel()
			test(t, n)
		})
	}
}

// systemNix is the Nix of this system, for where any Nix will do.
func systemNix() nixSystem { return nixes[0] }

// newestNix is the newest that there is.
func newestNix() nixSystem { return nixes[len(nixes)-1] }

// A machine is a computer with Nix: it has its own /nix, home and configuration, and shares with others the network and
// the directory for temporary files only.
type machine struct {
	t    testing.TB
	nix  nixSystem
	dir  string // everything of it but the store
	root string // of its store, as in `nix --store root`; dir unless the store is older than the machine
}

// nixConf is the configuration of every machine: builds as root without a sandbox, for there are no build users,
// and no cache but the one that a test names. No store has to outlive this system, so none waits for the disk.
const nixConf = `build-users-group =
sandbox = false
fsync-metadata = false
experimental-features = nix-command flakes ca-derivations
substituters =
trusted-public-keys =
`

// newMachine returns a machine with an empty store.
func newMachine(t testing.TB, n nixSystem) *machine {
	t.Helper()
	dir := tempDir(t)
	return newMachineWith(t, n, dir, dir)
}

// newMachineWith returns a machine in an empty directory, with the store at root.
func newMachineWith(t testing.TB, n nixSystem, dir, root string) *machine {
	t.Helper()
	m := &machine{t: t, nix: n, dir: dir, root: root}
	for _, path := range []string{root + "/nix", dir + "/home", dir + "/tmp", dir + "/conf"} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.write("conf/nix.conf", nixConf)
	return m
}

// path returns where a file of the machine's store is on this system.
func (m *machine) path(storePath string) string { return filepath.Join(m.root, storePath) }

// tempDir returns a new directory that everyone may enter, removed at the end of the test with all read-only
// directories in it. Its path is short enough for sockets in it.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "firn")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// write writes a file below the machine's directory and returns its path.
func (m *machine) write(name, text string) string {
	m.t.Helper()
	path := filepath.Join(m.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
	return path
}

// command returns a command that runs on the machine.
func (m *machine) command(ctx context.Context, args ...string) *exec.Cmd {
	return m.nix.command(ctx, filepath.Join(m.root, "nix"), []string{
		"HOME=" + filepath.Join(m.dir, "home"),
		"TMPDIR=" + filepath.Join(m.dir, "tmp"),
		"NIX_CONF_DIR=" + filepath.Join(m.dir, "conf"),
		"LC_ALL=C.UTF-8",
	}, m.nix.words(args)...)
}

// try runs a command and returns its standard output without the final newline; the error has its standard error.
func (m *machine) try(args ...string) (string, error) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), commandTimeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := m.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return strings.TrimSuffix(stdout.String(), "\n"), nil
}

// run runs a command that must succeed and returns its standard output.
func (m *machine) run(args ...string) string {
	m.t.Helper()
	out, err := m.try(args...)
	if err != nil {
		m.t.Fatalf("%s: %v", m.nix.version, err)
	}
	return out
}

// refused runs a command that must fail and say one of the given words.
func (m *machine) refused(words []string, args ...string) {
	m.t.Helper()
	out, err := m.try(args...)
	if err == nil {
		m.t.Fatalf("%s: %s succeeded and said %q", m.nix.version, strings.Join(args, " "), out)
	}
	for _, word := range words {
		if strings.Contains(err.Error(), word) {
			return
		}
	}
	m.t.Fatalf("%s: want a failure that says one of %q, got: %v", m.nix.version, words, err)
}

// lines splits what a command printed.
func lines(out string) []string {
	return strings.FieldsFunc(out, func(r rune) bool { return r == '\n' })
}
