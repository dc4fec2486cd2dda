//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// need finds a program, or installs the Debian package that has it.
func need(ctx context.Context, found func() bool, pkg string, progress func(string, ...any)) error {
	if found() {
		return nil
	}
	progress("installing %s", pkg)
	for _, args := range [][]string{{"update", "-q"}, {"install", "-y", "-q", "--no-install-recommends", pkg}} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		// With RUNLEVEL=1 a package's script starts no service.
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1")
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, bytes.TrimSpace(text))
		}
	}
	if !found() {
		return fmt.Errorf("install %s: the program is still not there", pkg)
	}
	return nil
}

// needTools brings the programs that the shootout runs.
func needTools(ctx context.Context, progress func(string, ...any)) error {
	has := func(program string) func() bool {
		return func() bool { _, err := exec.LookPath(program); return err == nil }
	}
	if err := need(ctx, has("nix"), "nix-bin", progress); err != nil {
		return err
	}
	return need(ctx, has(nginxProgram()), "nginx-light", progress)
}

// output runs a command; an error has what it says.
func output(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = cleanEnvironment()
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, bytes.TrimSpace(text))
	}
	return nil
}

// freeSpace is how many bytes can be written where dir is.
func freeSpace(dir string) int64 {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0
	}
	return int64(fs.Bavail) * fs.Bsize
}

// removeStore removes a directory with stores in it, whose directories cannot be written.
func removeStore(dir string) {
	_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	_ = os.RemoveAll(dir)
}
