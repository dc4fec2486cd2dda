package nix_test

import (
	"fmt"
	"testing"

	"firn/nix"
)

// benchInfo is a path info of the usual shape: a dozen references and two signatures.
func benchInfo() *nix.PathInfo {
	info := fullInfo().PathInfo
	info.References = nil
	for i := range 12 {
		info.References = append(info.References, base(nix.PathHash{19: byte(i)}.String()+fmt.Sprintf("-library-%d.0.1-dev", i)))
	}
	return &info
}

func benchNARInfo() *nix.NARInfo {
	n := fullInfo()
	n.PathInfo = *benchInfo()
	return n
}

func BenchmarkParseNARInfo(b *testing.B) {
	text := benchNARInfo().AppendText(nil)
	for _, parser := range []struct {
		name  string
		parse func(nix.StoreDir, []byte) (*nix.NARInfo, error)
	}{{"tolerant", nix.ParseNARInfo}, {"strict", nix.ParseNARInfoStrict}} {
		b.Run(parser.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				if _, err := parser.parse(nix.DefaultStoreDir, text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkNARInfoAppendText(b *testing.B) {
	n := benchNARInfo()
	buf := n.AppendText(nil)
	b.ReportAllocs()
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		buf = n.AppendText(buf[:0])
	}
}

func BenchmarkNARInfoMarshalJSON(b *testing.B) {
	n := benchNARInfo()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := n.MarshalJSON(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendFingerprint(b *testing.B) {
	info := benchInfo()
	buf := info.AppendFingerprint(nil)
	b.ReportAllocs()
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		buf = info.AppendFingerprint(buf[:0])
	}
}

func BenchmarkSign(b *testing.B) {
	key := must(nix.ParseSecretKey(testSecretKey))
	fingerprint := benchInfo().AppendFingerprint(nil)
	b.ReportAllocs()
	for b.Loop() {
		key.Sign(fingerprint)
	}
}

func BenchmarkVerify(b *testing.B) {
	key := must(nix.ParsePublicKey(testPublicKey))
	sig := must(nix.ParseSignature(testSignature))
	b.ReportAllocs()
	for b.Loop() {
		if !key.Verify([]byte(helloPrint), sig) {
			b.Fatal("does not verify")
		}
	}
}

func BenchmarkParsePathHash(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := nix.ParsePathHash("i9pmrzmpshapij2kin22pff6fc2adavx"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseStorePath(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := nix.DefaultStoreDir.ParsePath("/nix/store/" + helloBase); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHashAppend(b *testing.B) {
	h := nix.SHA256Sum([32]byte{1, 2, 3})
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = h.Append(buf[:0])
	}
}

func BenchmarkParseHash(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := nix.ParseHash("sha256:" + helloNix32); err != nil {
			b.Fatal(err)
		}
	}
}
