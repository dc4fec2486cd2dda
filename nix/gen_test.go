package nix_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"firn/nix"
)

// The values of this package are compared as they are: all are plain data but for their fields being hidden.
var cmpValues = cmp.Exporter(func(t reflect.Type) bool { return strings.HasPrefix(t.PkgPath(), "firn/nix") })

const nameCharacters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+-._?="

// genDir draws a store directory, most often the usual one.
func genDir() *rapid.Generator[nix.StoreDir] {
	return rapid.SampledFrom([]nix.StoreDir{nix.DefaultStoreDir, "/nix/store", "/gnu/store", "/home/jörg/my store/a-b"})
}

// genName draws the name of a store path.
func genName() *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		first := rapid.SampledFrom([]rune(strings.ReplaceAll(nameCharacters, ".", ""))).Draw(t, "first")
		rest := rapid.StringOfN(rapid.SampledFrom([]rune(nameCharacters)), 0, 210, 210).Draw(t, "rest")
		return string(first) + rest
	})
}

func genBytes(n int) *rapid.Generator[[]byte] { return rapid.SliceOfN(rapid.Byte(), n, n) }

// genPath draws a store path.
func genPath(dir nix.StoreDir) *rapid.Generator[nix.StorePath] {
	return rapid.Custom(func(t *rapid.T) nix.StorePath {
		hash := nix.PathHash(genBytes(20).Draw(t, "path hash"))
		return must(dir.ParseBase(hash.String() + "-" + genName().Draw(t, "name")))
	})
}

// genHash draws a hash of one of the algorithms.
func genHash(algorithms ...nix.HashAlgorithm) *rapid.Generator[nix.Hash] {
	return rapid.Custom(func(t *rapid.T) nix.Hash {
		algo := rapid.SampledFrom(algorithms).Draw(t, "algorithm")
		return must(nix.NewHash(algo, genBytes(algo.Size()).Draw(t, "sum")))
	})
}

func genContentAddress() *rapid.Generator[nix.ContentAddress] {
	return rapid.OneOf(
		rapid.Map(genHash(nix.SHA256), contentAddress(nix.TextMethod)),
		rapid.Map(genHash(nix.SHA1, nix.SHA256), contentAddress(nix.GitMethod)),
		rapid.Map(genHash(nix.MD5, nix.SHA1, nix.SHA256, nix.SHA512), contentAddress(nix.FlatMethod)),
		rapid.Map(genHash(nix.MD5, nix.SHA1, nix.SHA256, nix.SHA512), contentAddress(nix.NARMethod)),
	)
}

func contentAddress(method nix.ContentMethod) func(nix.Hash) nix.ContentAddress {
	return func(hash nix.Hash) nix.ContentAddress { return must(nix.NewContentAddress(method, hash)) }
}

func genKeyName() *rapid.Generator[string] { return rapid.StringMatching(`[!-9;-~]{1,40}`) }

func genSignature() *rapid.Generator[nix.Signature] {
	return rapid.Custom(func(t *rapid.T) nix.Signature {
		return must(nix.NewSignature(genKeyName().Draw(t, "key name"), genBytes(rapid.SampledFrom([]int{64, 64, 64, 65, 66, 104, 4627, 8192}).Draw(t, "size")).Draw(t, "signature")))
	})
}

// genNARInfo draws a narinfo that the strict reader accepts.
func genNARInfo() *rapid.Generator[*nix.NARInfo] {
	return rapid.Custom(func(t *rapid.T) *nix.NARInfo {
		dir := genDir().Draw(t, "dir")
		n := &nix.NARInfo{
			PathInfo: nix.PathInfo{
				Path:       genPath(dir).Draw(t, "path"),
				NARHash:    genHash(nix.SHA256).Draw(t, "NAR hash"),
				NARSize:    rapid.Int64Range(12, 1<<60-1).Draw(t, "NAR size / 8") * 8,
				References: nix.SortPaths(rapid.SliceOfN(genPath(dir), 0, 5).Draw(t, "references")),
				Signatures: rapid.SliceOfNDistinct(genSignature(), 0, 3, nix.Signature.String).Draw(t, "signatures"),
			},
			URL:         rapid.StringMatching(`nar/[0-9a-z]{1,52}\.nar(\.xz)?`).Draw(t, "URL"),
			Compression: rapid.SampledFrom([]nix.Compression{nix.None, nix.XZ, nix.Zstd, nix.Bzip2, nix.Brotli}).Draw(t, "compression"),
		}
		self := rapid.Bool().Draw(t, "refers to itself")
		if rapid.Bool().Draw(t, "content-addressed") {
			n.CA = genContentAddress().Draw(t, "content address")
			if n.CA.Method() != nix.NARMethod || n.CA.Hash().Algorithm() != nix.SHA256 {
				self = false
				if n.CA.Method() != nix.TextMethod {
					n.References = nil
				}
			} else if !self {
				n.CA = contentAddress(nix.NARMethod)(n.NARHash)
			}
			refs := n.References
			if self {
				refs = append([]nix.StorePath{{}}, refs...)
			}
			n.Path = must(n.CA.StorePath(dir, n.Path.Name(), refs))
		}
		if self {
			n.References = nix.SortPaths(append(n.References, n.Path))
		}
		if len(n.References) == 0 {
			n.References = nil
		}
		if rapid.Bool().Draw(t, "has file") {
			n.FileHash, n.FileSize = n.NARHash, n.NARSize
			if n.Compression != nix.None {
				n.FileHash = genHash(nix.SHA256).Draw(t, "file hash")
				n.FileSize = rapid.Int64Range(1, 1<<62).Draw(t, "file size")
			}
		}
		if rapid.Bool().Draw(t, "has deriver") {
			n.Deriver = genPath(dir).Draw(t, "deriver")
		}
		if len(n.Signatures) == 0 {
			n.Signatures = nil
		}
		for i := range rapid.IntRange(0, 3).Draw(t, "unknown fields") {
			n.Extra = append(n.Extra, nix.Field{Name: fmt.Sprint("Field-", i), Value: rapid.StringMatching(`[!-~é]( ?[!-~é]){0,20}`).Draw(t, "value")})
		}
		return n
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// wantErr fails unless err has the text.
func wantErr(t testing.TB, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("error is %v, want one with %q", err, text)
	}
}

// unixTime is some time of registration.
var unixTime = time.Unix(1700000000, 0)
