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

// putNAR receives a NAR under the name that Nix gives it: nar/<hash of the file>.nar and the name of its compression.
func (s *Server) putNAR(x *exchange) error {
	fileHash, err := nix.ParseHashOf(nix.SHA256, x.target.name)
	if err != nil || len(x.target.name) != narHashLen || x.r.URL.RawQuery != "" {
		return cache.Refuse(cache.ErrInvalid, "this is not how NARs are named that are uploaded: nar/HASH.nar, with the SHA-256 of the file in 52 digits "+
			"of Nix's base 32, and .xz, .bz2, .zst, .lzip, .lz4 or .br behind it where it is compressed so")
	}
	if x.r.Header["Content-Encoding"] != nil {
		return cache.Refuse(cache.ErrInvalid, "a NAR may not have a Content-Encoding: its compression is in its name")
	}
	done, err := s.turn(x, s.large)
	if err != nil {
		return err
	}
	defer done()
	url := x.uploadURL()
	in := &upload{x: x, r: bufio.NewReader(&bounded{x.body(), s.maxUpload, s.maxUpload}), want: fileHash}
	_, err = x.cache.Received(x.r.Context(), url)
	switch {
	case err == nil:
		// The same file once more. As its hash is in its name, to hash it is to verify it.
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
		return x.kept(false)
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
		plain, err := decompress.Decode(x.r.Context(), compression, in, s.decoding(x))
		if err != nil {
			return err
		}
		defer plain.Close()
		u.NAR, u.File = plain, in.file
	}
	if _, err := x.cache.Receive(x.r.Context(), u); err != nil {
		return err
	}
	if !x.intake.ended {
		return fmt.Errorf("receive NAR: %w", errNotReceived)
	}
	x.push.Received()
	return x.kept(true)
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

// magics are how files begin to whose names Nix appends nothing that tells their compression.
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

// sniff returns how a file is compressed of which the name does not tell.
func (u *upload) sniff() nix.Compression {
	head, _ := u.r.Peek(8) // what it fails with, Read will fail with
	for _, m := range magics {
		if bytes.HasPrefix(head, []byte(m.prefix)) {
			return m.compression
		}
	}
	return nix.None
}

// file returns what was uploaded, once it has been read, and checks that it is what its name says.
func (u *upload) file() (nix.Hash, int64, error) {
	if !u.x.intake.ended {
		return nix.Hash{}, 0, errNotReceived
	}
	sum := nix.SHA256Sum([sha256.Size]byte(u.hash.Sum(nil)))
	if sum != u.want {
		return nix.Hash{}, 0, cache.Refuse(cache.ErrInvalid, "the SHA-256 of this file is %s, and not the one in its name", sum.Nix32())
	}
	return sum, u.x.intake.n, nil
}

// notUploaded is what those are told, too, who may not know.
const notUploaded = "no NAR was uploaded under this name"

// serveReceived answers with a NAR under the name of its upload, which clients remember for a month.
// It is compressed as it is kept, where that is the compression in its name. Else it is a container of that, in which it is not compressed;
// where there is no such container, only that it is there can be asked.
func (s *Server) serveReceived(x *exchange) error {
	url, untagged := x.uploadURL(), false
	if !x.isHead() { // before it is opened: a request that waits has nothing open
		done, err := s.reading(x)
		if err != nil {
			return err
		}
		defer done()
	}
	n, r, err := x.cache.OpenReceived(x.r.Context(), url)
	there := err == nil
	if !there && !errors.Is(err, cache.ErrNotFound) {
		return err
	}
	if !there || !r.Published {
		// A NAR without a narinfo is only for those who may push. Who asks is found out where
		// nothing is there as well: else the time that takes, a failed try that is counted, and
		// what becomes of too many of these, would tell it from what is there.
		may, err := s.mayPush(x)
		if there && (err != nil || !may) {
			n.Close()
		}
		if err != nil || !may || !there {
			return cmp.Or(err, x.missing(notUploaded))
		}
		x.secret = true // no proxy may keep it for others
		untagged = true
		if x.isHead() {
			// Whoever is told that it is there does not send it again, so it has to stay until the narinfo comes.
			if err := x.cache.Renew(x.r.Context(), url); err != nil {
				n.Close()
				return err
			}
		}
	}
	closing := n
	defer func() { closing.Close() }()
	compression, tag := compressionOf[x.target.ext], r.NARHash.Nix32()
	switch {
	case x.target.ext == "" && r.FileHash == r.NARHash:
		compression = nix.None
	case x.target.ext == "":
		compression = cmp.Or(r.Compression, nix.Gzip) // nearly all of those whose name Nix does not append
	}
	kept, keptTag, ok, err := x.cache.OpenReceivedAs(x.r.Context(), r, compression)
	if err != nil {
		return err
	}
	if ok {
		defer kept.Close()
		if untagged {
			// The tag is another one whenever the NAR is kept anew. Who uploads it, lets it be swept, and uploads it again,
			// would see by one that is the same that another cache has had it meanwhile.
			keptTag = ""
		}
		return x.sendNAR(kept, keptTag, cacheForever)
	}
	if compression != nix.None {
		wrapped, ok := decompress.Wrap(compression, n)
		if !ok {
			if x.isHead() {
				x.begin(http.StatusOK)
				return nil
			}
			return cache.Refuse(cache.ErrNotFound, "this NAR is here, but not compressed with %s any more, and that has no form without compression; its narinfo says where it is", compression)
		}
		closing, n, tag = wrapped, wrapped, tag+"-stored-"+string(compression)
		x.whole = !decompress.Ranges(compression)
	}
	return x.sendNAR(n, tag, cacheForever)
}
