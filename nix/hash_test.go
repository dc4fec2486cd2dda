package nix_test

import (
	"bytes"
	"crypto/sha256"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"firn/nix"
)

// The sum of "hello\n" in all its forms, as nix-hash prints them.
const (
	helloBase16 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
	helloNix32  = "00xyyr3fi8l6hb839bv3f7yb86yjv7xi1cgh1xnhipym4asvb4aq"
	helloBase64 = "WJG1tSLV3whtD/CxEPvZ0hu0/HFjrzTQgoai6Eb2vgM="
)

func TestHash(t *testing.T) {
	h := nix.SHA256Sum(sha256.Sum256([]byte("hello\n")))
	for _, test := range []struct{ what, got, want string }{
		{"String", h.String(), "sha256:" + helloNix32},
		{"Append", string(h.Append([]byte("x"))), "xsha256:" + helloNix32},
		{"AppendNix32", string(h.AppendNix32([]byte("x"))), "x" + helloNix32},
		{"AppendBase16", string(h.AppendBase16([]byte("x"))), "x" + helloBase16},
		{"Nix32", h.Nix32(), helloNix32},
		{"Base16", h.Base16(), helloBase16},
		{"Base64", h.Base64(), helloBase64},
		{"SRI", h.SRI(), "sha256-" + helloBase64},
		{"Algorithm", h.Algorithm().String(), "sha256"},
	} {
		if test.got != test.want {
			t.Errorf("%s is %q, want %q", test.what, test.got, test.want)
		}
	}
	for _, text := range []string{
		"sha256:" + helloBase16, "sha256:" + strings.ToUpper(helloBase16), "sha256:" + helloNix32, "sha256:" + helloBase64, "sha256-" + helloBase64,
	} {
		if got, err := nix.ParseHash(text); err != nil || got != h {
			t.Errorf("ParseHash(%q) = %v, %v", text, got, err)
		}
		if got, err := nix.ParseHashOf(nix.SHA256, text); err != nil || got != h {
			t.Errorf("ParseHashOf(sha256, %q) = %v, %v", text, got, err)
		}
	}
	for _, text := range []string{helloBase16, helloNix32, helloBase64} {
		if got, err := nix.ParseHashOf(nix.SHA256, text); err != nil || got != h {
			t.Errorf("ParseHashOf(sha256, %q) = %v, %v", text, got, err)
		}
	}
}

func TestHashRefused(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"", "does not say its algorithm"},
		{helloNix32, "does not say its algorithm"},
		{"sha256", "does not say its algorithm"},
		{"sha256:", "its length"},
		{":" + helloNix32, "unknown hash algorithm"},
		{"SHA256:" + helloNix32, "unknown hash algorithm"},
		{" sha256:" + helloNix32, "unknown hash algorithm"},
		{"sha257:" + helloNix32, "unknown hash algorithm"},
		{"blake3:" + helloNix32, "unknown hash algorithm"},
		{"sha1:" + helloNix32, "its length"},
		{"sha256:" + helloNix32 + "\n", "its length"},
		{"sha256:" + helloNix32[1:], "its length"},
		{"sha256:2" + helloNix32[1:], "bits to spare"},
		{"sha256:" + "e" + helloNix32[1:], "no digit"},
		{"sha256:" + "g" + helloBase16[1:], "invalid byte"},
		{"sha256:" + helloBase64[:43], "its length"},
		{"sha256:" + helloBase64[:43] + "A", "canonical base 64"},
		{"sha256:" + helloBase64[:42] + "N=", "canonical base 64"},
		{"sha256:" + helloBase64[:42] + "\n=", "canonical base 64"},
		{"sha256:" + helloBase64[:42] + "\r\n", "canonical base 64"},
		{"sha256:_" + helloBase64[1:], "canonical base 64"},
		{"sha256-" + helloNix32, "after the dash"},
		{"sha256-" + helloBase16, "after the dash"},
		{"sha256-" + helloBase64 + "?opt", "after the dash"},
	} {
		_, err := nix.ParseHash(test.text)
		wantErr(t, err, test.want)
	}
	for _, test := range []struct{ text, want string }{
		{"", "its length"},
		{"sha1:" + strings.Repeat("0", 32), "it is of sha1, not of sha256"},
		{helloNix32[1:], "its length"},
	} {
		_, err := nix.ParseHashOf(nix.SHA256, test.text)
		wantErr(t, err, test.want)
	}
	_, err := nix.ParseHashOf(0, helloNix32)
	wantErr(t, err, "unknown hash algorithm")
	_, err = nix.ParseHashOf(200, "")
	wantErr(t, err, "unknown hash algorithm")
}

