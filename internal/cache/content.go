package cache

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"io"
	"slices"
	"strconv"

	"firn/nix"
	"firn/nix/nar"
)

// maxSelfReferences bounds how often a store path with a content address may name itself, each of which takes 8 bytes while it is checked.
const maxSelfReferences = 1 << 20

// checkContents checks that a NAR that was received is what the content address of its path says.
func (c *Cache) checkContents(ctx context.Context, info *nix.PathInfo, r Received) error {
	self := slices.Contains(info.References, info.Path)
	ca := info.CA
	switch method := ca.Method(); {
	case ca.IsZero():
		return nil
	case method == nix.NARMethod && ca.Hash().Algorithm() == nix.SHA256 && !self:
		return nil // it is the NAR hash, and nix compares it with that
	case method == nix.GitMethod:
		return Refuse(ErrInvalid, "CA: %s is a hash of git, which is not supported: in Nix it is experimental (git-hashing)", ca)
	}
	n, err := c.sink.OpenReceived(ctx, r)
	if err != nil {
		return fmt.Errorf("read NAR of %s: %w", info.Path, err)
	}
	defer n.Close()
	h, err := newHash(ca.Hash().Algorithm())
	if err != nil {
		return err
	}
	var right bool
	switch {
	case ca.Method() != nix.NARMethod:
		err = hashFile(ctx, n, h)
		right = bytes.Equal(h.Sum(nil), ca.Hash().Sum())
	case self:
		right, err = isModulo(ctx, n, h, ca.Hash(), info.Path)
	default:
		err = n.WriteRange(ctx, h, 0, n.Size())
		right = bytes.Equal(h.Sum(nil), ca.Hash().Sum())
	}
	if err != nil {
		return fmt.Errorf("compute content address of %s: %w", info.Path, err)
	}
	if !right {
		return Refuse(ErrInvalid, "CA: %s is not the address of what was uploaded for %s", ca, info.Path)
	}
	return nil
}

func newHash(a nix.HashAlgorithm) (hash.Hash, error) {
	switch a {
	case nix.MD5:
		return md5.New(), nil
	case nix.SHA1:
		return sha1.New(), nil
	case nix.SHA256:
		return sha256.New(), nil
	case nix.SHA512:
		return sha512.New(), nil
	}
	return nil, Refuse(ErrInvalid, "CA: %s is unknown", a)
}

// hashFile writes the contents of the file that a NAR is of to w.
func hashFile(ctx context.Context, n NAR, w io.Writer) error {
	r, pipe := io.Pipe()
	written := make(chan struct{})
	go func() {
		defer close(written)
		pipe.CloseWithError(n.WriteRange(ctx, pipe, 0, n.Size()))
	}()
	defer func() {
		r.Close()
		<-written // the NAR is closed then
	}()
	archive := nar.NewReader(bufio.NewReaderSize(r, 32<<10))
	h, err := archive.Next()
	switch {
	case err != nil:
		return err
	case h.Type != nar.TypeRegular:
		return Refuse(ErrInvalid, "CA: it is the address of a file, and a %s was uploaded", h.Type)
	}
	_, err = io.Copy(w, archive)
	return err
}

// isModulo reports whether want is the hash of a NAR that has the path hash of its own path in it:
// with zero bytes in their place, and then their positions, as Nix does. From 2.17 to 2.34 it left the positions out,
// so that is right too; what it hashed so would be lost otherwise.
func isModulo(ctx context.Context, n NAR, h hash.Hash, want nix.Hash, path nix.StorePath) (bool, error) {
	m := &modulo{hash: h, own: []byte(path.Hash().String())}
	if err := n.WriteRange(ctx, m, 0, n.Size()); err != nil {
		return false, err
	}
	h.Write(m.tail)
	if bytes.Equal(h.Sum(nil), want.Sum()) {
		return true, nil
	}
	var text []byte
	for _, at := range m.positions {
		text = strconv.AppendInt(append(text[:0], '|'), at, 10)
		h.Write(text)
	}
	return bytes.Equal(h.Sum(nil), want.Sum()), nil
}

// modulo is a writer that hashes what is written to it with a text that occurs in it replaced by zero bytes.
type modulo struct {
	hash      hash.Hash
	own       []byte
	positions []int64 // of own
	tail      []byte  // what may be the beginning of own, so not hashed yet
	hashed    int64   // bytes before that
	buf       []byte
}

func (m *modulo) Write(p []byte) (int, error) {
	const piece = 64 << 10
	for part := range slices.Chunk(p, piece) {
		m.buf = append(append(m.buf[:0], m.tail...), part...)
		for at := 0; ; at += len(m.own) {
			i := bytes.Index(m.buf[at:], m.own)
			if i < 0 {
				break
			}
			at += i
			if len(m.positions) == maxSelfReferences {
				return 0, Refuse(ErrTooLarge, "CA: the path names itself more than %d times", maxSelfReferences)
			}
			m.positions = append(m.positions, m.hashed+int64(at))
			clear(m.buf[at : at+len(m.own)])
		}
		sure := max(0, len(m.buf)-len(m.own)+1)
		m.hash.Write(m.buf[:sure])
		m.hashed += int64(sure)
		m.tail = append(m.tail[:0], m.buf[sure:]...)
	}
	return len(p), nil
}
