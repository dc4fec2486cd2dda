package transfer

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"firn/internal/cache"
	"firn/internal/decompress"
	"firn/nix"
)

// ImportOptions say how to import. The zero value is good.
type ImportOptions struct {
	// Workers is how many paths are fetched at once; 0: 8.
	Workers int
	// Progress is told of every change, by one goroutine at a time. Nil: it is not told.
	Progress func(Progress)
	// TrustedKeys are those of which each path needs a signature, unless it is content-addressed. None: no path does.
	TrustedKeys []nix.PublicKey
	// Logs has the build logs of the derivers of paths asked for, too, where only some paths are imported. Of a whole cache there are all.
	Logs bool
	// Limits bound what decompressing takes. Nil: new ones, as the codec has them.
	Limits *decompress.Limits
	// Netrc is a file with users and passwords, as curl and Nix read it; "": none. What is in the URL wins.
	Netrc string
	// Begin is called once it is known what to import, before the first of it is kept. An error ends the import. Nil: it is not called.
	Begin func() error
	// Retry is told what failed, and after which pause it is asked for again, by several goroutines at once. Nil: it is not told.
	Retry func(err error, pause time.Duration)
	// UserAgent is who asks; "": firn.
	UserAgent string

	pause time.Duration // before something is asked for again; 0: half a second
}

const (
	// importWorkers is how many paths are fetched at once by default.
	importWorkers = 8
	// memory is how many bytes of narinfos are remembered between finding a path and fetching it. Others are fetched again.
	memory = 64 << 20
	// largeInfo is from how many bytes on a narinfo is large, and in memory one at a time.
	largeInfo = 64 << 10
	// maxUnreachable is after how many files in a row that cannot be had, for the origin does not answer, an import gives up.
	maxUnreachable = 10
)

// Import takes paths over from another binary cache into c: from a URL (http, https or file), or a directory.
// It takes the given paths with all that they refer to, or, where roots is empty and the cache can list what it has,
// all paths, build logs, realisations and build traces.
//
// Everything is verified as if a client pushed it. Signatures are kept. A path that is there already only gets new ones,
// and what cannot be imported does not keep the rest from it: the error comes at the end.
func Import(ctx context.Context, from string, c *cache.Cache, roots []nix.StorePath, opts ImportOptions) (Progress, error) {
	if opts.Workers == 0 {
		opts.Workers = importWorkers
	}
	if opts.Limits == nil {
		opts.Limits = decompress.NewLimits(decompress.Options{})
	}
	o, err := openOrigin(from, &opts)
	if err != nil {
		return Progress{}, fmt.Errorf("import: %w", err)
	}
	defer o.close()
	i := &importer{tally: tally{report: opts.Progress}, cache: c, origin: o, opts: opts, graph: newGraph(), infos: map[nix.PathHash]*nix.NARInfo{}, large: map[nix.PathHash]bool{},
		encodings: decompress.NewLimits(decompress.Options{}), one: make(chan struct{}, 1)}
	if err := i.all(ctx, roots); err != nil {
		return i.now, fmt.Errorf("import: %w", err)
	}
	result, err := i.result()
	if err != nil {
		err = fmt.Errorf("import: %w", err)
	}
	return result, err
}

type importer struct {
	tally
	cache       *cache.Cache
	origin      origin
	opts        ImportOptions
	graph       *graph
	encodings   *decompress.Limits // of Content-Encodings of NARs: what decodes the NAR itself waits for another memory, so that neither waits for ever
	one         chan struct{}      // has something while a large narinfo is in memory
	unreachable atomic.Int32       // files in a row that could not be had

	mu    sync.Mutex // guards what follows, and the graph until it is run
	infos map[nix.PathHash]*nix.NARInfo
	size  int // bytes of the texts of infos
	large map[nix.PathHash]bool
}

func (i *importer) all(ctx context.Context, roots []nix.StorePath) error {
	if err := i.checkInfo(ctx); err != nil {
		return err
	}
	for _, root := range roots {
		if dir := i.cache.Info().StoreDir; root.Dir() != dir {
			return fmt.Errorf("%w: %s is not in the store directory %s", cache.ErrInvalid, root, dir)
		}
	}
	var err error
	if len(roots) > 0 {
		err = i.findClosure(ctx, roots)
	} else {
		err = i.findAll(ctx)
	}
	if err == nil && i.opts.Begin != nil {
		err = i.opts.Begin()
	}
	if err != nil {
		return err
	}
	if err := i.graph.run(ctx, i.opts.Workers, i.path, func(_ nix.PathHash, err error) error { return i.fail(true, err) }); err != nil {
		return err
	}
	if len(roots) > 0 {
		return nil
	}
	return i.files(ctx)
}