func TestNewHash(t *testing.T) {
	_, err := nix.NewHash(nix.SHA256, make([]byte, 31))
	wantErr(t, err, "31 bytes, not 32")
	_, err = nix.NewHash(0, nil)
	wantErr(t, err, "make")
	var none nix.Hash
	if !none.IsZero() || none.String() != "" || none.SRI() != "" || len(none.Sum()) != 0 || none.Algorithm() != 0 {
		t.Errorf("the zero hash is not empty: %v", none)
	}
}

func TestHashSumIsACopy(t *testing.T) {
	h := nix.SHA256Sum([32]byte{1})
	h.Sum()[0] = 2
	if got := h.Sum()[0]; got != 1 {
		t.Errorf("the hash was changed through Sum: %d", got)
	}
}

func genAnyHash() *rapid.Generator[nix.Hash] {
	return genHash(nix.MD5, nix.SHA1, nix.SHA256, nix.SHA512)
}

func TestHashRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := genAnyHash().Draw(t, "hash")
		if again := must(nix.NewHash(h.Algorithm(), h.Sum())); again != h {
			t.Fatalf("got %v, want %v", again, h)
		}
		prefix := h.Algorithm().String() + ":"
		for _, text := range []string{h.String(), h.SRI(), prefix + h.Base16(), prefix + h.Nix32(), prefix + h.Base64()} {
			if got, err := nix.ParseHash(text); err != nil || got != h {
				t.Fatalf("ParseHash(%q) = %v, %v, want %v", text, got, err, h)
			}
		}
		for _, text := range []string{h.Base16(), h.Nix32(), h.Base64()} {
			if got, err := nix.ParseHashOf(h.Algorithm(), text); err != nil || got != h {
				t.Fatalf("ParseHashOf(%q) = %v, %v, want %v", text, got, err, h)
			}
		}
	})
}

func FuzzHash(f *testing.F) {
	f.Add("sha256:" + helloBase16)
	f.Add("sha256:" + helloNix32)
	f.Add("sha256-" + helloBase64)
	f.Add("md5:4425hx5d1mc9y39llj4k4nm55i")
	f.Add("sha1:wz60bbf44cw7nswp1wv8vcsyfg155sqd")
	f.Fuzz(func(t *testing.T, text string) {
		h, err := nix.ParseHash(text)
		if err != nil {
			if !h.IsZero() {
				t.Errorf("refused, but got %v", h)
			}
			return
		}
		if got, err := nix.ParseHash(h.String()); err != nil || got != h {
			t.Errorf("%q: String is read as %v, %v", text, got, err)
		}
		// Each form has one text, except that base 16 has two cases.
		if _, bare, _ := strings.Cut(text, ":"); bare != "" &&
			bare != h.Nix32() && bare != h.Base64() && !strings.EqualFold(bare, h.Base16()) {
			t.Errorf("%q is not canonical, but accepted", text)
		}
		if !bytes.Equal(h.Sum(), must(nix.ParseHashOf(h.Algorithm(), text)).Sum()) {
			t.Errorf("%q: ParseHash and ParseHashOf differ", text)
		}
	})
}
