package e2e

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// debRoot is the Debian that packages are installed in: the one that was made last year, of which each test takes a copy.
const debRoot = "trixie"

// A freshDebian is a Debian in a directory, in which root may do everything.
type freshDebian struct {
	t    *testing.T
	root string
}

// newDebian returns a copy of a Debian as debootstrap makes it.
func newDebian(t *testing.T) *freshDebian {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "./nixroot", debRoot).Output()
	if err != nil {
		t.Fatalf("make a Debian: %v", err)
	}
	d := &freshDebian{t: t, root: filepath.Join(tempDir(t), "root")}
	copyTree(t, strings.TrimSpace(string(out)), d.root)
	return d
}

// copyTree copies a directory with owners and modes.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "cp", "--archive", "--reflink=auto", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copy %s: %v\n%s", from, err, out)
	}
}

// enterFresh runs a command in the system $1, whose mounts are in a namespace of the command.
const enterFresh = `set -e
root=$1
shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
exec chroot "$root" "$@"`

// command returns a command of root's.
func (d *freshDebian) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "unshare", append([]string{"--mount", "sh", "-c", enterFresh, "sh", d.root}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = killDelay
	return cmd
}

// run runs a command that must succeed, and returns what it prints.
func (d *freshDebian) run(args ...string) string {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), commandTimeout)
	defer cancel()
	out, err := d.command(ctx, args...).CombinedOutput()
	if err != nil {
		d.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// there says whether a path is there; it is not followed.
func (d *freshDebian) there(path string) bool {
	_, err := os.Lstat(filepath.Join(d.root, path))
	return err == nil
}

// packages returns the directory with all packages, which make makes on first use.
var packages = sync.OnceValues(func() (string, error) {
	dist := filepath.Join(filepath.Dir(firnPath), "packages")
	out, err := exec.Command("make", "-C", "..", "deb", "image", "DIST="+dist).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("make the packages: %w\n%s", err, out)
	}
	return dist, err
})

func madePackages(t *testing.T) string {
	t.Helper()
	dist, err := packages()
	if err != nil {
		t.Fatal(err)
	}
	return dist
}

// Packages that are made again, with another environment, have the same bytes.
func TestPackagesAgain(t *testing.T) {
	t.Parallel()
	dist := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "run", ".", "-dist", dist, "deb", "image")
	cmd.Dir = "../packaging"
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir(), "TZ=Asia/Tokyo", "FIRN_PRIORITY=1", "FIRN_CONFIG=/nowhere")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make the packages: %v\n%s", err, out)
	}
	if out, err := exec.CommandContext(t.Context(), "diff", "--recursive", "--brief", madePackages(t), dist).CombinedOutput(); err != nil {
		t.Errorf("made again, the packages are others: %v\n%s", err, out)
	}
}

// packageFor returns the package for an architecture, by Debian's name.
func packageFor(t *testing.T, dist, arch string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dist, "firn_*_"+arch+".deb"))
	if err != nil || len(found) != 1 {
		t.Fatalf("packages for %s in %s: %q, %v", arch, dist, found, err)
	}
	return found[0]
}

// The package installs on a fresh Debian, serves and takes paths as a user without rights, and leaves as Debian asks.
func TestDebianPackage(t *testing.T) {
	t.Parallel()
	dist := madePackages(t)
	t.Run("lintian", func(t *testing.T) {
		t.Parallel()
		args := []string{"--fail-on", "error,warning", "--allow-root", packageFor(t, dist, "amd64"), packageFor(t, dist, "arm64")}
		if out, err := exec.CommandContext(t.Context(), "lintian", args...).CombinedOutput(); err != nil {
			t.Errorf("lintian: %v\n%s", err, out)
		}
	})
	t.Run("arm64", func(t *testing.T) {
		t.Parallel()
		wantProgram(t, unpackDeb(t, packageFor(t, dist, "arm64")), elf.EM_AARCH64, "arm64")
	})
	t.Run("installed", func(t *testing.T) {
		t.Parallel()
		testInstalled(t, packageFor(t, dist, runtime.GOARCH))
	})
}

// unpackDeb returns a directory with the files of a package.
func unpackDeb(t *testing.T, deb string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "dpkg-deb", "--extract", deb, dir).CombinedOutput(); err != nil {
		t.Fatalf("unpack %s: %v\n%s", deb, err, out)
	}
	return dir
}

