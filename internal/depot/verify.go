package depot

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"firn/internal/catalog"
	"firn/internal/depot/index"
	"firn/nix"
)

// maxVerifying bounds the NARs that are verified at once. More would only make a disk seek.
const maxVerifying = 8

// VerifyOptions says what to verify. The zero VerifyOptions is everything in the depot.
type VerifyOptions struct {
	// Caches has the names of the caches whose paths are verified. Nil: all, and NARs that are in
	// no cache.
	Caches []string
	// Path is the only path to verify. Zero: all.
	Path nix.PathHash
	// Repair withholds NARs that are damaged, keeps new uploads from referring to their damaged
	// chunks, and serves withheld NARs again that are intact.
	Repair bool
	// Progress, unless it is nil, is called now and then, by one goroutine at a time, with how many
	// bytes of NARs were verified, and of how many.
	Progress func(done, total int64)
}

// A Report is the result of a verification.
type Report struct {
	NARs    int64 // that were read
	Bytes   int64 // of them
	Damaged []Damage
	Healed  int64 // withheld NARs that are intact; with Repair they are served again
}

// A Damage is a damaged NAR, at one of the paths at which it is published.
type Damage struct {
	Cache   string        // "" if it is published nowhere
	Path    nix.StorePath // zero if it is published nowhere
	NARHash nix.Hash
	Reason  error
}

// ErrNoCache says that there is no cache of a name. Match it with errors.Is.
var ErrNoCache = errors.New("no such cache")

// Verify reads NARs from their packs as if to send them, and compares them with their hashes, the
// format, and their listings. The depot may be used at the same time, also by other processes. An
// error says that the verification could not go on.
func (d *Depot) Verify(ctx context.Context, opts VerifyOptions) (Report, error) {
	v := &verification{d: d, opts: opts, damaged: make(map[index.NARID]damagedNAR)}
	if err := v.run(ctx); err != nil {
		return v.report, fmt.Errorf("verify depot: %w", err)
	}
	return v.report, nil
}

type verification struct {
	d      *Depot
	opts   VerifyOptions
	caches []*catalog.Cache

	mu      sync.Mutex
	report  Report
	done    int64
	total   int64
	damaged map[index.NARID]damagedNAR
}

type damagedNAR struct {
	hash   catalog.Sum
	reason error
}

