package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// On a machine where no Nix daemon runs, the line that a crontab has for nix-serve starts firn, as nobody;
// and what clients of nix-serve ask for, they get.
func TestNixServe(t *testing.T) {
	t.Parallel()
	eachNix(t, func(t *testing.T, n nixSystem) {
		m := newMachine(t, n)
		bin := filepath.Join(m.dir, "bin")
		if err := os.Mkdir(bin, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(firnPath, filepath.Join(bin, "nix-serve")); err != nil {
			t.Fatal(err)
		}
		output, drv := build(m, `outputs = [ "out" ];`, `echo built; echo snow > $out`)
		m.run("nix-store", "--generate-binary-cache-key", "demo-1", m.dir+"/secret", m.dir+"/public")
		port := freePort(t)
		m.run("sh", "-c", fmt.Sprintf("cd %s && NIX_SECRET_KEY_FILE=%[1]s/secret PATH=%[1]s/bin:$PATH "+
			"nix-serve --listen :%s --error-log nix-serve.log --access-log access.log --pid nix-serve.pid --user nobody --daemonize", m.dir, port))
		text, err := os.ReadFile(filepath.Join(m.dir, "nix-serve.pid"))
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		runs := func() bool {
			line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			return err == nil && strings.Contains(string(line), m.dir) || err == nil && strings.HasPrefix(string(line), "nix-serve\x00")
		}
		defer func() {
			if runs() {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}()
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil || !strings.Contains(string(status), "\nUid:\t65534\t65534\t65534\t65534\n") {
			t.Errorf("it does not run as nobody: %v\n%s", err, status)
		}

		// A path that is built while it runs is there as well, and a client of the newest Nix checks the signatures of both.
		later := m.run("nix-build", "--no-out-link", m.write("later.nix",
			`derivation { name = "later"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo later > $out" ]; }`))
		public, err := os.ReadFile(filepath.Join(m.dir, "public"))
		if err != nil {
			t.Fatal(err)
		}
		url := "http://127.0.0.1:" + port
		client := newMachine(t, newestNix())
		client.refused([]string{"lacks a signature by a trusted key", "lacks a valid signature"}, "nix", "copy", "--from", url, output)
		client.run("nix", "copy", "--from", url, "--option", "trusted-public-keys", string(public), output, later)
		for path, want := range map[string]string{output: "snow\n", later: "later\n"} {
			if got, err := os.ReadFile(client.path(path)); err != nil || string(got) != want {
				t.Errorf("%s holds %q, %v", path, got, err)
			}
		}
		if got := client.run("nix", "log", "--store", url, drv); got != "built" {
			t.Errorf("the log is %q", got)
		}

		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the end of nix-serve", func() bool { return !runs() })
		if text, err := os.ReadFile(filepath.Join(m.dir, "nix-serve.pid")); err != nil || len(text) > 0 {
			t.Errorf("the pid file holds %q, %v", text, err)
		}
	})
}