// wantProgram fails unless the program below root is for a machine, and for any of its kind: static.
func wantProgram(t *testing.T, root string, machine elf.Machine, arch string) {
	t.Helper()
	path := filepath.Join(root, "usr/bin/firn")
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	libraries, err := f.ImportedLibraries()
	if err != nil || f.Machine != machine || len(libraries) > 0 {
		t.Errorf("firn is for %v with libraries %q, %v", f.Machine, libraries, err)
	}
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	if settings["GOARCH"] != arch || settings["CGO_ENABLED"] != "0" || settings["-trimpath"] != "true" {
		t.Errorf("firn was built with %v", info.Settings)
	}
}

func testInstalled(t *testing.T, deb string) {
	d := newDebian(t)
	dir := filepath.Join(d.root, "root")
	copyTree(t, deb, dir)
	name := "/root/" + filepath.Base(deb)

	// What never ran leaves nothing.
	d.run("dpkg", "--install", name)
	d.run("dpkg", "--purge", "firn")
	for _, path := range []string{"/var/lib/firn", "/etc/firn", "/usr/bin/firn", enabled} {
		if d.there(path) {
			t.Errorf("purged before it ran, the package leaves %s", path)
		}
	}

	// At first it serves this machine only, and says so once.
	const onlyHere = "firn serves this machine only. To serve others, change the line listen in /etc/firn/firn.toml"
	said := d.run("apt-get", "install", "--yes", name)
	if strings.Count(said, onlyHere) != 1 {
		t.Errorf("the installation does not say once that only this machine is served:\n%s", said)
	}
	if shown := d.run("firn", "config", "show", "--config", "/etc/firn/firn.toml"); !strings.HasPrefix(shown, "listen = [\"127.0.0.1:5000\"]") {
		t.Errorf("the package's configuration is\n%s", shown)
	}
	d.run("sh", "-euc", "echo 'priority = 20' >>/etc/firn/firn.toml")
	out := d.run("firn-admin", "token", "create", "--push", "main", "ci")
	token := tokenText.FindString(out)
	if token == "" {
		t.Fatalf("no token was made:\n%s", out)
	}
	if groups := d.run("id", "-nG", "firn"); !slices.Contains(strings.Fields(groups), "nix-users") {
		t.Errorf("the user firn is in the groups %s", groups)
	}

	stat := d.run("stat", "--format=%A %U:%G %n", "/usr/bin/firn", "/usr/lib/systemd/system/firn.service", "/usr/lib/systemd/system/firn.service.d/user.conf", "/usr/lib/systemd/system/firn-verify.service.d/user.conf", "/etc/firn/firn.toml",
		"/var/lib/firn", "/usr/share/man/man1/firn.1.gz", "/usr/share/man/man1/firn-serve.1.gz", "/usr/share/man/man5/firn.toml.5.gz",
		"/usr/share/bash-completion/completions/firn", "/usr/share/zsh/vendor-completions/_firn", "/usr/share/fish/vendor_completions.d/firn.fish",
		"/usr/share/doc/firn/copyright", "/usr/share/doc/firn/changelog.Debian.gz", "/usr/share/doc/firn/changelog.gz", "/usr/share/doc/firn/licenses.gz")
	for line := range strings.Lines(stat) {
		want := "-rw-r--r-- root:root"
		switch {
		case strings.Contains(line, "/var/lib/firn"):
			want = "drwx------ firn:firn"
		case strings.Contains(line, "/bin/"):
			want = "-rwxr-xr-x root:root"
		}
		if !strings.HasPrefix(line, want) {
			t.Errorf("want %s, got %s", want, line)
		}
	}
	if user := d.run("getent", "passwd", "firn"); !strings.HasSuffix(user, ":/var/lib/firn:/usr/sbin/nologin\n") {
		t.Errorf("the user is %s", user)
	}
	if changed := d.run("dpkg", "--verify", "firn"); strings.Contains(strings.ReplaceAll(changed, "/etc/firn/firn.toml", ""), "/") {
		t.Errorf("other files than the package has: %s", changed)
	}
	wantProgram(t, d.root, map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[runtime.GOARCH], runtime.GOARCH)
	d.run("bash", "-c", "source /usr/share/bash-completion/completions/firn && complete -p firn")
	if !d.there(enabled) || !d.there(enabledTimer) || d.there("/etc/systemd/system/sockets.target.wants") {
		t.Error("not the service and the timer are enabled, and no socket")
	}
	// With a dynamic user systemd would keep the state where no command beside the service finds it.
	for _, name := range []string{"firn.service", "firn-verify.service"} {
		unit, err := exec.CommandContext(t.Context(), "systemd-analyze", "--no-pager", "security", "--offline=true", "--root="+d.root, name).CombinedOutput()
		if err != nil || !strings.Contains(string(unit), "static non-root user") {
			t.Errorf("%s does not run as the user firn: %v\n%s", name, err, unit)
		}
	}

	path := testServed(t, d, token)

	// An upgrade to a package with another configuration, after an administrator edited that and turned the service off.
	if err := os.Remove(filepath.Join(d.root, enabled)); err != nil { // as systemctl disable does
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(d.root, "etc/firn/firn.toml"))
	if err != nil {
		t.Fatal(err)
	}
	if said := d.run("dpkg", "--force-confold", "--install", nextPackage(d, name)); strings.Contains(said, onlyHere) {
		t.Errorf("the upgrade says what only the first installation should say:\n%s", said)
	}
	if after, err := os.ReadFile(filepath.Join(d.root, "etc/firn/firn.toml")); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the upgrade changed the configuration to %q, %v", after, err)
	}
	if !d.there("/etc/firn/firn.toml.dpkg-dist") || !strings.Contains(d.run("dpkg", "--status", "firn"), "\nVersion: 1000-1\n") {
		t.Error("that was no upgrade to a new configuration")
	}
	if d.there(enabled) || !d.there(enabledTimer) {
		t.Error("the upgrade enabled a service that an administrator had disabled, or disabled the timer")
	}
	wantPulled(t, startInstalled(d), path)

	d.run("dpkg", "--remove", "firn")
	if d.there("/usr/bin/firn") || !d.there("/etc/firn/firn.toml") || !d.there("/var/lib/firn") {
		t.Error("removal takes the configuration or the state, or leaves the program")
	}
	if err := os.MkdirAll(filepath.Join(d.root, "var/lib/firn/zstd"), 0o700); err != nil {
		t.Fatal(err)
	}
	said = d.run("apt-get", "purge", "--yes", "firn")
	if d.there("/etc/firn/firn.toml") || d.there("/var/lib/firn/zstd") || d.there("/var/lib/systemd/deb-systemd-helper-enabled/firn.service.dsh-also") {
		t.Error("purge leaves the configuration, NARs that can be made again, or what systemd was told")
	}
	if !d.there("/var/lib/firn") || !strings.Contains(said, "still in /var/lib/firn") {
		t.Errorf("purge takes what was pushed, or does not tell that it is there: %s", said)
	}
}