// fail counts a failure. It returns an error if there is no use in going on.
func (i *importer) fail(path bool, err error) error {
	if _, ok := errors.AsType[unreachable](err); ok {
		if i.unreachable.Add(1) >= maxUnreachable {
			return fmt.Errorf("give up after %d failures in a row: %w", maxUnreachable, err)
		}
	} else if errors.Is(err, cache.ErrUnavailable) {
		return err // this server cannot keep more
	}
	i.failed(path, err)
	return nil
}

// checkInfo checks that the origin is a cache, and of the same store directory.
func (i *importer) checkInfo(ctx context.Context) error {
	text, err := i.read(ctx, "nix-cache-info", nix.MaxCacheInfoSize)
	if errors.Is(err, cache.ErrNotFound) {
		return fmt.Errorf("%w; there is no binary cache without it", err)
	}
	if err != nil {
		return err
	}
	info, err := nix.ParseCacheInfo(text)
	if err != nil {
		return err
	}
	if want := i.cache.Info().StoreDir; info.StoreDir != want {
		return fmt.Errorf("%w: that cache is for the store directory %s, and this one for %s", cache.ErrInvalid, info.StoreDir, want)
	}
	return nil
}

// read reads a small file of the origin.
func (i *importer) read(ctx context.Context, name string, limit int) ([]byte, error) {
	text, done, err := i.readLarge(ctx, name, limit, limit)
	if err == nil {
		done()
	}
	return text, err
}

// readLarge reads a file of the origin. Once it is known to have more than free bytes, it waits
// until no other such file is in memory: it may be until done is called.
func (i *importer) readLarge(ctx context.Context, name string, free, limit int) (text []byte, done func(), err error) {
	done = func() {}
	defer func() {
		if err != nil {
			done()
			text, done = nil, nil
		}
	}()
	body, encoding, err := i.origin.open(ctx, name)
	if err != nil {
		return nil, done, err
	}
	defer body.Close()
	plain, err := decompress.DecodeEncoding(ctx, encoding, body, i.opts.Limits)
	if err != nil {
		return nil, done, fmt.Errorf("read %s: %w", name, err)
	}
	defer plain.Close()
	text, err = io.ReadAll(io.LimitReader(plain, int64(free)+1))
	if err == nil && len(text) > free && free < limit {
		select {
		case i.one <- struct{}{}:
			done = func() { <-i.one }
		case <-ctx.Done():
			return nil, done, ctx.Err()
		}
		var rest []byte
		rest, err = io.ReadAll(io.LimitReader(plain, int64(limit-free)))
		text = append(text, rest...)
	}
	if err != nil {
		return nil, done, fmt.Errorf("read %s: %w", name, err)
	}
	if len(text) > limit {
		return nil, done, fmt.Errorf("read %s: %w: more than %d bytes", name, cache.ErrTooLarge, limit)
	}
	i.unreachable.Store(0)
	return text, done, nil
}

// findAll finds all paths that the origin lists.
func (i *importer) findAll(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(i.opts.Workers)
	for name, err := range i.origin.list(ctx, ".") {
		if err != nil {
			return errors.Join(err, group.Wait())
		}
		base, ok := strings.CutSuffix(name, ".narinfo")
		if !ok {
			continue
		}
		hash, err := nix.ParsePathHash(base)
		if err != nil {
			continue // no name of a narinfo
		}
		group.Go(func() error {
			_, err := i.find(ctx, hash)
			return err
		})
	}
	return group.Wait()
}

