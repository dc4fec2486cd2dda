package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"firn/internal/catalog"
	"firn/nix"
)

// searchPage is how many paths a search reads at once, some milliseconds.
const searchPage = 2000

// deletion is one that is under way.
//
// Which paths refer to others is written only with these, so all have to be read, which takes seconds where there are a million.
// That is done outside of transactions. Each transaction that deletes looks at what was published since then, which is little.
type deletion struct {
	c      *Catalog
	d      *catalog.Deletion
	dir    nix.StoreDir
	search *catalog.Search
	seen   int64                    // the search was shown the paths up to this row
	left   []nix.PathHash           // to be deleted, in this order
	again  bool                     // older paths may refer to what was found since they were shown
	gone   catalog.Deleted          // what is durable
	logs   map[string]nix.StorePath // derivations that have logs and have built what is gone, by their last elements
}

// DeletePaths removes paths.
func (c *Catalog) DeletePaths(ctx context.Context, d *catalog.Deletion) (*catalog.Deleted, error) {
	x := &deletion{c: c, d: d, search: catalog.NewSearch(d), logs: make(map[string]nix.StorePath)}
	err := x.run(ctx)
	slices.SortFunc(x.gone.Paths, func(a, b nix.StorePath) int {
		one, other := a.Hash(), b.Hash()
		return bytes.Compare(one[:], other[:])
	})
	if err != nil {
		err = fmt.Errorf("delete paths: %w", err)
		if len(x.gone.Paths) == 0 {
			return nil, err
		}
	}
	return &x.gone, err
}

func (x *deletion) run(ctx context.Context) error {
	none := fmt.Errorf("%w: the cache", catalog.ErrNotFound)
	if err := x.c.queryRow(ctx, "SELECT store_dir FROM caches WHERE id = ? AND name IS NOT NULL", int64(x.d.Cache)).scan(&x.dir, none); err != nil {
		return err
	}
	for _, hash := range x.d.Paths {
		var there bool
		if err := x.c.queryRow(ctx, "SELECT EXISTS (SELECT 1 FROM paths WHERE cache = ? AND hash = ?)", int64(x.d.Cache), hash[:]).scan(&there, nil); err != nil {
			return err
		}
		if !there {
			return fmt.Errorf("%w: %s", catalog.ErrNotFound, hash)
		}
	}
	if x.d.DryRun {
		if err := x.find(ctx); err != nil {
			return err
		}
		return x.foretell(ctx)
	}
	err := x.removeAll(ctx)
	// Also of what was deleted before that failed, or was cut off: nobody will name that once more.
	if failed := x.removeLogs(context.WithoutCancel(ctx)); failed != nil {
		err = errors.Join(err, failed)
	}
	return err
}

// removeAll finds and removes all but logs.
func (x *deletion) removeAll(ctx context.Context) error {
	for x.again = true; x.again; {
		if err := x.find(ctx); err != nil {
			return err
		}
		if err := x.remove(ctx); err != nil {
			return err
		}
	}
	return nil
}

// find shows the search all paths that there are now, until it finds no more.
func (x *deletion) find(ctx context.Context) error {
	last, err := x.last(ctx)
	if err != nil {
		return err
	}
	for x.again = x.d.Referrers != catalog.KeepReferrers; x.again; {
		x.again = false
		// Not those that are published meanwhile: as long as somebody publishes what refers to it there would be no end.
		if err := x.readAll(ctx, last, publishedSince, func(scan func(...any) error) error {
			_, found, err := x.show(scan)
			x.again = x.again || found
			return err
		}); err != nil {
			return err
		}
	}
	x.left = x.search.Order()
	return x.search.Err()
}

const (
	// publishedSince are paths of a cache that were published after a row, up to another, and derivedSince what built them. The row is the first column.
	publishedSince = "SELECT rowid, hash, name, refs FROM paths WHERE +cache = ? AND rowid > ? AND rowid <= ? ORDER BY rowid LIMIT ?"
	derivedSince   = "SELECT rowid, deriver FROM paths WHERE +cache = ? AND rowid > ? AND rowid <= ? ORDER BY rowid LIMIT ?"
)

// last returns the last row that there is.
func (x *deletion) last(ctx context.Context) (last int64, err error) {
	return last, x.c.queryRow(ctx, "SELECT "+lastPath).scan(&last, nil)
}

