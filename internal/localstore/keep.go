package localstore

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"firn/internal/cache"
	"firn/nix"
	"firn/nix/protocol"
)

// Roots that last. Nix's garbage collector keeps what a symbolic link below <state>/gcroots leads
// to, and, for a link in <state>/gcroots/auto, what the link leads to that this one leads to. Where
// this process may write there, its links lie in a directory of their own below gcroots. Else they
// lie in a directory of its own, Options.Roots, and the Nix daemon makes the links to them.
const (
	// rootsID is the file in Options.Roots that tells the roots of several servers apart.
	rootsID = "id"

	// findTimeout bounds the search of the daemon for all roots, which reads something of every
	// process of the machine.
	findTimeout = time.Minute

	// lockTries is how often a lock that others have is tried for, and lockPause the time between:
	// each has it for some milliseconds.
	lockTries = 200
	lockPause = 10 * time.Millisecond
)

var (
	// errNoRoots is why nothing can be kept where Options name no directory.
	errNoRoots = errors.New("there is no directory for roots")
	// errUnseen is why nothing can be kept where the daemon runs in another container.
	errUnseen = errors.New("the Nix daemon does not find roots that lie in the directory of this process: it has other file systems")
)

// keeper makes and removes roots that last.
type keeper struct {
	own      string // Options.Roots
	stateDir string // of Nix
	daemon   *daemon

	mu    sync.Mutex
	links *links // nil: where the roots are is not known yet
	// effective are the roots that this process has made or made sure of, each by its link as it
	// was then: another process may have removed it since, and made another one.
	effective map[nix.StorePath]linkID

	holding sync.Mutex // held while held is locked or let go
	held    *hold      // nil: nothing is between Keep and its done
}

// hold is the lock that keeps every process from removing roots. All that is between Keep and its
// done shares one: a path may refer to thousands of others, and a lock takes a file.
type hold struct {
	dir   *os.File
	users int
}

// links is where the links of roots lie.
type links struct {
	dir      string
	indirect bool // the daemon has to be told of each
	// Whether the daemon finds them, once that is known.
	seen, unseen bool
}

// linkID tells a link from a later one of the same name.
type linkID struct {
	inode    uint64
	modified int64
}

func newKeeper(opts Options, d *daemon) *keeper {
	return &keeper{own: opts.Roots, stateDir: opts.StateDir, daemon: d, effective: map[nix.StorePath]linkID{}}
}

// Keep keeps a path of the store from being collected as garbage, with all that it refers to, from
// now on, until [Store.KeepOnly] does not name it. That does not happen before done is called, so
// the caller can record in between that it needs the path.
//
// cache.ErrNotFound if it is not there. cache.ErrUnavailable if that may work later. Any other
// error says that this process cannot keep anything.
func (s *Store) Keep(ctx context.Context, path nix.StorePath) (done func(), err error) {
	fail := func(err error) (func(), error) {
		if isTimeout(err) || ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", cache.ErrUnavailable, err)
		}
		return nil, fmt.Errorf("keep %s: %w", path, err)
	}
	l, err := s.keeper.place()
	if err != nil {
		return fail(err)
	}
	done, err = s.keeper.hold(l.dir)
	if err != nil {
		return fail(err)
	}
	if err := s.keep(ctx, l, path); err != nil {
		done()
		return fail(err)
	}
	return done, nil
}

// keep makes a root. The path is kept for certain when the root is there, then a collector that is
// running was told of the path, and then the path is found to be valid: a collector that begins
// after the root was made finds the root.
func (s *Store) keep(ctx context.Context, l *links, path nix.StorePath) error {
	known, err := s.keeper.make(ctx, l, path)
	if err != nil {
		return err
	}
	if !known {
		temporary, err := s.roots.open(ctx)
		if err != nil {
			return err
		}
		defer temporary.close()
		if err := temporary.add(ctx, path); err != nil {
			return err
		}
	}
	info, err := s.PathInfo(ctx, path.Hash())
	if err == nil && info.Path != path {
		err = missError{path.Hash()}
	}
	if err != nil || known {
		return err
	}
	return s.keeper.settle(l, path)
}

