package nix_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"firn/nix"
)

// The key of seed 00 01 … 1f, and what it signs the fingerprint of hello.txt to, as Nix does.
const (
	testPublicKey = "test-1:A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="
	testSecretKey = "test-1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8DoQe/884Qvh1w3RjnS8CZZ+TWMJulDV8d3IZkElUxuA=="
	testSignature = "test-1" + signatureTail
	signatureTail = ":GEOKzKtcQQJDLaxdPZSYOX9BZhkCHZvHNMGx2KTS4/m5mZ8ROkYezx0mTXp01O+i7x0dWcBJBmLqSdnNjSGmCw=="
	helloPrint    = "1;/nix/store/" + helloBase + ";sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw;120;"
)

func TestKeys(t *testing.T) {
	secret, err := nix.ParseSecretKey(testSecretKey + "\n")
	if err != nil {
		t.Fatal(err)
	}
	public, err := nix.ParsePublicKey(testPublicKey + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if secret.Public() != public || public.String() != testPublicKey || secret.Reveal() != testSecretKey {
		t.Errorf("got %v and %v", secret.Public(), public)
	}
	if secret.Name() != "test-1" || public.Name() != "test-1" || secret.IsZero() || public.IsZero() {
		t.Errorf("names are %q and %q", secret.Name(), public.Name())
	}
	if text, err := public.MarshalText(); err != nil || string(text) != testPublicKey {
		t.Errorf("MarshalText is %q, %v", text, err)
	}
	sig := secret.Sign([]byte(helloPrint))
	if sig.String() != testSignature {
		t.Errorf("signature is %v, want %s", sig, testSignature)
	}
	if !public.Verify([]byte(helloPrint), sig) {
		t.Error("its own signature does not verify")
	}
	if parsed := must(nix.ParseSignature(testSignature)); parsed != sig || !bytes.Equal(parsed.Bytes(), sig.Bytes()) {
		t.Errorf("parsed signature is %v", parsed)
	}
}

func TestVerifyRefuses(t *testing.T) {
	public := must(nix.ParsePublicKey(testPublicKey))
	sig := must(nix.ParseSignature(testSignature))
	if public.Verify([]byte(helloPrint+"x"), sig) {
		t.Error("a signature of another text verifies")
	}
	renamed := sig
	renamed.Name = "test-2"
	if public.Verify([]byte(helloPrint), renamed) {
		t.Error("a signature by a key of another name verifies")
	}
	flipped := sig.Bytes()
	flipped[63] ^= 0x20
	if public.Verify([]byte(helloPrint), must(nix.NewSignature("test-1", flipped))) {
		t.Error("a changed signature verifies")
	}
	if (nix.PublicKey{}).Verify([]byte(helloPrint), nix.Signature{}) {
		t.Error("the zero signature verifies with the zero key")
	}
}

func TestGenerateKey(t *testing.T) {
	a, b := must(nix.GenerateKey("a-1")), must(nix.GenerateKey("a-1"))
	if a.Reveal() == b.Reveal() {
		t.Error("two generated keys are equal")
	}
	again, err := nix.ParseSecretKey(a.Reveal())
	if err != nil || again.Reveal() != a.Reveal() || again.Public() != a.Public() {
		t.Errorf("a generated key is read as %v, %v", again, err)
	}
	for _, name := range []string{"", "a:b", "a b", "a\n", "é", strings.Repeat("a", 513)} {
		_, err := nix.GenerateKey(name)
		wantErr(t, err, "visible ASCII")
	}
}

func TestKeysRefused(t *testing.T) {
	_, text, _ := strings.Cut(testSecretKey, ":")
	swapped := must(base64.StdEncoding.DecodeString(text))
	swapped[63] ^= 1
	for _, test := range []struct{ text, want string }{
		{"", "no colon"},
		{text, "no colon"},
		{":" + text, "visible ASCII"},
		{"a b:" + text, "visible ASCII"},
		{"test-1:", "not base 64 of 64 bytes"},
		{testPublicKey, "not base 64 of 64 bytes"},
		{testSecretKey + "\n\n", "not base 64 of 64 bytes"},
		{testSecretKey + "\r\n", "carriage return"},
		{testSecretKey + " ", "not base 64 of 64 bytes"},
		{"\n" + testSecretKey, "visible ASCII"},
		{strings.TrimRight(testSecretKey, "="), "not base 64 of 64 bytes"},
		{testSecretKey[:20] + "\n" + testSecretKey[21:], "canonical base 64"},
		{testSecretKey[:20] + "_" + testSecretKey[21:], "canonical base 64"},
		{"test-1:" + base64.StdEncoding.EncodeToString(swapped), "parse secret key test-1: its public half"},
	} {
		_, err := nix.ParseSecretKey(test.text)
		wantErr(t, err, test.want)
		if err != nil && strings.Contains(err.Error(), text[10:30]) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
	for _, test := range []struct{ text, want string }{
		{"", "no colon"},
		{testSecretKey, "not base 64 of 32 bytes"},
		{testPublicKey + "\r\n", "carriage return"},
		{testPublicKey + "=", "not base 64 of 32 bytes"},
		{strings.Replace(testPublicKey, "bg=", "bh=", 1), "canonical base 64"},
	} {
		_, err := nix.ParsePublicKey(test.text)
		wantErr(t, err, test.want)
		if err != nil && strings.Contains(err.Error(), text[10:30]) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
	for _, test := range []struct{ text, want string }{
		{"", "no colon"},
		{"test-1", "no colon"},
		{"test-1:", "not base 64 of 64 to 8192 bytes"},
		{":" + text, "visible ASCII"},
		{testSignature + "\n", "canonical base 64"},
		{testSignature[:20] + "-" + testSignature[21:], "canonical base 64"},
		{strings.Replace(testSignature, "Cw==", "Cx==", 1), "canonical base 64"},
	} {
		_, err := nix.ParseSignature(test.text)
		wantErr(t, err, test.want)
	}
	_, err := nix.NewSignature("a", make([]byte, 63))
	wantErr(t, err, "63 bytes, not 64 to 8192")
	_, err = nix.NewSignature("a", make([]byte, 8193))
	wantErr(t, err, "8193 bytes, not 64 to 8192")
	_, err = nix.NewSignature("", make([]byte, 64))
	wantErr(t, err, "visible ASCII")
}

// The secret must not come out of anything but Reveal, however deep the key is hidden in what is printed.
func TestSecretKeyIsRedacted(t *testing.T) {
	key := must(nix.ParseSecretKey(testSecretKey))
	type hidden struct{ key nix.SecretKey }
	type options struct {
		Key  nix.SecretKey
		Keys []nix.SecretKey
		Map  map[string]nix.SecretKey
		Ptr  *nix.SecretKey
		hidden
	}
	values := []any{key, &key, []nix.SecretKey{key}, map[string]nix.SecretKey{"k": key}, hidden{key}, &hidden{key},
		options{key, []nix.SecretKey{key}, map[string]nix.SecretKey{"k": key}, &key, hidden{key}}}

	var out strings.Builder
	for _, verb := range []string{"%v", "%s", "%+v", "%#v", "%q", "%x", "%X", "%d", "%b", "%o", "%c", "%U", "%e", "%t", "%p", "%T", "%!"} {
		for _, v := range values {
			fmt.Fprintf(&out, verb+"\n", v)
		}
	}
	for _, v := range values {
		fmt.Fprintln(&out, v)
		out.Write(must(json.Marshal(v)))
		for _, handler := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
			slog.New(handler).Info("key", "value", v, slog.Group("g", "value", v))
		}
	}
	fmt.Fprintln(&out, fmt.Errorf("wrapped: %v %w", key, fmt.Errorf("%v", &key)))

	seed := must(base64.StdEncoding.DecodeString(strings.Split(testSecretKey, ":")[1]))[:32]
	for _, secret := range []string{
		testSecretKey[7:], testSecretKey[7:40], string(seed[8:]), fmt.Sprintf("%x", seed[8:]), fmt.Sprintf("%X", seed[8:]),
		strings.Trim(fmt.Sprint(seed[8:20]), "[]"), fmt.Sprintf("%#v", seed[8:20])[7:], strings.Trim(fmt.Sprintf("%o", seed[8:20]), "[]"),
		strings.Trim(fmt.Sprintf("%b", seed[8:20]), "[]"), strings.Trim(fmt.Sprintf("%U", seed[8:20]), "[]"),
	} {
		if secret = strings.TrimSuffix(secret, "}"); strings.Contains(out.String(), secret) {
			t.Errorf("the secret is printed, as %q", secret)
		}
	}
	if got := fmt.Sprintf("%v %s %+v %#v", key, key, key, key); got != strings.Repeat(" test-1:[redacted]", 4)[1:] {
		t.Errorf("a key prints as %s", got)
	}
	if got := string(must(json.Marshal(key))); got != `"test-1:[redacted]"` {
		t.Errorf("a key is encoded as %s", got)
	}
}

func TestSignatureRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sig := genSignature().Draw(t, "signature")
		if got, err := nix.ParseSignature(sig.String()); err != nil || got != sig {
			t.Fatalf("got %v, %v, want %v", got, err, sig)
		}
	})
}

