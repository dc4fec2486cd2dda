// Package backup copies the state directory of a server, which may go on running, into another
// directory.
//
//	report, err := backup.Run(ctx, catalog, backup.Options{State: state, Dir: dir, …})
//
// The copy is a state directory as well, and what is in it is whole at every moment: packs come
// first, the catalog that names them then takes the place of the older one, and packs that it does
// not name go last. docs/adr/0074-backups.md has the reasons.
package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"firn/internal/catalog/sqlite"
	"firn/internal/depot/blob"
	"firn/internal/depot/blob/dir"
)

// Marker is the file in a directory that says that it is a backup, and nothing else: what is in it
// may be replaced.
const Marker = "firn-backup"

// markerText is for people who find the file.
const markerText = "`firn backup` writes to this directory, and removes from its depot what the server that it copies has no more.\n" +
	"A server that is started on this directory, or a command that changes it, removes this file.\n"

// maxCopies is how many packs are copied at once: many are small, and wait for the disk.
const maxCopies = 4

// staged is the name of a catalog until its packs are there. No file of a depot begins with a dot.
const staged = ".catalog.new"

// Options say what to copy, and where to.
type Options struct {
	State string // the state directory
	Dir   string // made if it is not there; one that has something in it has to be a backup

	// The names of the depot in the state directory, and of its catalog and its packs in the depot.
	Depot, Catalog, Packs string
	// Remade are names in the state directory of what the server makes again.
	Remade []string

	// Progress is told, by one goroutine at a time, how many bytes of packs were copied, of how
	// many. It may be nil.
	Progress func(done, total int64)
}

// A Report says what is in a backup, and what of that is new.
type Report struct {
	Packs, PackBytes   int64    // that the catalog names
	Copied, CopyBytes  int64    // of them, those that were not in the backup yet
	Removed            int64    // packs that the catalog does not name any more
	Files, CatalogSize int64    // other files that have changed; bytes of the catalog
	Missing            []string // packs that the server itself has lost, and the backup never had
}

// run is one run.
type run struct {
	Options
	report Report
	locks  []*os.File
	from   *dir.Store
	to     *dir.Store

	mu          sync.Mutex
	done, total int64
}

// Run brings a backup up to date with a state directory, whose catalog is open. After an error the
// directory has what it had before, beside packs and files that the next run uses.
func Run(ctx context.Context, catalog *sqlite.Catalog, opts Options) (Report, error) {
	r := &run{Options: opts}
	err := r.run(ctx, catalog)
	for _, l := range r.locks {
		l.Close()
	}
	if err != nil {
		return r.report, fmt.Errorf("back up %s to %s: %w", opts.State, opts.Dir, err)
	}
	return r.report, nil
}

// in returns the path of something in the backup.
func (r *run) in(names ...string) string { return filepath.Join(append([]string{r.Dir}, names...)...) }

func (r *run) run(ctx context.Context, catalog *sqlite.Catalog) (err error) {
	if err := r.begin(); err != nil {
		return err
	}
	if r.to, err = dir.Open(r.in(r.Depot, r.Packs), dir.Options{Make: true}); err != nil {
		return err
	}
	packs, err := r.copyDepot(ctx, catalog)
	if err != nil {
		return err
	}
	if err := r.copyFiles(ctx); err != nil {
		return err
	}
	// Changes that are beside the older catalog must not be taken for changes of the new one.
	old := r.in(r.Depot, r.Catalog)
	if err := sqlite.Fold(ctx, old); err != nil {
		return fmt.Errorf("%w; end the process that uses this backup", err)
	}
	if err := os.Rename(r.in(r.Depot, staged), old); err != nil {
		return err
	}
	if err := syncDir(r.in(r.Depot)); err != nil {
		return err
	}
	return r.removeRest(ctx, packs)
}

// begin makes sure that the directory is a backup, or becomes one, and that no other process uses
// it as long as this one does.
func (r *run) begin() error {
	state, err := filepath.EvalSymlinks(r.State)
	if err != nil {
		return err
	}
	if r.Dir, err = filepath.Abs(r.Dir); err != nil {
		return err
	}
	if r.Dir, err = resolved(r.Dir); err != nil {
		return err
	}
	if within(r.Dir, state) || within(state, r.Dir) {
		return errors.New("one of these directories is in the other; name one outside, on another disk at best")
	}
	entries, err := os.ReadDir(r.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = os.MkdirAll(r.Dir, 0o700)
	}
	if err != nil {
		return err
	}
	marker := r.in(Marker)
	// The file itself may have been cut off while it was made.
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return e.Name() == filepath.Base(tempName(marker)) })
	if len(entries) == 0 {
		if err := write(marker, markerText, 0o644); err != nil {
			return err
		}
	} else if _, err := os.Lstat(marker); errors.Is(err, fs.ErrNotExist) {
		return errors.New("there is something in the directory, and it is no backup; or it was one, and a server was started on it, " +
			"or a command such as firn token create changed it, so that it has what is in no other place; name an empty directory, or one that is not there yet")
	}
	if err := os.Mkdir(r.in(r.Depot), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, names := range [][]string{{r.Depot}, {r.Depot, r.Packs}} {
		at := filepath.Join(names...)
		if same(filepath.Join(state, at), r.in(at)) {
			return fmt.Errorf("%s is the same directory in both", at)
		}
	}
	if err := r.lock(marker, "another firn backup, or a firn import, uses it now; wait until that has ended"); err != nil {
		return err
	}
	// A server has a lock of the same kind for as long as it runs.
	if err := r.lock(r.in(r.Depot), "a server runs on it"); err != nil {
		return err
	}
	if _, err := os.Lstat(marker); err != nil {
		return fmt.Errorf("a server was started on it just now: %w", err)
	}
	return nil
}

