//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"runtime"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"firn/nix"
)

const (
	// rangeSize is the size of the range that is asked for at the end of the largest NAR, in bytes.
	rangeSize = 4 << 10
	// missCount is the number of different path hashes that are asked for in vain.
	missCount = 4096
	// narinfoLimit bounds a narinfo, in bytes.
	narinfoLimit = 1 << 20
)

// Path is what every server must say of a store path.
type Path struct {
	Path       nix.StorePath
	NARHash    nix.Hash
	NARSize    int64
	References []nix.StorePath
}

// Target is what a server serves, found right, as requests ready to be sent.
type Target struct {
	NARInfos    []Request // in the order of the closure
	NARs        []Request
	Large       []Request // NARs that do not fit into the buffers of a connection
	Misses      []Request // narinfos that nobody has
	Range       Request   // the last bytes of the largest NAR
	Compression nix.Compression
	NARBytes    int64 // of all bodies of NARs
}

// verify is the warm-up: it asks a server for everything that will be measured, with a client that reads the bytes,
// and checks every NAR, decompressed, against the hash that Nix wrote into its own binary cache.
func verify(ctx context.Context, s *Server, closure []Path) (*Target, error) {
	v := &verifier{server: s, http: &http.Client{Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: runtime.NumCPU()}}}
	defer v.http.CloseIdleConnections()
	sizes, tails := make([]int64, len(closure)), make([][]byte, len(closure))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	for i, p := range closure {
		group.Go(func() (err error) {
			sizes[i], tails[i], err = v.nar(groupCtx, p)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	// The narinfos are read again: a NAR that is compressed when it is first asked for has got its file size now.
	t := &Target{}
	largest := 0
	for i, p := range closure {
		info, text, err := v.narinfo(ctx, p)
		if err != nil {
			return nil, err
		}
		if info.FileSize != 0 && info.FileSize != sizes[i] {
			return nil, fmt.Errorf("%s: FileSize %d of a NAR of %d bytes", p.Path.Hash(), info.FileSize, sizes[i])
		}
		t.Compression = info.Compression
		t.NARInfos = append(t.NARInfos, s.get(narinfoPath(p.Path.Hash()), http.StatusOK, int64(len(text))))
		t.NARs = append(t.NARs, s.get("/"+info.URL, http.StatusOK, sizes[i]))
		t.NARBytes += sizes[i]
		if sizes[i] > sizes[largest] {
			largest = i
		}
	}
	t.Large = largeNARs(t.NARs)
	from := max(0, sizes[largest]-rangeSize)
	t.Range = newRequest(s.Addr.String(), t.NARs[largest].path(), fmt.Sprintf("%d-", from), http.StatusPartialContent, sizes[largest]-from)
	if err := v.tail(ctx, t.Range.path(), from, tails[largest]); err != nil {
		return nil, err
	}
	for i := range missCount {
		sum := sha256.Sum256(fmt.Appendf(nil, "a path that nobody has: %d", i))
		t.Misses = append(t.Misses, s.get(narinfoPath(nix.PathHash(sum[:])), http.StatusNotFound, -1))
	}
	return t, nil
}

// largeNARs picks the requests whose bodies cannot hide in socket buffers, which Linux lets grow to 4 MiB at the sender;
// where there is none, the largest.
func largeNARs(nars []Request) []Request {
	const tooLarge = 8 << 20
	var large []Request
	var largest Request
	for _, r := range nars {
		if r.Size >= tooLarge {
			large = append(large, r)
		}
		if r.Size > largest.Size {
			largest = r
		}
	}
	if len(large) == 0 {
		large = append(large, largest)
	}
	return large
}

func narinfoPath(h nix.PathHash) string { return "/" + h.String() + ".narinfo" }

// verifier reads from one server.
type verifier struct {
	server *Server
	http   *http.Client
}

// get asks for a path, which includes the server's prefix.
func (v *verifier) get(ctx context.Context, path, rng string, status int) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+v.server.Addr.String()+path, nil)
	if err != nil {
		return nil, err
	}
	if rng != "" {
		req.Header.Set("Range", rng)
	}
	resp, err := v.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != status {
		resp.Body.Close()
		return nil, fmt.Errorf("GET %s: status %d instead of %d", path, resp.StatusCode, status)
	}
	return resp, nil
}

