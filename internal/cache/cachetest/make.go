package cachetest

import (
	"bytes"
	"io"
	"testing"

	"firn/nix"
	"firn/nix/nar"
)

func newKey(t testing.TB, name string) nix.SecretKey {
	t.Helper()
	k, err := nix.GenerateKey(name)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func storePath(t testing.TB, base string) nix.StorePath {
	t.Helper()
	p, err := nix.DefaultStoreDir.ParseBase(base)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func asJSON(t testing.TB, v interface{ MarshalJSON() ([]byte, error) }) string {
	t.Helper()
	b, err := v.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TreeNAR returns the NAR of a directory with the given files, none of them executable.
func TreeNAR(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var archive bytes.Buffer
	w := nar.NewWriter(&archive)
	for _, h := range tree(files) {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Type == nar.TypeRegular {
			if _, err := io.WriteString(w, files[h.Path]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}
