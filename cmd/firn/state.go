package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"syscall"

	"golang.org/x/term"

	"firn/internal/backup"
	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/catalog/sqlite"
	"firn/internal/config"
	"firn/internal/depot"
	"firn/internal/depot/blob"
	"firn/internal/depot/blob/dir"
	"firn/internal/depot/index"
	"firn/internal/logs"
	"firn/internal/registry"
)

// stateFlags say where a server has what it keeps, for the commands that look at that, or change it, while the server runs.
type stateFlags struct {
	ConfigFile string `name:"config" env:"FIRN_CONFIG" placeholder:"FILE" complete:"file" help:"The configuration file of the server."`
	State      string `name:"state" placeholder:"DIR" complete:"dir" help:"The state directory of the server. By default what the configuration says, or the default of firn serve."`
}

// load returns the configuration of the server.
func (f *stateFlags) load() (*config.Config, error) {
	c, _, err := config.Load(f.ConfigFile, os.LookupEnv)
	if err != nil {
		return nil, err
	}
	if f.State != "" {
		c.State = f.State
	}
	return c, c.Check()
}

// openCatalog opens the catalog of the server, which the caller closes.
func (f *stateFlags) openCatalog(ctx context.Context) (*sqlite.Catalog, error) {
	c, err := f.load()
	if err != nil {
		return nil, err
	}
	if !hasDepot(c.State) {
		return nil, errNoDepot(ctx, c.State)
	}
	return openCatalog(ctx, c.State)
}

// changeCatalog is openCatalog for a command that changes it: what was a backup is one no more.
func (f *stateFlags) changeCatalog(ctx context.Context) (*sqlite.Catalog, error) {
	c, err := f.load()
	if err != nil {
		return nil, err
	}
	if !hasDepot(c.State) {
		return nil, errNoDepot(ctx, c.State)
	}
	if err := noBackup(c.State, logs.NewLogger(c, os.Stderr)); err != nil {
		return nil, err
	}
	return openCatalog(ctx, c.State)
}

// makeCatalog is changeCatalog for what can be prepared before the first start of a server: it makes the depot if there is none, and says so.
func (f *stateFlags) makeCatalog(ctx context.Context) (*sqlite.Catalog, error) {
	c, err := f.load()
	if err != nil {
		return nil, err
	}
	if err := sayNew(c.State); err != nil {
		return nil, err
	}
	if err := noBackup(c.State, logs.NewLogger(c, os.Stderr)); err != nil {
		return nil, err
	}
	return openCatalog(ctx, c.State)
}

// withCatalog opens a catalog, calls do, and closes the catalog.
func withCatalog(open func(context.Context) (*sqlite.Catalog, error), do func(context.Context, *sqlite.Catalog) error) error {
	ctx := context.Background()
	cat, err := open(ctx)
	if err != nil {
		return err
	}
	return errors.Join(do(ctx, cat), cat.Close())
}

// makeDepot is openDepot for a command that makes the depot if there is none, and says so. A backup stays one.
func (f *stateFlags) makeDepot(ctx context.Context) (*openedDepot, error) {
	c, err := f.load()
	if err != nil {
		return nil, err
	}
	if err := sayNew(c.State); err != nil {
		return nil, err
	}
	return openDepot(ctx, c, logs.NewLogger(c, os.Stderr))
}

// sayNew says where there is no depot yet that one is made, unless the server could not read it.
func sayNew(state string) error {
	if hasDepot(state) {
		return nil
	}
	if err := checkOwner(state); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "No server has kept anything in %s yet. The one that is started with --state %s will find this there.\n", state, state)
	return nil
}

// openDepot opens the depot of the server.
func (f *stateFlags) openDepot(ctx context.Context) (*openedDepot, error) {
	c, err := f.load()
	if err != nil {
		return nil, err
	}
	if !hasDepot(c.State) {
		return nil, errNoDepot(ctx, c.State)
	}
	return openDepot(ctx, c, logs.NewLogger(c, os.Stderr))
}

// hasDepot reports whether a state directory has, or may have, a depot, so that a word typed wrong does not make one.
func hasDepot(state string) bool {
	_, err := os.Stat(filepath.Join(state, depotDir, catalogName))
	return !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR)
}

func errNoDepot(ctx context.Context, state string) error {
	if err := checkLost(ctx, state); err != nil {
		return err
	}
	return fmt.Errorf("there is no depot in %s; name the state directory of the server with --state, or start `firn serve` once", state)
}

