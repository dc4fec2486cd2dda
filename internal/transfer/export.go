package transfer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"regexp"
	"slices"
	"strings"

	"firn/internal/cache"
	"firn/nix"
	"firn/nix/nar"
)

// ExportOptions say how to export. The zero value is good.
type ExportOptions struct {
	// Workers is how many paths are written at once; 0: as many as this machine has processors, and 4 at least.
	Workers int
	// Progress is told of every change, by one goroutine at a time. Nil: it is not told.
	Progress func(Progress)
}

// Export writes a cache into dir as a static binary cache: what any web server serves, and what Nix reads at file://.
// With the narinfos, signed, go NARs as these name them, listings, and what there is of build logs, realisations, build traces
// and the places of debug information.
//
// It writes the given paths, each of which may be given more than once, without what else they refer to (see [Closure]),
// or, where paths is nil, all that the sources of the cache list with all that this refers to.
//
// A client may read dir while it is written. What is there is left alone, but for what this cache has in another form now.
// A path that cannot be written does not keep the others from it: the error comes at the end, and what refers to it is left out.
func Export(ctx context.Context, c *cache.Cache, paths iter.Seq2[*nix.PathInfo, error], dir string, opts ExportOptions) (Progress, error) {
	if opts.Workers == 0 {
		opts.Workers = defaultWorkers()
	}
	t, err := openTarget(dir)
	if err != nil {
		return Progress{}, fmt.Errorf("export to %s: %w", dir, err)
	}
	defer t.close()
	e := &exporter{cache: c, all: paths == nil, target: t, tally: tally{report: opts.Progress}, graph: newGraph()}
	if e.all {
		paths = pushed(ctx, c)
	}
	if err := e.export(ctx, paths, opts.Workers); err != nil {
		return e.now, fmt.Errorf("export to %s: %w", dir, err)
	}
	result, err := e.result()
	if err != nil {
		err = fmt.Errorf("export to %s: %w", dir, err)
	}
	return result, err
}

type exporter struct {
	tally
	cache  *cache.Cache
	all    bool // not only what belongs to the paths of graph
	target *target
	graph  *graph
}

func (e *exporter) export(ctx context.Context, paths iter.Seq2[*nix.PathInfo, error], workers int) error {
	for info, err := range paths {
		if err != nil {
			return fmt.Errorf("list paths: %w", err)
		}
		if !e.graph.has(info.Path.Hash()) {
			e.graph.add(info.Path.Hash(), references(info))
			e.change(func(p *Progress) { p.Known, p.KnownBytes = p.Known+1, p.KnownBytes+info.NARSize })
		}
	}
	if _, err := e.target.put("nix-cache-info", e.cache.Info().AppendText(nil)); err != nil {
		return err
	}
	err := e.graph.run(ctx, workers, e.path, func(_ nix.PathHash, err error) error {
		e.failed(true, err)
		return nil
	})
	if err != nil {
		return err
	}
	if err := e.files(ctx); err != nil {
		return err
	}
	if e.all {
		for r, err := range e.cache.Incomplete(ctx) {
			if err != nil {
				return err
			}
			e.change(func(p *Progress) { p.Known++ })
			e.failed(true, fmt.Errorf("%s leads to %s, which is gone: push that, or bring it back to the store of this machine", r.From, r.To))
		}
	}
	return e.target.finish()
}

// path writes all files of a path.
func (e *exporter) path(ctx context.Context, hash nix.PathHash, await func() error) error {
	info, err := e.cache.Lookup(ctx, hash)
	if err != nil {
		return fmt.Errorf("look up %s: %w", hash, err)
	}
	moved, end := e.moving(info.NARSize)
	defer end()
	wrote, err := e.nar(ctx, info, moved)
	if err != nil {
		return fmt.Errorf("write NAR of %s: %w", info.Path, err)
	}
	if err := e.listing(ctx, info); err != nil {
		return err
	}
	if err := e.log(ctx, info.Deriver); err != nil {
		return err
	}
	// Again: by now the size of what was compressed is known, and signatures may have been added.
	last, err := e.cache.Lookup(ctx, hash)
	switch {
	case err != nil:
		return fmt.Errorf("look up %s: %w", hash, err)
	case last.URL != info.URL:
		return fmt.Errorf("write narinfo of %s: %w: it was replaced while it was written", info.Path, cache.ErrUnavailable)
	}
	if err := await(); err != nil {
		return fmt.Errorf("write narinfo of %s: %w", info.Path, err)
	}
	changed, err := e.target.put(hash.String()+".narinfo", last.AppendText(nil))
	if err != nil {
		return fmt.Errorf("write narinfo of %s: %w", info.Path, err)
	}
	e.change(func(p *Progress) {
		p.Paths++
		if wrote || changed {
			p.Moved++
		}
	})
	return nil
}

