package session

import (
	"strings"
	"testing"
)

func TestParseCommand(t *testing.T) {
	for _, test := range []struct {
		line string
		want Command
	}{
		{"nix-store --serve --write", Command{Protocol: Legacy}},
		{"nix-store --serve", Command{Legacy, true}},
		{"'nix-store' '--serve' '--write'", Command{Protocol: Legacy}},
		{"/run/current-system/sw/bin/nix-store --serve --write", Command{Protocol: Legacy}},
		{`"nix-store" --serve --write --store ''`, Command{Protocol: Legacy}},
		{"nix-store --serve --write --store auto", Command{Protocol: Legacy}},
		{"nix-store --write --serve", Command{Protocol: Legacy}},
		{"nix-daemon --stdio", Command{Protocol: Worker}},
		{" nix-daemon  --stdio ", Command{Protocol: Worker}},
		{"nix-daemon --stdio --store daemon", Command{Protocol: Worker}},
		{"nix-daemon --stdio --store=auto", Command{Protocol: Worker}},
		{"/opt/nix/bin/nix daemon --stdio", Command{Protocol: Worker}},
	} {
		got, err := ParseCommand(test.line)
		if err != nil || got != test.want {
			t.Errorf("%q is %+v, %v, want %+v", test.line, got, err, test.want)
		}
	}
	for _, line := range []string{
		"", " ", "nix-store", "nix-store --write", "nix-store --serve --stdio", "nix-store -q x", "nix-daemon", "nix-daemon --stdio --write",
		"nix daemon", "nix", "nix build --stdio", "nix-store --serve; rm -rf /", "nix-store --serve --write && id", "nix-store '--serve",
		"sh -c 'nix-store --serve'", "scp -t /etc", "nix-store --serve\x00--write", "nix-store --serve $(id)",
		"nix-store --serve --write --store /mnt", "nix-daemon --stdio --store=/mnt", "nix-store --serve" + strings.Repeat(" ", 5000),
	} {
		if got, err := ParseCommand(line); err == nil {
			t.Errorf("%q is %+v", line, got)
		}
	}
}
