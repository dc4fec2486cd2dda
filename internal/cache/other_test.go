package cache_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/nix"
)

// otherSignature returns a signature of another algorithm than Ed25519.
func otherSignature(t *testing.T, name string) nix.Signature {
	t.Helper()
	sig, err := nix.NewSignature(name, make([]byte, 4627))
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// A signature of another algorithm is kept and served, and so are unknown fields; both stay when
// the narinfo comes back without them.
func TestWhatIsUnknownIsKept(t *testing.T) {
	c := newPushed(t, cache.Options{})
	n := c.upload(hello(t))
	theirs := newKey(t, "theirs-1").Sign(n.AppendFingerprint(nil))
	n.Signatures = []nix.Signature{otherSignature(t, "ml-dsa-1"), theirs}
	n.Extra = []nix.Field{{Name: "Provenance", Value: `{"type":"copied"}`}}
	c.publish(n)
	wantKept := func(sigs ...nix.Signature) {
		t.Helper()
		got := wantNARInfo(t, c.Cache, n.Path.Hash())
		sigs = append(sigs, c.key.Sign(n.AppendFingerprint(nil)))
		if diff := cmp.Diff(texts(sigs), texts(got.Signatures)); diff != "" {
			t.Errorf("signatures (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(n.Extra, got.Extra); diff != "" {
			t.Errorf("unknown fields (-want +got):\n%s", diff)
		}
	}
	wantKept(n.Signatures...)

	// As nix store sign of a Nix that knows no such field sends it back.
	back := *wantNARInfo(t, c.Cache, n.Path.Hash())
	back.Extra = nil
	back.Signatures = append(slices.Clip(back.Signatures), otherSignature(t, "ml-dsa-2"))
	c.publish(&back)
	wantKept(n.Signatures[0], theirs, otherSignature(t, "ml-dsa-2"))
}

// A path that was pushed, and then built on this machine with another NAR, gets signatures of the
// NAR that is served.
func TestSignatureOfLocalNAR(t *testing.T) {
	tree := func(text string) cachetest.Path {
		return cachetest.NewTree(t, nix.DefaultStoreDir, "app", map[string]string{"name": text})
	}
	pushed, built := tree("pushed"), tree("built")
	built.Info.Path = pushed.Info.Path
	store := cachetest.NewMemory()
	c := newPushed(t, cache.Options{}, store)
	c.publish(c.upload(pushed))
	store.Add(built)
	back := *wantNARInfo(t, c.Cache, built.Info.Path.Hash())
	more := newKey(t, "more-1").Sign(back.AppendFingerprint(nil))
	back.Signatures = append(slices.Clip(back.Signatures), more)
	c.publish(&back)
	if got := wantNARInfo(t, c.Cache, built.Info.Path.Hash()); !slices.Contains(got.Signatures, more) {
		t.Errorf("signatures are %q, without the one that was taken", texts(got.Signatures))
	}
}

// A signature of another algorithm is refused under a name that is known to be that of an Ed25519
// key.
func TestMisleadingSignaturesAreRefused(t *testing.T) {
	c := newPushed(t, cache.Options{Reserved: func(name string) bool { return name == "team-1" }})
	n := c.upload(hello(t))
	for name, says := range map[string]string{
		"ours-1":            "that is a key of this cache, and it has not made it",
		"team-1":            "the name of an Ed25519 key",
		"cache.nixos.org-1": "the name of an Ed25519 key",
	} {
		n.Signatures = []nix.Signature{otherSignature(t, name)}
		c.wantRefused(n, cache.ErrInvalid, says)
		if left := c.Others(append(n.Signatures, otherSignature(t, "a-1")), n.AppendFingerprint(nil)); len(left) != 1 || left[0].Name != "a-1" {
			t.Errorf("of %s and a-1 are left %q", name, texts(left))
		}
	}
	n.Signatures = nil
	c.publish(n)
	r := &nix.Realisation{OutPath: n.Path, Signatures: []nix.Signature{otherSignature(t, "team-1")}}
	if err := c.PutRealisation(t.Context(), r); !errors.Is(err, cache.ErrInvalid) {
		t.Errorf("a realisation with such a signature: %v", err)
	}
}

// What a source has of such signatures is left out, and so is one beside a signature by the Ed25519
// key of that name.
func TestMisleadingSignaturesAreNotServed(t *testing.T) {
	p := hello(t)
	fingerprint := p.Info.AppendFingerprint(nil)
	theirs := newKey(t, "theirs-1").Sign(fingerprint)
	p.Info.Signatures = []nix.Signature{
		otherSignature(t, "ours-1"), otherSignature(t, "theirs-1"), otherSignature(t, "cache.nixos.org-1"), otherSignature(t, "ml-dsa-1"), theirs,
	}
	ours := newKey(t, "ours-1")
	c := newCache(t, cache.Options{Keys: []nix.SecretKey{ours}}, cachetest.NewMemory(p))
	want := []nix.Signature{otherSignature(t, "ml-dsa-1"), theirs, ours.Sign(fingerprint)}
	if diff := cmp.Diff(texts(want), texts(wantNARInfo(t, c, p.Info.Path.Hash()).Signatures)); diff != "" {
		t.Errorf("signatures (-want +got):\n%s", diff)
	}
}