// readAll calls each, which advances seen, with all paths up to a row.
func (x *deletion) readAll(ctx context.Context, last int64, query string, each func(scan func(...any) error) error) error {
	for x.seen = 0; ; {
		before := x.seen
		if err := x.c.rows(ctx, each, query, int64(x.d.Cache), before, last, searchPage); err != nil {
			return err
		}
		if x.seen == before {
			x.seen = last // what is left is of other caches
			return nil
		}
	}
}

// readNew calls each with those that were published since.
func (x *deletion) readNew(y *change, query string, each func(scan func(...any) error) error) error {
	var last int64
	if _, err := y.get("SELECT "+lastPath, nil, &last); err != nil {
		return err
	}
	if err := y.rows(each, query, int64(x.d.Cache), x.seen, last, -1); err != nil {
		return err
	}
	x.seen = max(x.seen, last)
	return nil
}

// show shows the search a path.
func (x *deletion) show(scan func(...any) error) (path nix.StorePath, found bool, err error) {
	var row int64
	var hash []byte
	var name, text string
	if err := scan(&row, &hash, &name, &text); err != nil {
		return path, false, err
	}
	if path, err = pathOf(x.dir, hash, name); err != nil {
		return path, false, err
	}
	refs, err := parseReferences(x.dir, text)
	if err != nil {
		return path, false, err
	}
	found, err = x.search.Show(path, refs)
	x.seen = max(x.seen, row)
	return path, found, err
}

func pathOf(dir nix.StoreDir, hash []byte, name string) (nix.StorePath, error) {
	if len(hash) != len(nix.PathHash{}) {
		return nix.StorePath{}, fmt.Errorf("%w: a hash has not its length", catalog.ErrUnavailable)
	}
	return dir.ParseBase(nix.PathHash(hash).String() + "-" + name)
}

// foretell tells what would be deleted.
func (x *deletion) foretell(ctx context.Context) error {
	staying := make(map[int64]int64) // how many paths have a NAR, of all caches, that were not counted yet
	for _, hash := range x.left {
		var name string
		var nar, size int64
		err := x.c.queryRow(ctx, "SELECT name, nar, file_size FROM paths JOIN nars ON nars.id = nar WHERE cache = ? AND paths.hash = ?", int64(x.d.Cache), hash[:]).
			scanAll(catalog.ErrNotFound, &name, &nar, &size)
		if errors.Is(err, catalog.ErrNotFound) && !slices.Contains(x.d.Paths, hash) {
			continue // somebody else deleted it
		}
		if errors.Is(err, catalog.ErrNotFound) {
			return fmt.Errorf("%w: %s", err, hash)
		}
		if err != nil {
			return err
		}
		path, err := pathOf(x.dir, hash[:], name)
		if err != nil {
			return err
		}
		x.gone.Paths = append(x.gone.Paths, path)
		paths, counted := staying[nar]
		if !counted {
			if err := x.c.queryRow(ctx, "SELECT count(*) FROM paths WHERE nar = ?", nar).scan(&paths, nil); err != nil {
				return err
			}
		}
		if staying[nar] = paths - 1; paths == 1 {
			x.gone.FileBytes += size
		}
	}
	return nil
}

// remove removes all that is left, unless it has to be searched again before.
func (x *deletion) remove(ctx context.Context) error {
	for {
		began := time.Now()
		if err := x.removeNext(ctx); err != nil || x.again || len(x.left) == 0 {
			return err
		}
		if err := giveWay(ctx, time.Since(began)); err != nil {
			return err
		}
	}
}

// removeNext removes a few of those that are left, in one transaction.
func (x *deletion) removeNext(ctx context.Context) error {
	var gone catalog.Deleted
	var logs []nix.StorePath
	err := x.c.write(ctx, func(y *change) (err error) {
		gone, logs = catalog.Deleted{}, nil
		if err := x.findNew(y); err != nil || x.again {
			return err
		}
		logs, err = x.removeFew(y, &gone)
		return err
	})
	if err != nil || x.again {
		return err
	}
	few := min(removeBatch, len(x.left))
	x.search.Forget(x.left[:few])
	x.left = x.left[few:]
	x.gone.Paths, x.gone.FileBytes = append(x.gone.Paths, gone.Paths...), x.gone.FileBytes+gone.FileBytes
	for _, drv := range logs {
		x.logs[drv.Base()] = drv
	}
	return nil
}