// nar writes the NAR of a path as its narinfo names it, unless one of its size is there. It tells
// moved of its bytes, uncompressed, as they are written.
func (e *exporter) nar(ctx context.Context, info *nix.NARInfo, moved func(int64)) (wrote bool, err error) {
	archive := cache.Archive{Path: info.Path.Hash(), NARHash: info.NARHash, Compression: info.Compression}
	there, err := e.target.size(info.URL)
	if err != nil {
		return false, err
	}
	_, size, known, err := e.cache.StatNAR(ctx, archive)
	if err != nil {
		return false, err
	}
	if known && there == size {
		return false, nil
	}
	n, _, err := e.cache.OpenNAR(ctx, archive)
	if err != nil {
		return false, err
	}
	defer n.Close()
	err = e.target.write(info.URL, func(w io.Writer) error {
		return n.WriteRange(ctx, &scaled{w: w, size: n.Size(), whole: info.NARSize, wrote: moved}, 0, n.Size())
	})
	if err == nil {
		e.change(func(p *Progress) { p.Bytes += info.NARSize })
	}
	return err == nil, err
}

// A scaled writer tells how far it is with size bytes, as bytes of whole: with those of a compressed
// NAR as bytes of the NAR.
type scaled struct {
	w           io.Writer
	size, whole int64
	done, told  int64 // bytes of size, and of whole
	wrote       func(n int64)
}

func (s *scaled) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.done += int64(n)
	now := int64(float64(s.whole) * min(1, float64(s.done)/float64(max(s.size, 1))))
	s.wrote(now - s.told)
	s.told = now
	return n, err
}

// listing writes the listing of a path, and where the debug information in it is.
func (e *exporter) listing(ctx context.Context, info *nix.NARInfo) error {
	var text bytes.Buffer
	err := e.cache.WriteListing(ctx, info.Path.Hash(), &text)
	if errors.Is(err, cache.ErrNotFound) {
		return nil // a source without listings
	}
	if err != nil {
		return err
	}
	if _, err := e.target.put(info.Path.Hash().String()+".ls", text.Bytes()); err != nil {
		return fmt.Errorf("write listing of %s: %w", info.Path, err)
	}
	listing, err := nar.ParseListing(text.Bytes())
	if err != nil {
		return fmt.Errorf("read listing of %s: %w", info.Path, err)
	}
	for _, entry := range listing.Entries {
		id := buildID.FindStringSubmatch(entry.Path)
		if id == nil || entry.Type != nar.TypeRegular {
			continue
		}
		if err := e.debugInfo(id[1]+id[2], info.URL, entry.Path); err != nil {
			return fmt.Errorf("write debug info of %s: %w", info.Path, err)
		}
	}
	return nil
}

// buildID matches the files that Nix's index-debug-info indexes, whose names are ASCII.
var buildID = regexp.MustCompile(`^lib/debug/\.build-id/([0-9a-f]{2})/([0-9a-f]{38})\.debug$`)

