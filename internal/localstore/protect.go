package localstore

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"firn/nix"
	"firn/nix/protocol"
)

// epochLife is how long sends that begin share one set of roots. Nix has no way to take back a single root, so
// a set lives until the last of its sends has ended: the shorter an epoch, the less a slow client keeps from
// being collected; the longer, the fewer files and connections there are.
const epochLife = 30 * time.Second

// maxEpochs bounds the epochs that slow clients keep from ending: each has two open files, or a process of the daemon.
// With so many, the current one goes on until one of the others has ended.
const maxEpochs = 64

// protector keeps store paths from being collected as garbage while they are sent.
type protector struct {
	stateDir string
	daemon   *daemon
	log      *slog.Logger

	mu      sync.Mutex
	current *epoch // nil: none has begun
	epochs  int    // that are not finished
	warned  bool   // that paths cannot be protected
}

func newProtector(stateDir string, d *daemon, log *slog.Logger) *protector {
	return &protector{stateDir: stateDir, daemon: d, log: log}
}

// rootSet is where the roots of an epoch are recorded: a file of our own, or a connection to the daemon.
type rootSet interface {
	add(ctx context.Context, path nix.StorePath) error
	clear() error // forgets all roots; errKeepsRoots if it cannot but by closing
	close()
}

// errKeepsRoots says that a rootSet has to be closed for its roots to be forgotten.
var errKeepsRoots = errors.New("roots are kept until it is closed")

// epoch is the sends that share one set of roots.
type epoch struct {
	timer *time.Timer

	// adding is held while a root is recorded, which takes long when a collector has to be told.
	// It is taken before protector.mu.
	adding sync.Mutex
	roots  rootSet // nil: not opened yet
	failed error   // why nothing more is recorded

	// The rest is guarded by protector.mu.
	sends int
	paths map[nix.StorePath]bool // recorded in roots
	over  bool                   // no send begins in it any more
}

// protect keeps path from being collected until release is called. The caller then makes sure that the path is still valid.
// Where that cannot be done, it is logged, and release does nothing: a path that is collected
// while it is sent ends in a connection that is cut.
func (p *protector) protect(ctx context.Context, path nix.StorePath) (release func()) {
	e, recorded := p.begin(path)
	if !recorded {
		err := p.record(ctx, e, path)
		if isClosed(err) && ctx.Err() == nil {
			// The roots were kept by a daemon that is gone. There may be another by now.
			p.release(e)
			e, _ = p.begin(path)
			err = p.record(ctx, e, path)
		}
		if err != nil && ctx.Err() == nil {
			p.warn(err)
		}
	}
	return sync.OnceFunc(func() { p.release(e) })
}

// begin begins a send in the current epoch, and reports whether path is recorded there.
func (p *protector) begin(path nix.StorePath) (e *epoch, recorded bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == nil {
		e := &epoch{paths: map[nix.StorePath]bool{}}
		e.timer = time.AfterFunc(epochLife, func() { p.expire(e) })
		p.current = e
		p.epochs++
	}
	p.current.sends++
	return p.current, p.current.paths[path]
}

// record records a root in e.
func (p *protector) record(ctx context.Context, e *epoch, path nix.StorePath) error {
	e.adding.Lock()
	defer e.adding.Unlock()
	p.mu.Lock()
	recorded := e.paths[path] // by another send, while this one waited
	p.mu.Unlock()
	if recorded {
		return nil
	}
	if e.failed != nil { // a caller that waited for a collector that does not answer must not wait again
		return e.failed
	}
	if e.roots == nil {
		roots, err := p.open(ctx)
		if err != nil {
			return err
		}
		e.roots = roots
	}
	if err := e.roots.add(ctx, path); err != nil {
		if !errors.Is(err, context.Canceled) { // that is of the caller alone, and was before anything was recorded
			// Whatever became of it, nothing more is recorded there; what was, stays until its sends end.
			e.failed = err
			p.end(e)
		}
		return err
	}
	p.mu.Lock()
	e.paths[path] = true
	p.mu.Unlock()
	return nil
}

// open opens a set of roots in the way that this process may: as Nix itself does, or else through the daemon.
func (p *protector) open(ctx context.Context) (rootSet, error) {
	file, err := newRootsFile(p.stateDir)
	if err == nil {
		return file, nil
	}
	c, derr := p.daemon.dial(ctx)
	if derr != nil {
		return nil, errors.Join(err, derr)
	}
	return daemonRoots{c}, nil
}

// daemonRoots are roots that the daemon records for the life of a connection.
type daemonRoots struct{ conn *daemonConn }

// add does not end with ctx: an exchange that is broken off would end the protection of other sends, too.
func (r daemonRoots) add(ctx context.Context, path nix.StorePath) error {
	return r.conn.exchange(context.WithoutCancel(ctx), func(c *protocol.WorkerClient) error { return c.AddTempRoot(path) })
}
func (r daemonRoots) clear() error { return errKeepsRoots }
func (r daemonRoots) close()       { r.conn.Close() }

// release ends one send of e.
func (p *protector) release(e *epoch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.sends--
	if e.sends > 0 {
		return
	}
	// No caller is adding a root, as that would be a send.
	if e.over {
		p.finish(e)
		return
	}
	if e.roots == nil {
		return
	}
	if err := e.roots.clear(); err == nil {
		clear(e.paths)
	}
}

// expire ends e once its time is over.
func (p *protector) expire(e *epoch) {
	p.mu.Lock()
	crowded := !e.over && e.sends > 0 && p.epochs >= maxEpochs
	if crowded {
		e.timer.Reset(epochLife)
	}
	p.mu.Unlock()
	if !crowded {
		p.end(e)
	}
}

// end ends the time in which sends begin in e.
func (p *protector) end(e *epoch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == e {
		p.current = nil
	}
	if !e.over {
		e.over = true
		e.timer.Stop()
		if e.sends == 0 {
			p.finish(e)
		}
	}
}

// finish lets the garbage collector have everything. protector.mu is held, and no send is left.
func (p *protector) finish(e *epoch) {
	p.epochs--
	if e.roots != nil {
		e.roots.close()
		e.roots = nil
	}
}

// close ends the protection of everything.
func (p *protector) close() {
	p.mu.Lock()
	e := p.current
	p.mu.Unlock()
	if e != nil {
		p.end(e)
	}
}

// sweep removes what a process of ours that has died left behind.
func (p *protector) sweep() {
	if err := sweepRoots(p.stateDir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		p.log.Warn("temporary roots of an earlier process were not removed", "error", err)
	}
}

// warn says once that paths are not protected.
func (p *protector) warn(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.warned {
		p.warned = true
		p.log.Warn("store paths are not kept from being collected as garbage while they are sent", "error", err)
	}
}
