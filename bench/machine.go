//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine says where numbers come from, without saying whose machine it is.
type Machine struct {
	CPU    string
	Cores  int
	Memory int64 // bytes
	Kernel string
	System string
	Go     string
	Nginx  string
	Nix    string
}

func describeMachine(ctx context.Context) (Machine, error) {
	m := Machine{Cores: runtime.NumCPU(), Go: runtime.Version()}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return m, fmt.Errorf("describe machine: %w", err)
	}
	m.Kernel = unix.ByteSliceToString(uts.Sysname[:]) + " " + unix.ByteSliceToString(uts.Release[:])
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return m, fmt.Errorf("describe machine: %w", err)
	}
	m.Memory = int64(info.Totalram) * int64(info.Unit)
	var err error
	if m.CPU, err = fieldOf("/proc/cpuinfo", "model name", ":"); err != nil {
		return m, err
	}
	if m.System, err = fieldOf("/etc/os-release", "PRETTY_NAME", "="); err != nil {
		return m, err
	}
	if m.Nginx, err = versionOf(ctx, nginxProgram(), "-v"); err != nil {
		return m, err
	}
	if m.Nix, err = versionOf(ctx, "nix", "--version"); err != nil {
		return m, err
	}
	return m, nil
}

// fieldOf is the value of the first line of a file with a key; "unknown" when there is none.
func fieldOf(file, key, separator string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("describe machine: %w", err)
	}
	for line := range bytes.Lines(text) {
		if k, v, ok := strings.Cut(string(line), separator); ok && strings.TrimSpace(k) == key {
			return strings.Trim(strings.TrimSpace(v), `"`), nil
		}
	}
	return "unknown", nil
}

// versionOf is the last word that a program says of its version.
func versionOf(ctx context.Context, program, flag string) (string, error) {
	text, err := exec.CommandContext(ctx, program, flag).CombinedOutput()
	words := strings.Fields(string(text))
	if err != nil || len(words) == 0 {
		return "", fmt.Errorf("ask %s for its version: %w", program, err)
	}
	return strings.TrimPrefix(words[len(words)-1], "nginx/"), nil
}

func (m Machine) String() string {
	return fmt.Sprintf("%s, %d cores, %.0f GiB, %s, %s, %s, nginx %s, Nix %s",
		m.CPU, m.Cores, float64(m.Memory)/(1<<30), m.System, m.Kernel, m.Go, m.Nginx, m.Nix)
}