// KeepOnly ends the keeping of all paths but those that needed returns, and makes sure that these
// are kept, as far as they are there. needed is called while no other process is between Keep and
// its done; where there always is one, nothing ends.
func (s *Store) KeepOnly(ctx context.Context, needed func(ctx context.Context) ([]nix.StorePath, error)) error {
	paths, err := s.keepOnly(ctx, needed)
	if err != nil {
		return fmt.Errorf("keep store paths: %w", err)
	}
	for _, path := range paths {
		done, err := s.Keep(ctx, path)
		switch {
		case err == nil:
			done()
		case ctx.Err() != nil:
			return ctx.Err()
		case !errors.Is(err, cache.ErrNotFound):
			return err // and so would the others
		}
	}
	return nil
}

func (s *Store) keepOnly(ctx context.Context, needed func(context.Context) ([]nix.StorePath, error)) ([]nix.StorePath, error) {
	if _, err := os.Stat(s.keeper.own); err != nil {
		// Nothing was ever kept. Where nothing is needed either, nothing is made.
		if paths, err := needed(ctx); err != nil || len(paths) == 0 {
			return nil, err
		}
	}
	l, err := s.keeper.place()
	if err != nil {
		return nil, err
	}
	return s.drop(ctx, l, needed)
}

// drop removes the roots that are not needed.
func (s *Store) drop(ctx context.Context, l *links, needed func(context.Context) ([]nix.StorePath, error)) ([]nix.StorePath, error) {
	lock, err := lockDir(l.dir, syscall.LOCK_EX|syscall.LOCK_NB)
	for range lockTries {
		if !errors.Is(err, syscall.EWOULDBLOCK) || ctx.Err() != nil {
			break
		}
		time.Sleep(lockPause)
		lock, err = lockDir(l.dir, syscall.LOCK_EX|syscall.LOCK_NB)
	}
	if errors.Is(err, syscall.EWOULDBLOCK) && ctx.Err() == nil {
		return needed(ctx) // others keep paths all the time: what is not needed goes another time
	}
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	paths, err := needed(ctx)
	if err != nil {
		return nil, err
	}
	stay := make(map[string]bool, len(paths))
	for _, path := range paths {
		stay[path.Base()] = true
	}
	names, err := lock.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		path, err := s.storeDir.ParseBase(name)
		if err != nil || stay[name] {
			continue // the first is no root
		}
		if err := os.Remove(filepath.Join(l.dir, name)); err != nil {
			return nil, err
		}
		s.keeper.mu.Lock()
		delete(s.keeper.effective, path)
		s.keeper.mu.Unlock()
	}
	return paths, nil
}

// place finds out where the links lie.
func (k *keeper) place() (*links, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.links != nil {
		if _, err := os.Stat(k.links.dir); err == nil {
			return k.links, nil
		}
		k.links = nil // it was removed
	}
	if k.own == "" {
		return nil, errNoRoots
	}
	if err := os.MkdirAll(k.own, 0o755); err != nil {
		return nil, err
	}
	name, err := rootsName(k.own)
	if err != nil {
		return nil, err
	}
	l := &links{dir: filepath.Join(k.stateDir, "gcroots", name)}
	if err := os.Mkdir(l.dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) || syscall.Access(l.dir, 2 /* W_OK */) != nil {
		l = &links{dir: k.own, indirect: true}
	}
	if err := syncDir(filepath.Dir(l.dir)); err != nil && !l.indirect {
		return nil, err
	}
	k.links = l
	return l, nil
}

// rootsName returns the name of the directory with the roots of a server. It is another one for
// every state directory, also for one that is a copy and for one of the same name in another
// container: else one server would remove what the other needs.
func rootsName(dir string) (string, error) {
	path := filepath.Join(dir, rootsID)
	id, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		id, err = makeID(dir, path)
	}
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(append([]byte(dir+"\x00"), id...))
	return "firn-" + hex.EncodeToString(sum[:12]), nil
}

