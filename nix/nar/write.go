package nar

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
)

var (
	// ErrChanged is the cause of an error when the tree is not what it was when its layout was made.
	ErrChanged = errors.New("tree has changed since its layout was made")
	// ErrMismatch is the cause of an error when the bytes of a NAR do not have the promised hash.
	ErrMismatch = errors.New("NAR does not have the expected hash")
)

// WriteRange writes the n bytes from off on of the NAR of the tree at path, which was laid out before, to w.
//
// Small files are read ahead of w and gathered into few writes. Large ones are handed to the ReadFrom method of w, if it has one,
// in the form in which a [net/http.ResponseWriter] and a [net.TCPConn] send them with sendfile.
//
// A file that is gone, not as long as it was, or of another type by now is [ErrChanged]; that its bytes are others is not seen.
// With any error, w has not got all n bytes. Cancelling ctx ends the call at the next write, not one that blocks.
func (l *Layout) WriteRange(ctx context.Context, w io.Writer, path string, off, n int64) error {
	if off < 0 || n < 0 || off > l.size-n {
		return fmt.Errorf("write NAR of %s: %d bytes from %d on are not within its %d bytes", path, n, off, l.size)
	}
	fileMin := int64(math.MaxInt64)
	to, ok := w.(io.ReaderFrom)
	if ok {
		fileMin = sendfileMin
	}
	for p, err := range l.pieces(ctx, path, off, off+n, fileMin) {
		switch {
		case err != nil:
		case p.block != nil:
			_, err = w.Write(p.data)
		default:
			err = p.lend(ctx, to)
		}
		if err != nil {
			return fmt.Errorf("write NAR of %s: %w", path, err)
		}
	}
	return nil
}

// WriteVerified writes the whole NAR of the tree at path to w, and hashes it as it goes.
// Where its SHA-256 is not want, it returns [ErrMismatch], and w has not got the last bytes.
func (l *Layout) WriteVerified(ctx context.Context, w io.Writer, path string, want [sha256.Size]byte) error {
	hash := sha256.New()
	for p, err := range l.pieces(ctx, path, 0, l.size, math.MaxInt64) {
		switch {
		case err != nil:
		case p.end < l.size:
			var hashed sync.WaitGroup
			hashed.Go(func() { hash.Write(p.data) })
			_, err = w.Write(p.data)
			hashed.Wait()
		default:
			hash.Write(p.data)
			if [sha256.Size]byte(hash.Sum(nil)) != want {
				err = ErrMismatch
			} else {
				_, err = w.Write(p.data)
			}
		}
		if err != nil {
			return fmt.Errorf("write NAR of %s: %w", path, err)
		}
	}
	return nil
}

// Hash returns the SHA-256 of the NAR of the tree at path.
func (l *Layout) Hash(ctx context.Context, path string) (sum [sha256.Size]byte, err error) {
	hash := sha256.New()
	for p, err := range l.pieces(ctx, path, 0, l.size, math.MaxInt64) {
		if err != nil {
			return sum, fmt.Errorf("hash NAR of %s: %w", path, err)
		}
		hash.Write(p.data)
	}
	return [sha256.Size]byte(hash.Sum(nil)), nil
}
