package nix_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"firn/nix"
)

func TestCacheInfo(t *testing.T) {
	for _, test := range []struct {
		text string
		want nix.CacheInfo
	}{
		{"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n", nix.CacheInfo{StoreDir: "/nix/store", WantMassQuery: true, Priority: 30}},
		{"StoreDir: /gnu/store", nix.CacheInfo{StoreDir: "/gnu/store"}},
		{"", nix.CacheInfo{StoreDir: "/nix/store"}},
		{"Priority:40\r\nWantMassQuery:  1 \r\n", nix.CacheInfo{StoreDir: "/nix/store", WantMassQuery: true, Priority: 40}},
		{"WantMassQuery: yes\nPriority: -5\n", nix.CacheInfo{StoreDir: "/nix/store", Priority: -5}},
		{"garbage\n\nSigningKey: x:y\n:\n", nix.CacheInfo{StoreDir: "/nix/store"}},
	} {
		if got, err := nix.ParseCacheInfo([]byte(test.text)); err != nil || got != test.want {
			t.Errorf("%q: got %+v, %v, want %+v", test.text, got, err, test.want)
		}
	}
	for _, test := range []struct{ text, want string }{
		{"Priority: high\n", `Priority: "high" is no number`},
		{"Priority:\n", `Priority: "" is no number`},
		{"Priority: 99999999999999999999\n", "is no number"},
		{"StoreDir: nix\n", "StoreDir: parse store directory"},
		{"StoreDir:\n", "it is empty"},
		{"X: " + strings.Repeat("x", nix.MaxCacheInfoSize), "longer than 65536 bytes"},
	} {
		_, err := nix.ParseCacheInfo([]byte(test.text))
		wantErr(t, err, test.want)
	}
	info := nix.CacheInfo{StoreDir: "/nix/store", WantMassQuery: true, Priority: 30}
	if got, want := string(info.AppendText([]byte("x"))), "xStoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCacheInfoRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := nix.CacheInfo{
			StoreDir:      genDir().Draw(t, "dir"),
			WantMassQuery: rapid.Bool().Draw(t, "mass query"),
			Priority:      rapid.Int().Draw(t, "priority"),
		}
		if got, err := nix.ParseCacheInfo(want.AppendText(nil)); err != nil || got != want {
			t.Fatalf("got %+v, %v, want %+v", got, err, want)
		}
	})
}

func FuzzCacheInfo(f *testing.F) {
	f.Add([]byte("StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n"))
	f.Add([]byte("Priority:40\r\nWantMassQuery:1"))
	f.Fuzz(func(t *testing.T, text []byte) {
		info, err := nix.ParseCacheInfo(text)
		if err != nil {
			return
		}
		if again, err := nix.ParseCacheInfo(info.AppendText(nil)); err != nil || again != info {
			t.Errorf("%q is read as %+v, and after writing as %+v, %v", text, info, again, err)
		}
	})
}
