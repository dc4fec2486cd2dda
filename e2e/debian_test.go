package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// bootSuite is the Debian that is booted: the oldest that the package is for, and the last whose
// systemd runs on every kind of control groups that a machine may have.
const bootSuite = "bookworm"

// bootDebian boots the smallest Debian that has systemd, with a network of its own and the package
// of firn in /root. Everything in it is as apt installs it.
func bootDebian(t *testing.T) *booted {
	t.Helper()
	deb := packageFor(t, madePackages(t), runtime.GOARCH)
	out, err := exec.CommandContext(t.Context(), "./bootroot", bootSuite).Output()
	if err != nil {
		t.Fatalf("make a Debian that boots: %v", err)
	}
	dir := tempDir(t)
	if err := os.MkdirAll(filepath.Join(dir, "files/root"), 0o755); err != nil {
		t.Fatal(err)
	}
	copyTree(t, deb, filepath.Join(dir, "files/root"))
	b := start(t, dir, strings.TrimSpace(string(out)), "unshare", "--net", "/lib/systemd/systemd", "--unit=multi-user.target")
	ip := exec.CommandContext(t.Context(), "nsenter", "--target", strconv.Itoa(b.pid), "--net", "ip", "link", "set", "lo", "up")
	if out, err := ip.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", ip, err, out)
	}
	b.run("systemctl", "is-system-running", "--wait")
	return b
}

// install installs packages from files, which have all that they need.
func (b *booted) install(pattern string) {
	b.t.Helper()
	b.run("sh", "-euc", "DEBIAN_FRONTEND=noninteractive apt-get install --yes "+pattern)
}

// listening returns the addresses at which something listens on a port.
func (b *booted) listening(port int) []string {
	b.t.Helper()
	out, err := exec.CommandContext(b.t.Context(), "nsenter", "--target", strconv.Itoa(b.pid), "--net",
		"ss", "--no-header", "--numeric", "--listening", "--tcp", "sport", "=", strconv.Itoa(port)).Output()
	if err != nil {
		b.t.Fatalf("ss: %v", err)
	}
	var addresses []string
	for line := range strings.Lines(string(out)) {
		addresses = append(addresses, strings.Fields(line)[3])
	}
	return addresses
}

// The package and Debian's own Nix, with all that it recommends, get along: whichever comes first,
// the service runs and serves what Nix has.
func TestDebianNix(t *testing.T) {
	t.Parallel()
	const nix, firn = "/debs/*.deb", "/root/firn_*.deb"
	for name, order := range map[string][]string{"Nix first": {nix, firn}, "firn first": {firn, nix}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := bootDebian(t)
			for _, pattern := range order {
				b.install(pattern)
			}
			if got := b.run("stat", "--format=%A %U:%G", "/nix/var/nix/daemon-socket"); got != "drwxrwx--- root:nix-users" {
				t.Fatalf("the directory of the daemon's socket is %s", got)
			}
			b.run("systemctl", "is-active", "nix-daemon.service")
			if got := b.listening(5000); !slices.Equal(got, []string{"127.0.0.1:5000"}) {
				t.Errorf("it listens at %q", got)
			}
			path := b.run("nix-store", "--add", "/etc/os-release")
			narinfo := "http://localhost:5000/" + filepath.Base(path)[:32] + ".narinfo"
			eventually(t, "the path is served", func() bool {
				out, err := b.try("curl", "--silent", "--fail", narinfo)
				return err == nil && strings.HasPrefix(out, "StorePath: "+path+"\n")
			})
			if got := b.property("NRestarts"); got != "0" {
				t.Errorf("the service was restarted %s times", got)
			}
			// It asks the daemon, which is what keeps a path from the collector while it is sent.
			b.run("sh", "-euc", "curl --silent --fail --output /dev/null http://localhost:5000/$(curl --silent --fail "+narinfo+" | sed -n 's/^URL: //p')")
			if log := b.run("journalctl", "--unit", "firn.service", "--output", "cat"); strings.Contains(log, "permission denied") || strings.Contains(log, "level=WARN") {
				t.Errorf("the log has\n%s", log)
			}
			b.run("systemctl", "reload", "firn.service")
			eventually(t, "it is reloaded", func() bool {
				return strings.Contains(b.run("journalctl", "--unit", "firn.service", "--output", "cat"), "reloaded settings, keys and certificates")
			})
		})
	}
}

// The page of the handbook, on the smallest Debian: it installs the package, configures it, lets
// systemd hold the port, has the settings read again, and at its end removes all.
func TestDebianPage(t *testing.T) {
	t.Parallel()
	b := bootDebian(t)
	page := fenced(t, "docs/debian.md", "sh")
	use, remove := page[:len(page)-1], page[len(page)-1]
	b.run("sh", "-euxc", "cd /root\n"+strings.Join(use, ""))
	if got := b.listening(5000); !slices.Contains(got, "*:5000") {
		t.Errorf("configured to serve other machines, it listens at %q", got)
	}
	for _, unit := range []string{"firn.service", "firn.socket", "firn-verify.timer"} {
		if got, err := b.try("systemctl", "is-active", unit); err != nil {
			t.Errorf("%s is %s", unit, got)
		}
	}
	if got := b.property("Result"); got != "success" {
		t.Errorf("the service ended with %s", got)
	}
	log := func() string { return b.run("journalctl", "--unit", "firn.service", "--output", "cat") }
	eventually(t, "the key is read again", func() bool { return strings.Contains(log(), `certificates" changed=[key]`) })
	ask := func(what string) string {
		out, err := exec.CommandContext(t.Context(), "nsenter", "--target", strconv.Itoa(b.pid), "--net",
			"curl", "--silent", "--show-error", "--fail", "http://localhost:5000/"+what).CombinedOutput()
		if err != nil {
			t.Fatalf("GET %s: %v\n%s\n%s", what, err, out, log())
		}
		return string(out)
	}
	if got := ask("nix-cache-info"); !strings.Contains(got, "\nPriority: 20\n") {
		t.Errorf("it answers %q", got)
	}
	// systemd holds the port: while the service is restarted no client is refused.
	before := b.property("MainPID")
	b.run("systemctl", "restart", "--no-block", "firn.service")
	for b.property("MainPID") == before || b.property("ActiveState") != "active" {
		ask("nix-cache-info")
	}
	b.run("test", "-e", "/srv/firn-backup/depot/catalog.db")
	b.run("sh", "-euxc", remove)
	if out, err := b.try("ls", "/usr/bin/firn", "/etc/firn/firn.toml", "/var/lib/firn"); err == nil || out != "" {
		t.Errorf("the page leaves %s", out)
	}
}
