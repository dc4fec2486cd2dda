package server

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"

	"firn/internal/cache"
	"firn/internal/decompress"
	"firn/nix"
)

// putNAR receives a NAR under the name that Nix gives it: nar/<hash of the file>.nar and the name of its
// compression.
func (s *Server) putNAR(x *exchange) error {
	fileHash, err := nix.ParseHashOf(nix.SHA256, x.target.name)
	if err != nil || len(x.target.name) != narHashLen || x.r.URL.RawQuery != "" {
		return cache.Refuse(cache.ErrInvalid, "this is not how NARs are named that are uploaded: nar/HASH.nar, with the SHA-256 of the file in 52 digits "+
			"of Nix's base 32, and .xz, .bz2, .zst, .lzip, .lz4 or .br behind it where it is compressed so")
	}
	if x.r.Header["Content-Encoding"] != nil {
		return cache.Refuse(cache.ErrInvalid, "a NAR may not have a Content-Encoding: its compression is in its name")
	}
	done, err := s.uploadSlot(x, s.large, 1)
	if err != nil {
		return err
	}
	defer done()
	url := x.uploadURL()
	in := &upload{x: x, r: bufio.NewReader(&bounded{x.body(), s.maxUpload, s.maxUpload}), want: fileHash}
	_, err = x.cache.Received(x.r.Context(), url)
	switch {
	case err == nil:
		// The same file again. Its hash is in its name, so hashing it verifies it.
		in.hash = sha256.New()
		if _, err := io.Copy(io.Discard, in); err != nil {
			return err
		}
		if _, _, err := in.file(); err != nil {
			return err
		}
		if err := x.cache.Renew(x.r.Context(), url); err != nil {
			return err
		}
		return x.stored(false)
	case !errors.Is(err, cache.ErrNotFound):
		return err
	}

	compression := compressionOf[x.target.ext]
	if x.target.ext == "" {
		compression = in.sniff()
	}
	u := cache.Upload{URL: url, NAR: in, Compression: compression}
	if compression == nix.None {
		u.NARHash = fileHash
	} else {
		in.hash = sha256.New()
		plain, err := decompress.Decode(x.r.Context(), compression, in, s.decoding(x, s.memory, 0))
		if err != nil {
			return err
		}
		defer plain.Close()
		u.NAR, u.File = plain, in.file
	}
	if _, err := x.cache.Receive(x.r.Context(), u); err != nil {
		return err
	}
	if !x.upload.ended {
		return fmt.Errorf("receive NAR: %w", errNotReceived)
	}
	x.push.Received()
	return x.stored(true)
}

// uploadURL returns the URL of a NAR that is or was uploaded, relative to the cache.
func (x *exchange) uploadURL() string { return "nar/" + x.target.name + ".nar" + x.target.ext }

// upload is the file of a NAR as it arrives.
type upload struct {
	x    *exchange
	r    *bufio.Reader
	want nix.Hash
	hash hash.Hash // of what was read; nil if it is not needed
}

func (u *upload) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	if u.hash != nil {
		u.hash.Write(p[:n])
	}
	return n, err
}

// magics are the first bytes of files of compressions that Nix does not append to the name of a file.
var magics = []struct {
	prefix      string
	compression nix.Compression
}{
	{"\x1f\x8b", nix.Gzip},
	{"\x5d\x00\x00", nix.LZMA},
	{"\x1f\x9d", nix.Compress},
	{"\x89LZO\x00", nix.Lzop},
	{"GRZipII\x00", nix.Grzip},
	{"LRZI", nix.Lrzip},
}

// sniff returns the compression of a file whose name does not tell it.
func (u *upload) sniff() nix.Compression {
	head, _ := u.r.Peek(8) // Read will fail with the same error
	for _, m := range magics {
		if bytes.HasPrefix(head, []byte(m.prefix)) {
			return m.compression
		}
	}
	return nix.None
}

// file returns the hash and size of the file once it has been read, and checks that the hash is the one in
// its name.
func (u *upload) file() (nix.Hash, int64, error) {
	if !u.x.upload.ended {
		return nix.Hash{}, 0, errNotReceived
	}
	sum := nix.SHA256Sum([sha256.Size]byte(u.hash.Sum(nil)))
	if sum != u.want {
		return nix.Hash{}, 0, cache.Refuse(cache.ErrInvalid, "the SHA-256 of this file is %s, and not the one in its name", sum.Nix32())
	}
	return sum, u.x.upload.n, nil
}

// notUploaded is the answer also to clients that may not know of an upload.
const notUploaded = "no NAR was uploaded under this name"

// serveReceived answers with a NAR under the name of its upload, which clients remember for a month:
// compressed as the depot keeps it where the name says that compression, else uncompressed, in an xz
// file where the name says xz. Of an upload in another compression only a HEAD is answered.
func (s *Server) serveReceived(x *exchange) error {
	if !x.isHead() { // before it is opened: a request that waits has nothing open
		done, err := s.readSlot(x)
		if err != nil {
			return err
		}
		defer done()
	}
	r, err := x.cache.Received(x.r.Context(), x.uploadURL())
	there := !r.NARHash.IsZero()
	if !there && err != nil && !errors.Is(err, cache.ErrNotFound) {
		return err // which it is for every name
	}
	if !r.Published {
		// A NAR without a narinfo is only for clients that may push. The server finds out who asks
		// where nothing is there as well. Else the time that takes, a failed try that is counted, and
		// the answer to too many of these would tell it from a NAR that is there.
		may, denied := s.mayPush(x)
		if denied != nil || !may || !there {
			return cmp.Or(denied, x.missing(notUploaded))
		}
		x.secret = true // no proxy may keep it for others
	}
	if err != nil {
		return err
	}
	if !r.Published && x.isHead() {
		// A client that is told that the NAR is there does not send it again, so the NAR has to stay
		// until the narinfo comes.
		if err := x.cache.Renew(x.r.Context(), x.uploadURL()); err != nil {
			return err
		}
	}
	return x.sendReceived(r)
}

// sendReceived answers with a NAR in the compression that the name of its upload says.
func (x *exchange) sendReceived(r cache.Received) error {
	compression := compressionOf[x.target.ext]
	switch {
	case x.target.ext == "" && r.FileHash == r.NARHash:
		compression = nix.None
	case x.target.ext == "":
		compression = cmp.Or(r.Compression, nix.Gzip) // nearly all of those whose name Nix does not append
	}
	kept, tag, ok, err := x.cache.OpenReceivedAs(x.r.Context(), r, compression)
	if err != nil {
		return err
	}
	if ok {
		defer kept.Close()
		if !r.Published {
			// The tag is another one whenever the NAR is kept in another form. A client that uploads
			// it, lets it be swept, and uploads it again, would see by the same tag that another
			// cache has had it all the time.
			tag = ""
		}
		return x.sendNAR(kept, tag, cacheShort) // the name is not of these bytes
	}
	if compression != nix.None && compression != nix.XZ {
		if x.isHead() {
			x.begin(http.StatusOK)
			return nil
		}
		return cache.Refuse(cache.ErrNotFound, "this NAR is here, but not compressed with %s any more; its narinfo says where it is", compression)
	}
	n, err := x.cache.OpenReceived(x.r.Context(), r)
	if err != nil {
		return err
	}
	defer n.Close()
	tag = r.NARHash.Nix32()
	if compression == nix.XZ {
		n, tag = decompress.WrapXZ(n), tag+"-stored-xz"
	}
	return x.sendNAR(n, tag, cacheForever)
}
