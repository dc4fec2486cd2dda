package server

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"firn/internal/cache"
	"firn/internal/decompress"
	"firn/nix"
	"firn/nix/nar"
)

const (
	// waitLimit is how long an upload waits for a slot and for memory to decompress it, together. Nix
	// gives up when it has sent and received nothing for five minutes.
	waitLimit = 4 * time.Minute

	// firstText is how many bytes of a text that is uploaded take no memory that is shared. Hardly any
	// has more.
	firstText = 64 << 10
	// maxChecked bounds a listing that is checked, in bytes.
	maxChecked = 1 << 20

	// textMemory bounds the bytes of larger narinfos and the like that are received at once, and of
	// those that are sent at once: three of the largest, so that one owner's leaves room for that of
	// another, see [fairlimit.NewMemory]. Those that are received take some four times as much until
	// they are published.
	textMemory = 3 * nix.MaxNARInfoSize
	// maxTextDecoder bounds, in bytes, what the decoder of a text may take: the most of brotli, and
	// four times what xz takes at the level that Nix uses.
	maxTextDecoder = 32 << 20
	// textLimit is how long a client waits for memory to be sent one.
	textLimit = 10 * time.Second

	// maxLog bounds a build log, in bytes before compression.
	maxLog = 256 << 20
	// maxListing bounds a listing, in bytes. The largest known have a tenth of it.
	maxListing = 1 << 30
)

// put receives an upload. What firn makes itself, it checks and then drops.
func (s *Server) put(x *exchange) (err error) {
	if !x.target.route.canBePut() {
		return cache.Refuse(errMethod, "only GET and HEAD are answered here")
	}
	x.push = s.audit.Join(s.auditClient(x))
	defer func() { x.endPush(err) }()
	if x.r.ContentLength > s.maxUpload {
		return cache.Refuse(cache.ErrTooLarge, "this is larger than %d bytes", s.maxUpload)
	}
	done, err := s.reserve(x)
	if err != nil {
		return err
	}
	defer func() { done(err) }()
	err = errNotReceived // if this panics
	err = s.receive(x)
	return err
}

// receive is put for an upload for which there is enough space.
func (s *Server) receive(x *exchange) error {
	route := x.target.route
	switch route {
	case routeNAR, routeZstdNAR:
		return s.putNAR(x)
	case routeLog:
		return s.putLog(x)
	case routeListing:
		return s.putListing(x)
	}

	limit := int64(nix.MaxRealisationSize)
	if route == routeNARInfo {
		limit = nix.MaxNARInfoSize
	}
	if x.r.ContentLength > limit {
		return cache.Refuse(cache.ErrTooLarge, "this is larger than %d bytes", limit)
	}
	done, err := s.uploadSlot(x, s.small, 1)
	if err != nil {
		return err
	}
	defer done()
	text, held, err := s.receiveText(x, limit)
	if err != nil {
		return err
	}
	defer held()
	switch route {
	case routeNARInfo:
		return s.putNARInfo(x, text)
	case routeRealisation:
		return s.putRealisation(x, text)
	case routeBuildTrace:
		return s.putBuildTrace(x, text)
	case routeDebugInfo:
		return s.putDebugInfo(x, text)
	case routeCacheInfo:
		return s.putCacheInfo(x, text)
	}
	return errMethod
}

// endPush ends the part that an upload has in a push session.
func (x *exchange) endPush(err error) {
	if x.upload != nil {
		x.push.Read(x.upload.n)
	}
	if err != nil {
		x.push.Failed()
	}
	x.push.End()
}

// decoded returns the body of an upload without its Content-Encoding, which must be closed. What has
// more than limit bytes fails with ErrTooLarge where it exceeds that. At the end, authorization is
// checked again, and reading fails without it: an upload can outlive its token. That of a NAR is not,
// as a NAR cannot be seen before its narinfo.
func (s *Server) decoded(x *exchange, limit int64, limits *decompress.Limits) (io.ReadCloser, error) {
	encodings := x.r.Header["Content-Encoding"]
	if len(encodings) > 1 {
		return nil, cache.Refuse(cache.ErrInvalid, "this has more than one Content-Encoding")
	}
	encoding := ""
	if len(encodings) == 1 {
		encoding = encodings[0]
	}
	plain, err := decompress.DecodeEncoding(x.r.Context(), encoding, &bounded{x.body(), limit, limit}, limits)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(&bounded{plain, limit, limit}, &check{func() error { return s.allow(x) }}), plain}, nil
}

// A check is an empty reader, whose end may be an error.
type check struct{ end func() error }

