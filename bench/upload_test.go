//go:build linux

package main

import (
	"bytes"
	"crypto/sha256"
	"io"
	"testing"

	"firn/nix"
	"firn/nix/nar"
)

func TestUploads(t *testing.T) {
	const size = 1 << 20
	names, err := uploadNames(size)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for i, name := range names {
		var archive bytes.Buffer
		if err := writeUpload(&archive, size); err != nil {
			t.Fatal(err)
		}
		archive.Write(uploadTail(i))
		if got := nix.SHA256Sum(sha256.Sum256(archive.Bytes())).Nix32(); got != name || seen[name] {
			t.Errorf("upload %d is named %s and has the hash %s; seen before: %v", i, name, got, seen[name])
		}
		seen[name] = true
		r := nar.NewReader(&archive)
		if h, err := r.Next(); err != nil || h.Size != size {
			t.Fatalf("upload %d: %+v, %v", i, h, err)
		}
		if _, err := r.Next(); err != io.EOF {
			t.Fatalf("upload %d: %v, want its end", i, err)
		}
		if err := r.CheckEnd(); err != nil {
			t.Fatalf("upload %d: %v", i, err)
		}
	}
}