// findNew looks at what was published since. What it finds goes first.
func (x *deletion) findNew(y *change) error {
	if x.d.Referrers == catalog.KeepReferrers {
		return nil
	}
	var found []nix.StorePath
	if err := x.readNew(y, publishedSince, func(scan func(...any) error) error {
		path, refers, err := x.show(scan)
		if refers {
			found = append(found, path)
		}
		return err
	}); err != nil {
		return err
	}
	for _, path := range found {
		hash := path.Hash()
		x.left = slices.Insert(x.left, 0, hash)
		awaited, err := y.get("SELECT 1 FROM awaited WHERE cache = ? AND hash = ?", []any{int64(x.d.Cache), hash[:]}, new(int64))
		if err != nil {
			return err
		}
		x.again = x.again || awaited
	}
	return x.search.Err()
}

// removeFew deletes the first of those that are left, and returns the derivations that may have left logs.
func (x *deletion) removeFew(y *change, gone *catalog.Deleted) (logs []nix.StorePath, err error) {
	cache := int64(x.d.Cache)
	nars := make(map[int64]bool)
	for _, hash := range x.left[:min(removeBatch, len(x.left))] {
		var name, deriver string
		var nar int64
		ok, err := y.get("SELECT name, nar, deriver FROM paths WHERE cache = ? AND hash = ?", []any{cache, hash[:]}, &name, &nar, &deriver)
		if err != nil {
			return nil, err
		}
		if !ok && len(x.gone.Paths) == 0 && slices.Contains(x.d.Paths, hash) {
			return nil, fmt.Errorf("%w: %s", catalog.ErrNotFound, hash)
		}
		if !ok {
			continue // somebody else deleted it
		}
		path, err := pathOf(x.dir, hash[:], name)
		if err != nil {
			return nil, err
		}
		gone.Paths = append(gone.Paths, path)
		nars[nar] = true
		if err := x.c.deletePath(y, x.d.Cache, hash); err != nil {
			return nil, err
		}
		if err := y.exec("DELETE FROM files WHERE cache = ? AND path = ?", cache, hash.String()); err != nil {
			return nil, err
		}
		if logs, err = x.appendLogs(logs, y, path, deriver); err != nil {
			return nil, err
		}
	}
	for nar := range nars {
		var size int64
		if _, err := y.get("SELECT file_size FROM nars WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM paths WHERE nar = ?1)", []any{nar}, &size); err != nil {
			return nil, err
		}
		gone.FileBytes += size
	}
	return logs, nil
}

// appendLogs appends the derivations of a path that goes, as far as there are logs of them: that which built it, and itself where it is one.
func (x *deletion) appendLogs(logs []nix.StorePath, y *change, path nix.StorePath, deriver string) ([]nix.StorePath, error) {
	drvs := []nix.StorePath{path}
	if deriver != "" {
		drv, err := x.dir.ParseBase(deriver)
		if err != nil {
			return nil, err
		}
		drvs = append(drvs, drv)
	}
	for _, drv := range drvs {
		there, err := y.get("SELECT 1 FROM files WHERE cache = ? AND key = ?", []any{int64(x.d.Cache), catalog.LogKey(drv)}, new(int64))
		if err != nil {
			return nil, err
		}
		if there {
			logs = append(logs, drv)
		}
	}
	return logs, nil
}

// removeLogs removes the logs of those derivations that have built nothing that is still there. It reads all paths for that, as find does.
func (x *deletion) removeLogs(ctx context.Context) error {
	if len(x.logs) == 0 {
		return nil
	}
	keep := func(scan func(...any) error) error {
		var deriver string
		if err := scan(&x.seen, &deriver); err != nil {
			return err
		}
		delete(x.logs, deriver)
		return nil
	}
	last, err := x.last(ctx)
	if err == nil {
		err = x.readAll(ctx, last, derivedSince, keep)
	}
	if err != nil {
		return err
	}
	for len(x.logs) > 0 {
		began := time.Now()
		var gone []string
		if err := x.c.write(ctx, func(y *change) error {
			if err := x.readNew(y, derivedSince, keep); err != nil {
				return err
			}
			gone = nil
			for base, drv := range x.logs {
				if len(gone) == removeBatch {
					break
				}
				if err := y.exec("DELETE FROM files WHERE cache = ? AND key = ?", int64(x.d.Cache), catalog.LogKey(drv)); err != nil {
					return err
				}
				gone = append(gone, base)
			}
			return nil
		}); err != nil {
			return err
		}
		for _, base := range gone {
			delete(x.logs, base)
		}
		if err := giveWay(ctx, time.Since(began)); err != nil {
			return err
		}
	}
	return nil
}
