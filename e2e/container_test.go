package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// podmanConf has podman run containers of root's inside a container or a small machine: without control groups and limits of its own,
// and with the network that it finds.
const podmanConf = `[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
tmp_dir = "DIR/tmp"
[containers]
cgroups = "disabled"
netns = "host"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
`

// podmanStorage has it keep images and containers in a directory.
const podmanStorage = `[storage]
driver = "vfs"
graphroot = "DIR/images"
runroot = "DIR/run"
`

// containerShell is the beginning of a shell in which podman stands for docker, and waits for the server in each container that it runs.
// Control groups are mounted again, because podman takes only version 2 alone.
const containerShell = `umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup /sys/fs/cgroup
ip link set lo up
trap 'podman rm --force firn' EXIT
docker() {
	podman "$@"
	if [ "$1" = run ]; then
		curl --silent --show-error --fail --retry 7 --retry-connrefused http://127.0.0.1:5000/nix-cache-info
	fi
}
`

// Podman loads the image and runs it, as the handbook has it.
func TestContainer(t *testing.T) {
	t.Parallel()
	dist := madePackages(t)
	dir := tempDir(t)
	put := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "DIR", dir)), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := os.Symlink(dist, filepath.Join(dir, "dist")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	script := containerShell + strings.Join(fenced(t, "docs/container.md", "sh"), "")
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--net", "bash", "-euxc", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+put("containers.conf", podmanConf), "CONTAINERS_STORAGE_CONF="+put("storage.conf", podmanStorage))
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = killDelay
	text, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	out := string(text)
	for _, want := range []string{"\nPriority: 30\n", "extra-trusted-public-keys = ", "\nPriority: 20\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q:\n%s", want, out)
		}
	}
	if tokenText.FindString(out) == "" {
		t.Errorf("no token was made:\n%s", out)
	}
}
