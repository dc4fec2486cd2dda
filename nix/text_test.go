package nix_test

import (
	"bytes"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"firn/nix"
)

func TestNix32(t *testing.T) {
	for _, test := range []struct{ bytes, text string }{
		{"", ""},
		{"\x00", "00"},
		{"\xff", "7z"},
		{"\x01\x00", "0001"},
		{"\x00\x01", "0080"},
		{"\xff\xff\xff\xff\xff", "zzzzzzzz"},
		{strings.Repeat("\xff", 20), strings.Repeat("z", 32)},
	} {
		if got := string(nix.AppendNix32([]byte("x"), []byte(test.bytes))); got != "x"+test.text {
			t.Errorf("AppendNix32(%q) = %q, want %q", test.bytes, got, test.text)
		}
		if got, err := nix.DecodeNix32(test.text); err != nil || string(got) != test.bytes {
			t.Errorf("DecodeNix32(%q) = %q, %v, want %q", test.text, got, err, test.bytes)
		}
	}
}

func TestNix32Refused(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"0", "impossible length"},
		{"000", "impossible length"},
		{"000000", "impossible length"},
		{"8z", "bits to spare"},
		{"z0", "bits to spare"},
		{"g000", "bits to spare"},
		{"0e", `'e' is no digit`},
		{"0o", `'o' is no digit`},
		{"0t", `'t' is no digit`},
		{"0u", `'u' is no digit`},
		{"0A", `'A' is no digit`},
		{"0\n", `'\n' is no digit`},
		{"0\xff", `is no digit`},
	} {
		_, err := nix.DecodeNix32(test.text)
		wantErr(t, err, test.want)
	}
}

func TestNix32RoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfN(rapid.Byte(), 0, 70).Draw(t, "bytes")
		got, err := nix.DecodeNix32(string(nix.AppendNix32(nil, want)))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("got %x, %v, want %x", got, err, want)
		}
	})
}

func FuzzNix32(f *testing.F) {
	f.Add("04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw")
	f.Add("7z")
	f.Add("8z")
	f.Fuzz(func(t *testing.T, text string) {
		sum, err := nix.DecodeNix32(text)
		if err != nil {
			return
		}
		if got := string(nix.AppendNix32(nil, sum)); got != text {
			t.Errorf("%q decodes, but encodes to %q", text, got)
		}
	})
}
