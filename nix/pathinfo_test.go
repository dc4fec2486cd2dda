package nix_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"firn/nix"
)

func TestFingerprint(t *testing.T) {
	hello := must(nix.DefaultStoreDir.ParseBase(helloBase))
	other := must(nix.DefaultStoreDir.ParseBase("00000000000000000000000000000000-other"))
	info := nix.PathInfo{
		Path:    hello,
		NARHash: must(nix.ParseHash("sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw")),
		NARSize: 120,
	}
	if got := string(info.AppendFingerprint([]byte("x"))); got != "x"+helloPrint {
		t.Errorf("got %s, want %s", got, helloPrint)
	}
	info.References = nix.SortPaths([]nix.StorePath{hello, other})
	want := helloPrint + "/nix/store/00000000000000000000000000000000-other,/nix/store/" + helloBase
	if got := string(info.AppendFingerprint(nil)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestAppendFingerprintDoesNotAllocate(t *testing.T) {
	info := benchInfo()
	buf := info.AppendFingerprint(nil)
	if n := testing.AllocsPerRun(10, func() { buf = info.AppendFingerprint(buf[:0]) }); n > 0 {
		t.Errorf("it allocates %v times although the buffer is large enough", n)
	}
}

func TestCheckContentAddress(t *testing.T) {
	hash := must(nix.ParseHash("sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw"))
	otherHash := must(nix.ParseHash("sha256:" + helloNix32))
	good := nix.PathInfo{
		Path:    must(nix.DefaultStoreDir.ParseBase(helloBase)),
		NARHash: hash,
		NARSize: 120,
		CA:      contentAddress(nix.NARMethod)(hash),
	}
	if err := good.CheckContentAddress(); err != nil {
		t.Error(err)
	}
	without := good
	without.CA = nix.ContentAddress{}
	if err := without.CheckContentAddress(); err != nil {
		t.Error(err)
	}

	wrongPath := good
	wrongPath.Path = must(nix.DefaultStoreDir.ParseBase(helloBase + "x"))
	wantErr(t, wrongPath.CheckContentAddress(), "is the address of")
	wrongHash := good
	wrongHash.NARHash = otherHash
	wantErr(t, wrongHash.CheckContentAddress(), "is not of the NAR hash")
	referring := good
	referring.References = []nix.StorePath{good.Path}
	wantErr(t, referring.CheckContentAddress(), "is the address of")
	flat := good
	flat.CA = contentAddress(nix.FlatMethod)(otherHash)
	flat.References = []nix.StorePath{good.Path}
	wantErr(t, flat.CheckContentAddress(), "cannot have references")
	if !slices.Equal(flat.References, []nix.StorePath{good.Path}) {
		t.Errorf("the references were changed to %v", flat.References)
	}
}

func TestSignaturesCoverTheFingerprint(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := genNARInfo().Draw(t, "narinfo")
		key := must(nix.GenerateKey("k-1"))
		sig := key.Sign(n.AppendFingerprint(nil))
		n.URL, n.Compression, n.Deriver, n.FileHash, n.FileSize = "elsewhere", nix.Gzip, nix.StorePath{}, nix.Hash{}, 0
		if !key.Public().Verify(n.AppendFingerprint(nil), sig) {
			t.Fatal("moving and recompressing a NAR breaks its signature")
		}
		if n.NARSize += 8; key.Public().Verify(n.AppendFingerprint(nil), sig) {
			t.Fatal("another NAR size does not break the signature")
		}
	})
}