func (v *verification) run(ctx context.Context) error {
	if err := v.d.look(ctx); err != nil {
		return err
	}
	if err := v.choose(ctx); err != nil {
		return err
	}
	if err := v.measure(ctx); err != nil {
		return err
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(min(runtime.GOMAXPROCS(0), maxVerifying))
	for n, err := range v.nars(gctx) {
		if err != nil {
			return errors.Join(err, group.Wait())
		}
		if gctx.Err() != nil {
			break
		}
		group.Go(func() error { return v.verify(gctx, n) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return v.name(ctx)
}

// choose looks up the caches whose names are in the options.
func (v *verification) choose(ctx context.Context) error {
	all, err := v.d.catalog.AllCaches(ctx)
	if err != nil {
		return failure("read caches", err)
	}
	for _, name := range v.opts.Caches {
		if !slices.ContainsFunc(all, func(c *catalog.Cache) bool { return c.Name == name }) {
			return fmt.Errorf("%w: %q", ErrNoCache, name)
		}
	}
	for _, c := range all {
		if v.opts.Caches == nil || slices.Contains(v.opts.Caches, c.Name) {
			v.caches = append(v.caches, c)
		}
	}
	return nil
}

// all reports whether NARs that are published nowhere are asked for too.
func (v *verification) all() bool { return v.opts.Caches == nil && v.opts.Path == nix.PathHash{} }

// measure sets how many bytes there are to verify.
func (v *verification) measure(ctx context.Context) error {
	if v.opts.Path != (nix.PathHash{}) {
		return nil // it is told with its first byte
	}
	if v.all() {
		counts, err := v.d.index.Count(ctx)
		v.total = counts.NARBytes
		return failure("count NARs", err)
	}
	for _, c := range v.caches {
		counts, err := v.d.index.CountIn(ctx, c.ID)
		if err != nil {
			return failure("count NARs", err)
		}
		v.total += counts.NARBytes
	}
	return nil
}

// nars yields the NARs to verify, each once.
func (v *verification) nars(ctx context.Context) iter.Seq2[index.NAR, error] {
	return func(yield func(index.NAR, error) bool) {
		if v.all() {
			for n, err := range v.d.index.AllNARs(ctx) {
				if err != nil {
					yield(index.NAR{}, failure("list NARs", err))
					return
				}
				if !yield(*n, nil) {
					return
				}
			}
			return
		}
		seen := make(map[index.NARID]bool)
		for p, err := range v.paths(ctx) {
			if err != nil {
				yield(index.NAR{}, err)
				return
			}
			n := index.NAR{ID: p.NAR, Hash: catalog.Sum(p.Info.NARHash.Sum()), Size: p.Info.NARSize}
			if seen[n.ID] {
				v.progress(n.Size)
				continue
			}
			seen[n.ID] = true
			if !yield(n, nil) {
				return
			}
		}
	}
}

// A namedPath is a path in a cache.
type namedPath struct {
	*index.Path
	cache string
}

// paths yields the paths to verify, withheld ones too.
func (v *verification) paths(ctx context.Context) iter.Seq2[namedPath, error] {
	return func(yield func(namedPath, error) bool) {
		for _, c := range v.caches {
			for _, damaged := range []bool{false, true} {
				for p, err := range v.list(ctx, c, damaged) {
					if err != nil {
						yield(namedPath{}, failure("list paths of cache "+c.Name, err))
						return
					}
					if v.opts.Path != (nix.PathHash{}) && p.Info.Path.Hash() != v.opts.Path {
						continue
					}
					if !yield(namedPath{p, c.Name}, nil) {
						return
					}
				}
			}
		}
	}
}

// list yields the paths of a cache. For one path it does not read all of them, unless these are
// withheld, which are few.
func (v *verification) list(ctx context.Context, c *catalog.Cache, damaged bool) iter.Seq2[*index.Path, error] {
	switch {
	case damaged:
		return v.d.index.WithheldPaths(ctx, c.ID)
	case v.opts.Path == (nix.PathHash{}):
		return v.d.index.AllPaths(ctx, c.ID)
	}
	return func(yield func(*index.Path, error) bool) {
		p, err := v.d.index.Path(ctx, c.ID, v.opts.Path)
		if !errors.Is(err, catalog.ErrNotFound) {
			yield(p, err)
		}
	}
}

// progress adds bytes that were verified.
func (v *verification) progress(n int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.done += n
	v.total = max(v.total, v.done)
	if v.opts.Progress != nil {
		v.opts.Progress(v.done, v.total)
	}
}

func (v *verification) verify(ctx context.Context, n index.NAR) error {
	if v.opts.Path != (nix.PathHash{}) {
		v.mu.Lock()
		v.total += n.Size
		v.mu.Unlock()
	}
	var read int64
	verdict, err := v.d.verifyNAR(ctx, n.Hash, v.opts.Repair, func(n int64) {
		read += n
		v.progress(n)
	})
	if err != nil {
		return err
	}
	v.progress(n.Size - read)
	v.mu.Lock()
	defer v.mu.Unlock()
	if verdict.gone {
		return nil
	}
	v.report.NARs++
	v.report.Bytes += n.Size
	if verdict.healed {
		v.report.Healed++
	}
	if verdict.fault != nil {
		v.damaged[n.ID] = damagedNAR{n.Hash, verdict.fault}
	}
	return nil
}

// name adds the paths of damaged NARs to the report.
func (v *verification) name(ctx context.Context) error {
	if len(v.damaged) == 0 {
		return nil
	}
	named := make(map[index.NARID]bool)
	for p, err := range v.paths(ctx) {
		if err != nil {
			return err
		}
		if n, ok := v.damaged[p.NAR]; ok {
			named[p.NAR] = true
			v.report.Damaged = append(v.report.Damaged, Damage{p.cache, p.Info.Path, nix.SHA256Sum(n.hash), n.reason})
		}
	}
	for id, n := range v.damaged {
		if !named[id] {
			v.report.Damaged = append(v.report.Damaged, Damage{NARHash: nix.SHA256Sum(n.hash), Reason: n.reason})
		}
	}
	return nil
}