func (c *check) Read([]byte) (int, error) { return 0, cmp.Or(c.end(), io.EOF) }

// bounded is a reader that fails when there is more than its limit.
type bounded struct {
	r     io.Reader
	left  int64
	limit int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, cache.Refuse(cache.ErrTooLarge, "this is larger than %d bytes", b.limit)
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left+1)])
	b.left -= int64(n)
	if b.left < 0 {
		return n - 1, cache.Refuse(cache.ErrTooLarge, "this is larger than %d bytes", b.limit)
	}
	return n, err
}

// receiveText returns the whole body of a small upload, decoded. It may be in memory until done is
// called. A body that is larger than most waits for memory before more than its beginning is read, so
// that uploads that wait hold little.
func (s *Server) receiveText(x *exchange, limit int64) (all []byte, done func(), err error) {
	r, err := s.decoded(x, limit, s.decoding(x, s.textDecoders, maxTextDecoder))
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, firstText+1))
	if err != nil || len(text) <= firstText {
		return text, func() {}, err
	}
	most := limit
	if length := x.r.ContentLength; length > 0 && x.r.Header["Content-Encoding"] == nil {
		most = length
	}
	release, err := s.uploadSlot(x, s.receivedTexts, int(most))
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if all == nil { // It failed, or a decoder panics.
			release()
		}
	}()
	x.holdsText = true
	read := bytes.NewBuffer(make([]byte, 0, min(most, x.r.ContentLength+bytes.MinRead)))
	read.Write(text)
	if _, err := read.ReadFrom(r); err != nil {
		return nil, nil, err
	}
	return read.Bytes(), release, nil
}

// stored answers an upload: 201 if its contents were not there before, else 204.
func (x *exchange) stored(added bool) error {
	h := x.w.Header()
	x.setCaching(h, cacheNever)
	status := http.StatusNoContent
	if added {
		status = http.StatusCreated
		x.setLength(h, 0)
	}
	x.begin(status)
	return nil
}

func (s *Server) putNARInfo(x *exchange, text []byte) error {
	hash, err := nix.ParsePathHash(x.target.name)
	if err != nil {
		return cache.Refuse(cache.ErrInvalid, "this is not a path hash: it has 32 digits of Nix's base 32")
	}
	n, err := nix.ParseNARInfoStrict(x.cache.Info().StoreDir, text)
	if err != nil {
		return cache.Refuse(cache.ErrInvalid, "%s", err)
	}
	if n.Path.Hash() != hash {
		return cache.Refuse(cache.ErrInvalid, "StorePath: this is the narinfo of %s, and was uploaded as %s.narinfo", n.Path, hash)
	}
	received, err := x.received(n)
	if err != nil {
		return err
	}
	added, err := x.cache.Publish(cache.WithPublisher(x.r.Context(), x.who.Name()), &n.PathInfo, received)
	if received == (cache.Received{}) && errors.Is(err, cache.ErrNotFound) {
		return notReceived(n)
	}
	if err != nil {
		return err
	}
	if added {
		x.push.Published()
		s.log.Debug("published", "path", n.Path.String(), "cache", x.cache.Name(), "by", x.who.Name())
	}
	return x.stored(added)
}

// received returns what was uploaded under the URL of a narinfo, and checks that it is the file that
// the narinfo describes. It returns none if the URL is the one that this server gives the path: a
// narinfo comes back with it when signatures were added.
func (x *exchange) received(n *nix.NARInfo) (cache.Received, error) {
	if cache.IsOwnURL(n.URL, &n.PathInfo) {
		return cache.Received{}, nil
	}
	r, err := x.cache.Received(x.r.Context(), n.URL)
	switch {
	case errors.Is(err, cache.ErrNotFound):
		return r, notReceived(n)
	case err != nil:
		return r, err
	case !n.FileHash.IsZero() && r.FileHash != n.FileHash:
		return r, cache.Refuse(cache.ErrInvalid, "FileHash: it is %s, and what was uploaded as %s has %s", n.FileHash, n.URL, r.FileHash)
	case n.FileSize != 0 && r.FileSize != n.FileSize:
		return r, cache.Refuse(cache.ErrInvalid, "FileSize: it is %d, and what was uploaded as %s has %d bytes", n.FileSize, n.URL, r.FileSize)
	case n.Compression == nix.None && r.FileHash != r.NARHash:
		return r, cache.Refuse(cache.ErrInvalid, "Compression: it is none, and what was uploaded as %s is compressed", n.URL)
	}
	return r, nil
}