// What makes the service, and the timer of the verification, start with the machine.
const (
	enabled      = "/etc/systemd/system/multi-user.target.wants/firn.service"
	enabledTimer = "/etc/systemd/system/timers.target.wants/firn-verify.timer"
)

// nextPackage returns a package that is newer than the one of a file, and has another configuration.
func nextPackage(d *freshDebian, name string) string {
	d.t.Helper()
	d.run("sh", "-ec", `dpkg-deb --raw-extract "$1" /root/next
sed -i 's/^Version: .*/Version: 1000-1/' /root/next/DEBIAN/control
echo '# New.' >>/root/next/etc/firn/firn.toml
(cd /root/next && md5sum usr/bin/firn >DEBIAN/md5sums)
dpkg-deb --build -Znone /root/next /root/next.deb`, "sh", name)
	return "/root/next.deb"
}

// startInstalled starts the installed firn as its user, with its configuration.
func startInstalled(d *freshDebian) *server {
	d.t.Helper()
	return awaitServer(d.t, func(ctx context.Context) *exec.Cmd {
		return d.command(ctx, "setpriv", "--reuid=firn", "--regid=firn", "--init-groups", "--inh-caps=-all", "--no-new-privs",
			"firn", "serve", "--config", "/etc/firn/firn.toml", "--listen", "127.0.0.1:0")
	})
}

// testServed pushes a path to the installed firn and gets it back, and returns it.
func testServed(t *testing.T, d *freshDebian, token string) string {
	t.Helper()
	s := startInstalled(d)
	path := pushOne(t, s, token)
	wantPulled(t, s, path)
	return path
}

// pushOne pushes a path with a reference with the newest Nix.
func pushOne(t *testing.T, s *server, token string) string {
	t.Helper()
	client := newMachine(t, newestNix())
	dependency := client.run("nix-store", "--add", client.write("dependency", "depended on\n"))
	top := client.run("nix-store", "--add", client.write("top", dependency+"\n"))
	client.refused([]string{"401"}, "nix", "copy", "--to", s.url, top)
	login(client, token)
	client.run("nix", "copy", "--to", s.url, top)
	return top
}

// wantPulled fails unless a new machine gets a path from s, signed with the key of s.
func wantPulled(t *testing.T, s *server, path string) {
	t.Helper()
	m := newMachine(t, newestNix())
	m.run("nix", "copy", "--from", s.url, path, "--option", "trusted-public-keys", s.publicKey)
	m.run("nix", "store", "verify", "--recursive", "--sigs-needed", "1", "--option", "trusted-public-keys", s.publicKey, path)
}