// checkLost refuses to make a catalog where there are packs: it would know none of them, and so have them deleted.
func checkLost(ctx context.Context, state string) error {
	packs := filepath.Join(state, depotDir, packsName)
	if _, err := os.Lstat(packs); errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	blobs, err := dir.Open(packs, dir.Options{})
	if err != nil {
		return err
	}
	found := errors.New("found")
	if err := blobs.List(ctx, func(blob.Info) error { return found }); !errors.Is(err, found) {
		return err
	}
	return fmt.Errorf("there is nothing in the catalog %s, and without it there is no way to tell what is in %s: "+
		"bring back both from one backup, with the catalog's -wal if that is there; or, if all that was pushed is to be forgotten, remove the packs",
		filepath.Join(state, depotDir, catalogName), packs)
}

// makePacks makes the directory of packs for a new catalog.
func makePacks(ctx context.Context, state string) error {
	if err := checkLost(ctx, state); err != nil {
		return err
	}
	_, err := dir.Open(filepath.Join(state, depotDir, packsName), dir.Options{Make: true})
	return err
}

// checkOwner refuses to write, as root, into the state of a server that runs as another user, who could not read it.
func checkOwner(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return nil // it is made, or that fails
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 || owner.Uid == 0 {
		return nil
	}
	who, command := runAs(owner.Uid, owner.Gid)
	return fmt.Errorf("%s belongs to %s, who could not read what root writes there; run this as that user: %s firn …", path, who, command)
}

// runAs names a user, and the command by which root runs another one as that user.
// The user of a service with DynamicUser is not in /etc/passwd, and has only a number.
func runAs(uid, gid uint32) (who, command string) {
	if u, err := user.LookupId(fmt.Sprint(uid)); err == nil {
		return "the user " + u.Username, "runuser -u " + u.Username + " --"
	}
	return fmt.Sprintf("the user with number %d", uid), fmt.Sprintf("setpriv --reuid=%d --regid=%d --clear-groups", uid, gid)
}

// The depot lies in the state directory, and so do the compressed NARs of the local store, which
// can be made again.
const (
	compressedDir = "zstd"

	depotDir    = "depot"
	catalogName = "catalog.db"
	packsName   = "packs"

	stateMode fs.FileMode = 0o755 // of a state directory: the public key is for everybody
	depotMode fs.FileMode = 0o700 // what is in the depot is not: some caches are private
)

// openCatalog opens, or makes, the catalog in a state directory, for a command that may run beside a server.
func openCatalog(ctx context.Context, state string) (*sqlite.Catalog, error) {
	at, err := makeDepot(state)
	if err != nil {
		return nil, err
	}
	lock, err := sqlite.LockForCommand(at)
	if err != nil {
		return nil, fmt.Errorf("open depot: %w%s", err, stateAdvice(err))
	}
	defer lock.Close() // a command keeps no other process from anything
	return openLocked(ctx, state, lock)
}

// openLocked opens, or makes, the catalog in a state directory.
func openLocked(ctx context.Context, state string, lock *sqlite.SchemaLock) (*sqlite.Catalog, error) {
	path, err := filepath.Abs(filepath.Join(state, depotDir, catalogName))
	if err != nil {
		return nil, fmt.Errorf("open depot: %w", err)
	}
	cat, err := sqlite.Open(ctx, path, sqlite.Options{
		New:   func() error { return makePacks(ctx, state) },
		Older: lock.Alone,
	})
	if err != nil {
		return nil, fmt.Errorf("open depot: %w%s", err, stateAdvice(err))
	}
	return cat, nil
}

// makeDepot makes the directory of the depot in a state directory if it is not there, and returns it.
func makeDepot(state string) (string, error) {
	at := filepath.Join(state, depotDir)
	if err := os.MkdirAll(state, stateMode); err != nil {
		return "", fmt.Errorf("open depot: %w%s", err, stateAdvice(err))
	}
	if err := os.MkdirAll(at, depotMode); err != nil {
		return "", fmt.Errorf("open depot: %w%s", err, stateAdvice(err))
	}
	return at, nil
}

// openedDepot is a depot with all that it rests on.
type openedDepot struct {
	*depot.Depot
	catalog *sqlite.Catalog
	lock    *sqlite.SchemaLock // nil but for a server
}

// openDepot opens, or makes, the depot in a state directory, for a command that may run beside a server.
func openDepot(ctx context.Context, c *config.Config, log *slog.Logger) (*openedDepot, error) {
	cat, err := openCatalog(ctx, c.State)
	if err != nil {
		return nil, err
	}
	return openPacks(c, cat, log)
}