func notReceived(n *nix.NARInfo) error {
	return cache.Refuse(cache.ErrInvalid, "URL: nothing was uploaded to this cache as %s; the NAR comes first, then the narinfo", n.URL)
}

func (s *Server) putRealisation(x *exchange, text []byte) error {
	id, err := nix.ParseRealisationID(x.target.name)
	if err != nil {
		return cache.Refuse(cache.ErrInvalid, "%s", err)
	}
	r, err := nix.ParseRealisation(x.cache.Info().StoreDir, text)
	if err != nil {
		return cache.Refuse(cache.ErrInvalid, "%s", err)
	}
	if r.ID != id {
		return cache.Refuse(cache.ErrInvalid, "id: this is the realisation of %s, and was uploaded as %s", r.ID, id)
	}
	if err := x.cache.PutRealisation(x.r.Context(), r); err != nil {
		return err
	}
	x.push.Kept()
	return x.stored(false)
}

func (s *Server) putBuildTrace(x *exchange, text []byte) error {
	name, output, _ := strings.Cut(x.target.name, "/")
	drv, err := x.putDerivation(x.parseDerivation(name))
	if err != nil {
		return err
	}
	t, err := nix.ParseBuildTrace(drv, output, text)
	if err != nil {
		return cache.Refuse(cache.ErrInvalid, "%s", err)
	}
	if err := x.cache.PutBuildTrace(x.r.Context(), t); err != nil {
		return err
	}
	x.push.Kept()
	return x.stored(false)
}

// putDerivation returns ErrInvalid for an upload whose name is of no derivation. For a reader it would be
// ErrNotFound.
func (x *exchange) putDerivation(drv nix.StorePath, err error) (nix.StorePath, error) {
	if err != nil {
		return drv, cache.Refuse(cache.ErrInvalid, "this is not the name of a derivation")
	}
	return drv, nil
}

// putDebugInfo checks and drops an upload that says where debug information is: firn finds that in every
// NAR.
func (s *Server) putDebugInfo(x *exchange, text []byte) error {
	var info debugInfo
	switch err := json.Unmarshal(text, &info); {
	case !isBuildID(strings.TrimSuffix(x.target.name, ".debug")):
		return cache.Refuse(cache.ErrInvalid, "this is not a build ID: it has 40 hexadecimal digits")
	case err != nil || info.Archive == "" || info.Member == "":
		return cache.Refuse(cache.ErrInvalid, `this is no debug info: {"archive":"../nar/…","member":"…"}`)
	}
	return x.stored(false)
}

// putCacheInfo checks that the client has the same store directory, and drops the rest.
func (s *Server) putCacheInfo(x *exchange, text []byte) error {
	info, err := nix.ParseCacheInfo(text)
	if err != nil {
		return cache.Refuse(cache.ErrInvalid, "%s", err)
	}
	if want := x.cache.Info().StoreDir; info.StoreDir != want {
		return cache.Refuse(cache.ErrInvalid, "StoreDir: it is %s, and that of this cache is %s", info.StoreDir, want)
	}
	return x.stored(false)
}

// putListing checks and drops a listing: firn makes one of every NAR. A large one is not checked, as that
// would take many times its size in memory.
func (s *Server) putListing(x *exchange) error {
	if _, err := nix.ParsePathHash(x.target.name); err != nil {
		return cache.Refuse(cache.ErrInvalid, "this is not a path hash: it has 32 digits of Nix's base 32")
	}
	done, err := s.uploadSlot(x, s.small, 1)
	if err != nil {
		return err
	}
	defer done()
	r, err := s.decoded(x, maxListing, s.decoding(x, s.textDecoders, maxTextDecoder))
	if err != nil {
		return err
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, maxChecked+1))
	if err != nil {
		return err
	}
	if len(text) > maxChecked {
		_, err = io.Copy(io.Discard, r)
	} else if _, wrong := nar.ParseListing(text); wrong != nil {
		err = cache.Refuse(cache.ErrInvalid, "%s", wrong)
	}
	if err != nil {
		return err
	}
	return x.stored(false)
}

func (s *Server) putLog(x *exchange) error {
	drv, err := x.putDerivation(x.logged())
	if err != nil {
		return err
	}
	done, err := s.uploadSlot(x, s.large, 1)
	if err != nil {
		return err
	}
	defer done()
	r, err := s.decoded(x, maxLog, s.decoding(x, s.memory, 0))
	if err != nil {
		return err
	}
	defer r.Close()
	if err := x.cache.PutLog(x.r.Context(), drv, r); err != nil {
		return err
	}
	x.push.Kept()
	return x.stored(false)
}

var errNotReceived = errors.New("not all of it was read")
