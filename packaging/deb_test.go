//go:build programs

package main

import (
	"os/exec"
	"testing"
)

// Debian sorts packages as Go sorts versions. A tree with changes is after its commit.
func TestDebianVersion(t *testing.T) {
	versions := []struct{ version, debian string }{
		{"devel", "0~devel-1"},
		{"v0.0.0-20261126183000-2af43f9e784e", "0.0.0~20261126183000.2af43f9e784e-1"},
		{"v0.0.0-20261126183000-2af43f9e784e+dirty", "0.0.0~20261126183000.2af43f9e784e+dirty-1"},
		{"v0.0.0-20261127090000-0aaaaaaaaaaa", "0.0.0~20261127090000.0aaaaaaaaaaa-1"},
		{"v0.9.0", "0.9.0-1"},
		{"v1.0.0-rc.1", "1.0.0~rc.1-1"},
		{"v1.0.0-rc.1.0.20261126183000-2af43f9e784e", "1.0.0~rc.1.0.20261126183000.2af43f9e784e-1"},
		{"v1.0.0-rc.2", "1.0.0~rc.2-1"},
		{"v1.0.0", "1.0.0-1"},
		{"v1.0.0+dirty", "1.0.0+dirty-1"},
		{"v1.0.1-0.20261126183000-2af43f9e784e", "1.0.1~0.20261126183000.2af43f9e784e-1"},
		{"v1.0.1", "1.0.1-1"},
	}
	for i, v := range versions {
		got := debianVersion(v.version)
		if got != v.debian {
			t.Errorf("the package of %s has version %s, want %s", v.version, got, v.debian)
		}
		if i == 0 {
			continue
		}
		before := debianVersion(versions[i-1].version)
		if err := exec.CommandContext(t.Context(), "dpkg", "--compare-versions", before, "lt", got).Run(); err != nil {
			t.Errorf("dpkg does not find %s older than %s: %v", before, got, err)
		}
	}
}