// serveDepot opens, or makes, the depot in a state directory, for a server.
func serveDepot(ctx context.Context, c *config.Config, log *slog.Logger) (_ *openedDepot, err error) {
	at, err := makeDepot(c.State)
	if err != nil {
		return nil, err
	}
	lock, err := sqlite.LockForServer(ctx, at, log)
	if err != nil {
		return nil, fmt.Errorf("open depot: %w%s", err, stateAdvice(err))
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if err := noBackup(c.State, log); err != nil {
		return nil, err
	}
	cat, err := openLocked(ctx, c.State, lock)
	if err != nil {
		return nil, err
	}
	if err := lock.Share(ctx); err != nil {
		return nil, errors.Join(err, cat.Close())
	}
	d, err := openPacks(c, cat, log)
	if err != nil {
		return nil, err
	}
	d.lock = lock
	return d, nil
}

// noBackup makes a backup a state directory, before it is opened. What is written to it from now on
// is in no other place, so no later backup may replace it, nor one that is being made.
func noBackup(state string, log *slog.Logger) error {
	b, err := holdBackup(state)
	if err != nil {
		return err
	}
	defer b.Close()
	return b.remove(log)
}

// A heldBackup is a state directory that may be a backup. firn backup does not write to it until it
// is closed.
type heldBackup struct {
	state  string
	marker *os.File // nil: it is no backup
}

// holdBackup keeps firn backup from a directory.
func holdBackup(state string) (*heldBackup, error) {
	marker, err := os.Open(filepath.Join(state, backup.Marker))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return &heldBackup{state: state}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("make a backup a state directory: %w%s", err, stateAdvice(err))
	}
	// firn backup has this lock for as long as it writes.
	if err := syscall.Flock(int(marker.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); errors.Is(err, syscall.EWOULDBLOCK) {
		marker.Close()
		return nil, fmt.Errorf("%s is a backup, and firn backup writes to it now: wait until that has ended", state)
	}
	return &heldBackup{state, marker}, nil
}

// remove removes the marker of a backup. It comes before the first change.
func (b *heldBackup) remove(log *slog.Logger) error {
	if b.marker == nil {
		return nil
	}
	err := os.Remove(filepath.Join(b.state, backup.Marker))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // another process was faster
	}
	if err != nil {
		return fmt.Errorf("make a backup a state directory: %w%s", err, stateAdvice(err))
	}
	log.Warn("this state directory was a backup, and is one no more: firn backup does not write to it", "state", b.state)
	return nil
}

// Close lets firn backup at the directory again, if that is still a backup.
func (b *heldBackup) Close() error {
	if b.marker == nil {
		return nil
	}
	return b.marker.Close()
}

// openPacks opens the packs that a catalog knows, and closes it if that fails.
func openPacks(c *config.Config, cat *sqlite.Catalog, log *slog.Logger) (*openedDepot, error) {
	blobs, err := dir.Open(filepath.Join(c.State, depotDir, packsName), dir.Options{})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open depot: %w%s", err, stateAdvice(err)), cat.Close())
	}
	opts := depot.Options{Level: int(c.DepotLevel), MaxNARSize: c.MaxNARSize.Bytes(), Spool: filepath.Join(c.State, depotDir), Logger: log}
	return &openedDepot{Depot: depot.New(cat, index.Of(cat), blobs, opts), catalog: cat}, nil
}

// Close closes the depot, and then its catalog.
func (d *openedDepot) Close() error {
	err := errors.Join(d.Depot.Close(), d.catalog.Close())
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	return err
}

// stateAdvice is what a person can do about err.
func stateAdvice(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "; run this as the user that the server runs as, or choose another state directory with --state"
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EROFS):
		return "; choose a state directory that can be written with --state"
	}
	return ""
}

// record is the record of one cache.
func record(ctx context.Context, cat catalog.Caches, name string) (*catalog.Cache, error) {
	r, err := registry.Find(ctx, cat, name)
	if errors.Is(err, cache.ErrNotFound) {
		return nil, fmt.Errorf("there is no cache named %s; firn cache list shows those that there are", name)
	}
	return r, err
}

// say tells a person in one line what was done. Scripts read standard output.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// confirm asks whether to do something that cannot be undone.
func confirm(what string, yes bool) error {
	if yes {
		return nil
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return fmt.Errorf("%s cannot be undone; say --yes if that is meant", what)
	}
	fmt.Fprintf(os.Stderr, "%s cannot be undone. Go on? [y/N] ", what)
	var answer string
	fmt.Scanln(&answer)
	if answer != "y" && answer != "yes" {
		return errors.New("nothing was changed")
	}
	return nil
}