// lock locks a file, or a directory, until the run ends.
func (r *run) lock(path, other string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	r.locks = append(r.locks, f)
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); errors.Is(err, syscall.EWOULDBLOCK) {
		return errors.New(other)
	}
	return nil // any other error: there are no locks here
}

// copyDepot copies the catalog, and the packs that it names, and returns these.
//
// A server keeps packs for a day after it needs them last. One that goes during the copy was in its
// last hours when the catalog was copied: a later copy does not name it. One that a later copy
// names nevertheless, is lost.
func (r *run) copyDepot(ctx context.Context, catalog *sqlite.Catalog) (map[string]int64, error) {
	gone := make(map[string]bool)
	for {
		path := r.in(r.Depot, staged)
		for _, suffix := range []string{"", "-journal", "-wal", "-shm"} {
			if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
		packs, err := catalog.Copy(ctx, path)
		if err != nil {
			return nil, err
		}
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		r.report.CatalogSize = info.Size()
		missing, err := r.copyPacks(ctx, packs)
		if err != nil {
			return nil, err
		}
		again := false
		for _, name := range missing {
			again = again || !gone[name]
			gone[name] = true
		}
		if !again {
			r.report.Missing = missing
			return packs, nil
		}
	}
}

// copyPacks copies the packs that are not in the backup yet, and returns those that are not in the
// state either.
func (r *run) copyPacks(ctx context.Context, packs map[string]int64) (missing []string, err error) {
	have := make(map[string]int64)
	err = r.to.List(ctx, func(i blob.Info) error {
		have[i.Name] = i.Size
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(packs) > 0 {
		// Opened, a directory would be made.
		path := filepath.Join(r.State, r.Depot, r.Packs)
		if _, err := os.Stat(path); err != nil {
			return nil, err
		}
		if r.from, err = dir.Open(path, dir.Options{}); err != nil {
			return nil, err
		}
	}
	var wanted []string
	r.report.Packs, r.report.PackBytes, r.total = int64(len(packs)), 0, r.done
	for name, size := range packs {
		r.report.PackBytes += size
		if there, ok := have[name]; !ok || there != size {
			wanted = append(wanted, name)
			r.total += size
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxCopies)
	for _, name := range wanted {
		group.Go(func() error {
			ok, err := r.copyPack(ctx, name, packs[name])
			r.mu.Lock()
			defer r.mu.Unlock()
			switch {
			case err != nil:
				return err
			case !ok:
				missing = append(missing, name)
			default:
				r.report.Copied++
				r.report.CopyBytes += packs[name]
			}
			return nil
		})
	}
	err = group.Wait()
	slices.Sort(missing)
	return missing, err
}

// copyPack copies a pack, unless it is not there, or not as long as the catalog says.
func (r *run) copyPack(ctx context.Context, name string, size int64) (ok bool, err error) {
	from, err := r.from.Open(ctx, name)
	if errors.Is(err, blob.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer from.Close()
	if from.Size() != size {
		return false, nil
	}
	to, err := r.to.Create(ctx, name)
	if err != nil {
		return false, err
	}
	defer to.Abort()
	if err := from.WriteRange(ctx, writerFunc(func(p []byte) (int, error) {
		n, err := to.Write(p)
		r.copied(int64(n))
		return n, err
	}), 0, size); err != nil {
		return false, err
	}
	return true, to.Commit(ctx)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// copied tells of bytes that were copied.
func (r *run) copied(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done += n
	if r.Progress != nil {
		r.Progress(r.done, max(r.done, r.total))
	}
}

// removeRest removes the packs that the catalog does not name, and the rest of runs that were cut
// off.
func (r *run) removeRest(ctx context.Context, packs map[string]int64) error {
	var rest []string
	err := r.to.List(ctx, func(i blob.Info) error {
		if _, ok := packs[i.Name]; !ok {
			rest = append(rest, i.Name)
		}
		return nil
	})
	for _, name := range rest {
		if err == nil {
			err = r.to.Delete(ctx, name)
			r.report.Removed++
		}
	}
	if err == nil {
		err = r.to.Sweep(ctx, time.Now())
	}
	return err
}