// debugInfo writes where the debug information of a build ID is, under both names that it is asked for by.
// The first path that has it keeps it, as with Nix.
func (e *exporter) debugInfo(id, url, member string) error {
	content, err := json.Marshal(struct {
		Archive string `json:"archive"`
		Member  string `json:"member"`
	}{"../" + url, member})
	if err != nil {
		return err
	}
	for _, name := range []string{"debuginfo/" + id + ".debug", "debuginfo/" + id} {
		size, err := e.target.size(name)
		if err == nil && size <= 0 {
			_, err = e.target.put(name, content)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// log writes the build log of a derivation where there is one.
func (e *exporter) log(ctx context.Context, drv nix.StorePath) error {
	if drv.IsZero() {
		return nil
	}
	log, err := e.cache.OpenLog(ctx, drv)
	if errors.Is(err, cache.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer log.Close()
	name := "log/" + drv.Base()
	there, err := e.target.size(name)
	if size, known := log.Size(); err != nil || there >= 0 && (!known || there == size) {
		return err
	}
	err = e.target.write(name, func(w io.Writer) error {
		_, err := io.Copy(w, log)
		return err
	})
	if err != nil {
		return fmt.Errorf("write log of %s: %w", drv, err)
	}
	e.change(func(p *Progress) { p.Files++ })
	return nil
}

// files writes the files that belong to no path, or to one that was given.
func (e *exporter) files(ctx context.Context) error {
	for _, kind := range []struct {
		prefix string
		write  func(ctx context.Context, name string) error
	}{{"log/", e.namedLog}, {"realisations/", e.realisation}, {"build-trace-v2/", e.buildTrace}} {
		for name, err := range e.cache.Files(ctx, kind.prefix) {
			if err != nil {
				return fmt.Errorf("list %s: %w", kind.prefix, err)
			}
			err := kind.write(ctx, name)
			switch {
			case err == nil || errors.Is(err, cache.ErrNotFound): // deleted since
			case ctx.Err() != nil:
				return ctx.Err()
			default:
				e.failed(false, fmt.Errorf("write %s: %w", name, err))
			}
		}
	}
	return nil
}

func (e *exporter) namedLog(ctx context.Context, name string) error {
	drv, err := e.cache.Info().StoreDir.ParseBase(strings.TrimPrefix(name, "log/"))
	if err != nil || !e.all && !e.graph.has(drv.Hash()) {
		return err
	}
	return e.log(ctx, drv)
}

func (e *exporter) realisation(ctx context.Context, name string) error {
	id, err := parseRealisationName(name)
	if err != nil {
		return err
	}
	r, err := e.cache.Realisation(ctx, id)
	if err != nil {
		return err
	}
	return e.built(name, r.OutPath, r)
}

func (e *exporter) buildTrace(ctx context.Context, name string) error {
	drv, output, err := parseBuildTraceName(e.cache.Info().StoreDir, name)
	if err != nil {
		return err
	}
	b, err := e.cache.BuildTrace(ctx, drv, output)
	if err != nil {
		return err
	}
	return e.built(name, b.OutPath, b)
}

// built writes what says that a derivation was built to out.
func (e *exporter) built(name string, out nix.StorePath, value json.Marshaler) error {
	if !e.all && !e.graph.has(out.Hash()) {
		return nil
	}
	text, err := value.MarshalJSON()
	if err != nil {
		return err
	}
	wrote, err := e.target.put(name, text)
	if wrote && err == nil {
		e.change(func(p *Progress) { p.Files++ })
	}
	return err
}

// parseRealisationName parses realisations/<id>.doi.
func parseRealisationName(name string) (nix.RealisationID, error) {
	base, ok := strings.CutSuffix(strings.TrimPrefix(name, "realisations/"), ".doi")
	if !ok {
		return nix.RealisationID{}, fmt.Errorf("%w: %q is not the name of a realisation", cache.ErrInvalid, name)
	}
	return nix.ParseRealisationID(base)
}

// parseBuildTraceName parses build-trace-v2/<derivation>/<output>.doi.
func parseBuildTraceName(dir nix.StoreDir, name string) (drv nix.StorePath, output string, err error) {
	parts := strings.Split(strings.TrimSuffix(name, ".doi"), "/")
	if len(parts) != 3 || !strings.HasSuffix(name, ".doi") {
		return drv, "", fmt.Errorf("%w: %q is not the name of a build trace", cache.ErrInvalid, name)
	}
	if drv, err = dir.ParseBase(parts[1]); err != nil {
		return drv, "", err
	}
	return drv, parts[2], nix.CheckOutputName(parts[2])
}

// pushed iterates over all that was pushed to a cache, and what that refers to and only other
// sources have, with all that they refer to.
func pushed(ctx context.Context, c *cache.Cache) iter.Seq2[*nix.PathInfo, error] {
	return func(yield func(*nix.PathInfo, error) bool) {
		for info, err := range c.Paths(ctx) {
			if !yield(info, err) || err != nil {
				return
			}
		}
		var refs []nix.StorePath
		for path, err := range c.OnlyElsewhere(ctx) {
			if err != nil {
				yield(nil, err)
				return
			}
			if has, err := c.Has(ctx, path); err == nil && has { // else what refers to it fails
				refs = append(refs, path)
			}
		}
		for info, err := range Closure(ctx, c, refs) {
			if !yield(info, err) || err != nil {
				return
			}
		}
	}
}

// Closure iterates over the given paths of a cache and all that they refer to.
// A path that the cache does not have ends it with an error, unless it is only referred to.
func Closure(ctx context.Context, c *cache.Cache, roots []nix.StorePath) iter.Seq2[*nix.PathInfo, error] {
	return func(yield func(*nix.PathInfo, error) bool) {
		seen := map[nix.PathHash]bool{}
		for left := slices.Clone(roots); len(left) > 0; {
			p := left[len(left)-1]
			left = left[:len(left)-1]
			if seen[p.Hash()] {
				continue
			}
			seen[p.Hash()] = true
			info, err := c.Lookup(ctx, p.Hash())
			switch {
			case errors.Is(err, cache.ErrNotFound) && !slices.Contains(roots, p):
				continue // the cache allows that
			case err != nil:
				yield(nil, fmt.Errorf("look up %s: %w", p, err))
				return
			}
			left = append(left, info.References...)
			if !yield(&info.PathInfo, nil) {
				return
			}
		}
	}
}