// findClosure finds the given paths and all that they refer to, one distance after the other.
func (i *importer) findClosure(ctx context.Context, roots []nix.StorePath) error {
	seen := map[nix.PathHash]bool{}
	next := make([]nix.PathHash, 0, len(roots))
	for _, root := range roots {
		next = append(next, root.Hash())
	}
	for first := true; len(next) > 0; first = false {
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(i.opts.Workers)
		var mu sync.Mutex
		var found []nix.PathHash
		for _, hash := range next {
			if seen[hash] {
				continue
			}
			seen[hash] = true
			group.Go(func() error {
				refs, err := i.find(ctx, hash)
				if errors.Is(err, cache.ErrNotFound) {
					if first {
						i.change(func(p *Progress) { p.Known++ })
						i.failed(true, err)
					}
					return nil // whether the reference may be missing is decided when the path is published
				}
				mu.Lock()
				defer mu.Unlock()
				found = append(found, refs...)
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		next = found
	}
	return nil
}

// find reads the narinfo of a path and adds it to the graph. Its error is that there is none, or an end to it all.
func (i *importer) find(ctx context.Context, hash nix.PathHash) ([]nix.PathHash, error) {
	info, size, done, err := i.narInfo(ctx, hash)
	switch {
	case err != nil && ctx.Err() != nil, errors.Is(err, cache.ErrNotFound):
		return nil, err
	case err != nil:
		i.change(func(p *Progress) { p.Known++ })
		return nil, i.fail(true, err)
	}
	defer done()
	refs := references(&info.PathInfo)
	i.mu.Lock()
	i.graph.add(hash, refs)
	if size > largeInfo {
		i.large[hash] = true
	} else if i.size+size <= memory {
		i.size += size
		i.infos[hash] = info
	}
	i.mu.Unlock()
	i.change(func(p *Progress) { p.Known, p.KnownBytes = p.Known+1, p.KnownBytes+info.NARSize })
	return refs, nil
}

// narInfo reads the narinfo of a path, which may be in memory until done is called. It also returns
// the size of its text.
func (i *importer) narInfo(ctx context.Context, hash nix.PathHash) (info *nix.NARInfo, size int, done func(), err error) {
	name := hash.String() + ".narinfo"
	text, done, err := i.readLarge(ctx, name, largeInfo, nix.MaxNARInfoSize)
	if err != nil {
		return nil, 0, nil, err
	}
	if info, err = nix.ParseNARInfo(i.cache.Info().StoreDir, text); err == nil && info.Path.Hash() != hash {
		err = fmt.Errorf("it is of %s", info.Path)
	}
	if err != nil {
		done()
		return nil, 0, nil, fmt.Errorf("read %s: %w: %w", name, cache.ErrInvalid, err)
	}
	return info, len(text), done, nil
}

// path imports one path.
func (i *importer) path(ctx context.Context, hash nix.PathHash, await func() error) error {
	i.mu.Lock()
	info, large := i.infos[hash], i.large[hash]
	delete(i.infos, hash)
	i.mu.Unlock()
	if large {
		// What it refers to may have a large narinfo too, which would wait for this one.
		if err := await(); err != nil {
			return err
		}
		await = func() error { return nil }
	}
	if info == nil {
		var done func()
		var err error
		if info, _, done, err = i.narInfo(ctx, hash); err != nil {
			return err
		}
		defer done()
	}
	moved, end := i.moving(info.NARSize)
	defer end()
	if err := i.trust(info); err != nil {
		return fmt.Errorf("import %s: %w", info.Path, err)
	}
	// Those under the names of this cache's own keys are left out, as where the server that is
	// taken over was on a machine of the same name.
	info.Signatures = i.cache.Others(info.Signatures, info.AppendFingerprint(nil))
	added, err := i.publish(ctx, info, moved, await)
	if err == nil && i.opts.Logs {
		err = i.log(ctx, info.Deriver, false)
	}
	if err != nil {
		return fmt.Errorf("import %s: %w", info.Path, err)
	}
	i.change(func(p *Progress) {
		p.Paths++
		if added {
			p.Moved++
		}
	})
	return nil
}

// trust checks that who is trusted has signed a path.
func (i *importer) trust(info *nix.NARInfo) error {
	if len(i.opts.TrustedKeys) == 0 || !info.CA.IsZero() { // that it is its content's address is checked when it is published
		return nil
	}
	fingerprint := info.AppendFingerprint(nil)
	for _, key := range i.opts.TrustedKeys {
		if slices.ContainsFunc(info.Signatures, func(s nix.Signature) bool { return key.Verify(fingerprint, s) }) {
			return nil
		}
	}
	return fmt.Errorf("%w: no trusted key has signed it", cache.ErrInvalid)
}

// publish makes a path visible with its NAR, which it fetches unless it was before. It tells moved of
// the bytes that it reads.
func (i *importer) publish(ctx context.Context, info *nix.NARInfo, moved func(int64), await func() error) (added bool, err error) {
	pushed, err := i.cache.Pushed(ctx, info.Path.Hash())
	if err != nil && !errors.Is(err, cache.ErrNotFound) {
		return false, err
	}
	if err == nil {
		isNew := func(s nix.Signature) bool { return !slices.Contains(pushed.Signatures, s) }
		if pushed.NARHash != info.NARHash || !slices.ContainsFunc(info.Signatures, isNew) {
			return false, nil
		}
		there, err := i.cache.Lookup(ctx, info.Path.Hash())
		if err != nil || there.NARHash != info.NARHash {
			return false, err
		}
		signed := there.PathInfo
		signed.Signatures = info.Signatures
		return i.cache.Publish(ctx, &signed, cache.Received{})
	}

	name := uploadName(info)
	received, err := i.cache.Received(ctx, name)
	if errors.Is(err, cache.ErrNotFound) || err == nil && (received.NARHash != info.NARHash || received.NARSize != info.NARSize) {
		received, err = i.receive(ctx, info, name, moved)
	}
	if err != nil {
		return false, err
	}
	if err := await(); err != nil {
		return false, err
	}
	return i.cache.Publish(ctx, &info.PathInfo, received)
}

var (
	// anyNARURL matches the URLs of NARs that this server can have had from a client.
	anyNARURL = regexp.MustCompile(`^nar/[0-9A-Za-z._+=~-]{1,200}$`)
	// ownNARURL matches those that this server gives NARs itself.
	ownNARURL = regexp.MustCompile(`^nar/[0-9a-z]{32}(-[0-9a-z]{52}(-[0-9A-Za-z-]+)?)?\.`)
)

// uploadName returns the name under which a NAR is kept: the URL that it had, so that this goes on
// to lead to the NAR for clients that remember it, where that server is replaced by this one. If it
// cannot, it is the name of a NAR that is sent uncompressed.
func uploadName(info *nix.NARInfo) string {
	if !anyNARURL.MatchString(info.URL) || ownNARURL.MatchString(info.URL) {
		return "nar/" + info.NARHash.Nix32() + ".nar"
	}
	return info.URL
}

// receive fetches a NAR, and keeps it under a name. It tells moved of the bytes as they come.
func (i *importer) receive(ctx context.Context, info *nix.NARInfo, name string, moved func(int64)) (cache.Received, error) {
	body, encoding, err := i.origin.open(ctx, info.URL)
	if err != nil {
		return cache.Received{}, err
	}
	defer body.Close()
	most := cmp.Or(info.FileSize, grown(info.NARSize)) // not said: what does not compress grows by less
	// Nix decodes what a server encodes that was not asked to. FileHash and FileSize are of what is
	// in it.
	decoded, err := decompress.DecodeEncoding(ctx, encoding, &file{r: body, left: grown(most)}, i.encodings)
	if err != nil {
		return cache.Received{}, fmt.Errorf("get %s: %w", info.URL, err)
	}
	defer decoded.Close()
	file := &file{r: decoded, left: most, sum: sha256.New()}
	plain, err := decompress.Decode(ctx, cmp.Or(info.Compression, nix.None), file, i.opts.Limits)
	if err != nil {
		return cache.Received{}, err
	}
	defer plain.Close()
	upload := cache.Upload{URL: name, NAR: &counted{plain, info.NARSize, func(n int64) {
		i.change(func(p *Progress) { p.Bytes += n })
		moved(n)
	}}, NARHash: info.NARHash, NARSize: info.NARSize,
		Compression: cmp.Or(info.Compression, nix.None)}
	check := func() (nix.Hash, int64, error) {
		sum := nix.SHA256Sum([sha256.Size]byte(file.sum.Sum(nil)))
		switch {
		case info.FileSize != 0 && file.size != info.FileSize:
			return nix.Hash{}, 0, fmt.Errorf("get %s: %w: it has %d bytes, not %d", info.URL, cache.ErrInvalid, file.size, info.FileSize)
		case info.FileHash.Algorithm() == nix.SHA256 && sum != info.FileHash:
			return nix.Hash{}, 0, fmt.Errorf("get %s: %w: its hash is %s, not %s", info.URL, cache.ErrInvalid, sum, info.FileHash)
		}
		return sum, file.size, nil
	}
	upload.File = check
	if name != info.URL { // as if it came uncompressed
		upload.File = func() (nix.Hash, int64, error) {
			_, _, err := check()
			return info.NARHash, info.NARSize, err
		}
	}
	received, err := i.cache.Receive(ctx, upload)
	if err == nil {
		i.unreachable.Store(0)
	}
	return received, err
}

// grown is a size that what has n bytes does not exceed however it is compressed.
func grown(n int64) int64 { return n + n/8 + 1<<20 }

// A file is what the origin sends: hashed, counted and bounded.
type file struct {
	r    io.Reader
	left int64     // bytes that it may still have
	size int64     // bytes that it had
	sum  hash.Hash // nil: of no interest
}

func (f *file) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if f.sum != nil {
		f.sum.Write(p[:n])
	}
	f.size, f.left = f.size+int64(n), f.left-int64(n)
	if f.left < 0 {
		return n, fmt.Errorf("%w: the file is longer than its narinfo says", cache.ErrInvalid)
	}
	return n, err
}

// counted reports what is read, and bounds it.
type counted struct {
	r    io.Reader
	left int64 // bytes that it may still have
	read func(n int64)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.left -= int64(n); c.left < 0 {
		return 0, fmt.Errorf("%w: the NAR is longer than its narinfo says", cache.ErrInvalid)
	}
	if n > 0 {
		c.read(int64(n))
	}
	return n, err
}