// A signature of another algorithm is kept as it is, and no key that this package knows has made
// it.
func TestSignatureOfAnotherAlgorithm(t *testing.T) {
	key := must(nix.ParseSecretKey(testSecretKey))
	own := key.Sign([]byte(helloPrint))
	for _, size := range []int{64, 65, 66, 67, 102, 103, 104, 2420, 3309, 4627, 8192} {
		text := "test-1:" + base64.StdEncoding.EncodeToString(append(own.Bytes(), make([]byte, size-64)...))
		sig := must(nix.ParseSignature(text))
		if sig.String() != text || len(sig.Bytes()) != size || sig.IsEd25519() != (size == 64) {
			t.Errorf("of %d bytes: %.100v with %d bytes, Ed25519: %v", size, sig, len(sig.Bytes()), sig.IsEd25519())
		}
		if right := key.Public().Verify([]byte(helloPrint), sig); right != (size == 64) {
			t.Errorf("of %d bytes: the key says %v", size, right)
		}
	}
}

func FuzzSignature(f *testing.F) {
	f.Add(testSignature)
	f.Add("cache.example.org-1:AAAA")
	for _, size := range []int{63, 65, 102, 104, 2420, 8192, 8193} {
		f.Add("a:" + base64.StdEncoding.EncodeToString(make([]byte, size)))
	}
	f.Fuzz(func(t *testing.T, text string) {
		if sig, err := nix.ParseSignature(text); err == nil && sig.String() != text {
			t.Errorf("%q is accepted, but written as %q", text, sig)
		}
	})
}

func FuzzPublicKey(f *testing.F) {
	f.Add(testPublicKey)
	f.Add(testPublicKey + "\n")
	f.Fuzz(func(t *testing.T, text string) {
		key, err := nix.ParsePublicKey(text)
		if err != nil {
			return
		}
		if key.String() != strings.TrimSuffix(text, "\n") {
			t.Errorf("%q is accepted, but written as %q", text, key)
		}
		key.Verify([]byte(helloPrint), must(nix.ParseSignature(testSignature))) // on whatever curve point it is
	})
}

func FuzzSecretKey(f *testing.F) {
	f.Add(testSecretKey)
	f.Add(testSecretKey + "\n")
	f.Add(testPublicKey)
	f.Fuzz(func(t *testing.T, text string) {
		key, err := nix.ParseSecretKey(text)
		if err != nil {
			return
		}
		if key.Reveal() != strings.TrimSuffix(text, "\n") {
			t.Errorf("%q is accepted, but written otherwise", text)
		}
		if !key.Public().Verify(nil, key.Sign(nil)) {
			t.Errorf("%q: its signature does not verify", text)
		}
	})
}