// makeID makes the file, unless another process does it first, and returns what is in it.
func makeID(dir, path string) ([]byte, error) {
	f, err := os.CreateTemp(dir, "new-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(rand.Text())
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Link(f.Name(), path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return os.ReadFile(path)
}

// make makes the link of a root durable and tells the daemon of it where that is needed. known says
// that the root was effective before.
func (k *keeper) make(ctx context.Context, l *links, path nix.StorePath) (known bool, err error) {
	link := filepath.Join(l.dir, path.Base())
	id, err := k.linkTo(link, path.String())
	if err != nil {
		return false, err
	}
	k.mu.Lock()
	known = k.effective[path] == id
	k.mu.Unlock()
	if known {
		return true, nil
	}
	if err := syncDir(l.dir); err != nil {
		return false, err
	}
	if !l.indirect {
		return false, nil
	}
	k.mu.Lock()
	unseen := l.unseen
	k.mu.Unlock()
	if unseen {
		return false, errUnseen
	}
	if err := k.daemon.do(ctx, func(c *protocol.WorkerClient) error { return c.AddIndirectRoot(link) }); err != nil {
		return false, err
	}
	// The link that the daemon has made should outlast a loss of power. What cannot be read is made
	// again at the next start.
	_ = syncDir(filepath.Join(k.stateDir, "gcroots/auto"))
	return false, k.find(ctx, l, link)
}

// linkTo makes a symbolic link, in the place of another one to something else.
func (k *keeper) linkTo(link, target string) (linkID, error) {
	err := os.Symlink(target, link)
	if errors.Is(err, fs.ErrExist) {
		var there string
		if there, err = os.Readlink(link); err == nil && there != target { // from when another store was served
			err = errors.Join(os.Remove(link), os.Symlink(target, link))
		}
	}
	if err != nil {
		return linkID{}, err
	}
	return idOf(link)
}

func idOf(link string) (linkID, error) {
	info, err := os.Lstat(link)
	if err != nil {
		return linkID{}, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return linkID{}, fmt.Errorf("stat %s: there is no inode", link)
	}
	return linkID{uint64(stat.Ino), info.ModTime().UnixNano()}, nil
}

// find makes sure, once, that the daemon finds a root where it was told of one: it may run in
// another container, where there is another directory of the same name, or none.
func (k *keeper) find(ctx context.Context, l *links, link string) error {
	k.mu.Lock()
	seen := l.seen
	k.mu.Unlock()
	if seen {
		return nil
	}
	found, err := k.daemon.findsRoot(ctx, link)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	l.seen, l.unseen = found, !found
	if !found {
		return errUnseen
	}
	return nil
}

// settle records that the root of a path is effective.
func (k *keeper) settle(l *links, path nix.StorePath) error {
	id, err := idOf(filepath.Join(l.dir, path.Base()))
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.effective[path] = id
	return nil
}

// hold has no process remove roots from a directory until done is called.
func (k *keeper) hold(dir string) (done func(), err error) {
	k.holding.Lock()
	defer k.holding.Unlock()
	h := k.held
	if h == nil || !h.is(dir) {
		lock, err := lockDir(dir, syscall.LOCK_SH)
		if err != nil {
			return nil, err
		}
		h = &hold{dir: lock}
		k.held = h
	}
	h.users++
	return func() {
		k.holding.Lock()
		defer k.holding.Unlock()
		if h.users--; h.users > 0 {
			return
		}
		h.dir.Close()
		if k.held == h {
			k.held = nil
		}
	}, nil
}

// is reports whether the locked directory is the one at a path now: that may have been removed, and
// another one made.
func (h *hold) is(path string) bool {
	there, err := os.Stat(path)
	if err != nil {
		return false
	}
	locked, err := h.dir.Stat()
	return err == nil && os.SameFile(there, locked)
}

// lockDir locks a directory, for as long as it is open.
func lockDir(dir string, how int) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := flock(f, how); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