// narinfo reads the narinfo of p and compares it with what Nix says.
func (v *verifier) narinfo(ctx context.Context, p Path) (*nix.NARInfo, []byte, error) {
	path := v.server.Prefix + narinfoPath(p.Path.Hash())
	resp, err := v.get(ctx, path, "", http.StatusOK)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, narinfoLimit))
	if err != nil {
		return nil, nil, fmt.Errorf("GET %s: %w", path, err)
	}
	info, err := nix.ParseNARInfo(nix.DefaultStoreDir, text)
	if err != nil {
		return nil, nil, fmt.Errorf("GET %s: %w", path, err)
	}
	if info.NARHash != p.NARHash || info.NARSize != p.NARSize {
		return nil, nil, fmt.Errorf("GET %s: NAR %s of %d bytes instead of %s of %d", path, info.NARHash, info.NARSize, p.NARHash, p.NARSize)
	}
	return info, text, nil
}

// nar reads the NAR of p to its end. It returns the size of the body and its last rangeSize bytes.
func (v *verifier) nar(ctx context.Context, p Path) (bodySize int64, tail []byte, err error) {
	info, _, err := v.narinfo(ctx, p)
	if err != nil {
		return 0, nil, err
	}
	path := v.server.Prefix + "/" + info.URL
	resp, err := v.get(ctx, path, "", http.StatusOK)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body := &sumReader{r: resp.Body, sum: sha256.New()}
	sum, size, err := narSum(info.Compression, body)
	if err != nil {
		return 0, nil, fmt.Errorf("GET %s: %w", path, err)
	}
	if sum != p.NARHash || size != p.NARSize {
		return 0, nil, fmt.Errorf("GET %s: the bytes are those of NAR %s of %d bytes, not of %s of %d", path, sum, size, p.NARHash, p.NARSize)
	}
	if file := body.hash(); !info.FileHash.IsZero() && info.FileHash != file {
		return 0, nil, fmt.Errorf("GET %s: file hash %s instead of %s", path, file, info.FileHash)
	}
	return body.size, body.tail, nil
}

// tail checks that a range from an offset on gives want.
func (v *verifier) tail(ctx context.Context, path string, from int64, want []byte) error {
	resp, err := v.get(ctx, path, fmt.Sprintf("bytes=%d-", from), http.StatusPartialContent)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(io.LimitReader(resp.Body, rangeSize+1))
	if err != nil {
		return fmt.Errorf("GET %s from %d: %w", path, from, err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("GET %s from %d: not the bytes of the whole", path, from)
	}
	return nil
}

// narSum reads a body to its end and gives the hash and the size of the NAR in it.
func narSum(c nix.Compression, body *sumReader) (nix.Hash, int64, error) {
	switch c {
	case nix.None, "":
		_, err := io.Copy(io.Discard, body)
		return body.hash(), body.size, err
	case nix.Zstd:
		d, err := zstd.NewReader(body, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nix.Hash{}, 0, err
		}
		defer d.Close()
		sum := sha256.New()
		n, err := io.Copy(sum, d)
		return nix.SHA256Sum([32]byte(sum.Sum(nil))), n, err
	default:
		return nix.Hash{}, 0, fmt.Errorf("compression %q: only none and zstd can be checked: %w", c, errors.ErrUnsupported)
	}
}

// sumReader counts and hashes what passes, and remembers its end.
type sumReader struct {
	r    io.Reader
	sum  hash.Hash
	size int64
	tail []byte // the last rangeSize bytes
}

func (s *sumReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.sum.Write(p[:n])
	s.size += int64(n)
	if n >= rangeSize {
		s.tail = append(s.tail[:0], p[n-rangeSize:n]...)
	} else {
		s.tail = append(s.tail, p[:n]...)
		s.tail = s.tail[max(0, len(s.tail)-rangeSize):]
	}
	return n, err
}

// hash is the SHA-256 of what has passed.
func (s *sumReader) hash() nix.Hash { return nix.SHA256Sum([32]byte(s.sum.Sum(nil))) }
