package session

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"firn/internal/cache"
	"firn/nix"
)

// maxUnsettled is how many NARs of one conversation are kept at once: the last bytes of some are compressed and made durable
// while the next one comes in. Several that are made durable at once share the time of the disk.
const maxUnsettled = 16

const (
	// maxBehind is how many larger NARs of all conversations may be kept while the next ones are read: each takes some megabytes until then,
	// so that conversations do not multiply what they have at once.
	maxBehind = 4
	// smallNAR is up to how many bytes a NAR takes so little that it does not count.
	smallNAR = 64 << 10
)

// How slowly a client may send a NAR or log while it has a turn: slice bytes in patience, which is how long Nix itself waits for a server that says nothing.
// It may have to get the NAR from somewhere first.
const (
	slice    = 1 << 20 // bytes
	patience = 5 * time.Minute
)

var errSlow = cache.Refuse(cache.ErrUnavailable, "less than %d bytes of a NAR or log came in %s: too slow, as others wait for a slot", slice, patience)

// Behind bounds the memory of conversations that share it.
type Behind struct{ turns chan struct{} }

// NewBehind returns a Behind for all conversations of a process.
func NewBehind() *Behind { return &Behind{make(chan struct{}, maxBehind)} }

// wait waits until a NAR that was read is settled, or the next may be read at the same time.
func (b *Behind) wait(size int64, settled <-chan struct{}) {
	switch {
	case size <= smallNAR:
	case b == nil:
		<-settled
	default:
		select {
		case <-settled:
		case b.turns <- struct{}{}:
			go func() {
				<-settled
				<-b.turns
			}()
		}
	}
}

// pushes are the paths of a conversation that were read, and are not published yet.
type pushes struct {
	mu     sync.Mutex
	paths  map[nix.StorePath]*push
	failed error // the first that did
}

// A push is one path on its way in.
type push struct {
	settled chan struct{} // closed when it is published, or has failed
}

// ReadNAR reads a NAR, and returns when it is read: it is published by and by, after those that were read before it and to which it refers.
// Settle says whether it was.
func (s *store) ReadNAR(ctx context.Context, info *nix.PathInfo, r io.Reader) error {
	c, done, err := s.begin(ctx, opReceiveNAR, cache.Push)
	if err != nil {
		return err
	}
	p, before, err := s.push.add(info)
	if err != nil {
		done()
		return err
	}
	if info.NARSize >= smallNAR {
		var end func()
		if r, end, err = s.turn(ctx, r); err != nil {
			done()
			s.push.settle(info.Path, p, nil)
			return s.tell(err)
		}
		defer end() // once it is read
	}
	ended := &ending{r: r, ended: make(chan struct{})}
	go func() {
		defer done()
		err := s.tell(s.keep(ctx, c, info, ended, before))
		s.Pushes.Read(ended.n.Load())
		if err != nil { // which may be told when another path is being sent
			s.Pushes.Failed()
			err = fmt.Errorf("%s: %w", info.Path, err)
		}
		if ended.end(err) { // before it was read: that is what reading it comes to
			err = nil
		}
		s.push.settle(info.Path, p, err)
	}()
	<-ended.ended
	if size := (&nix.NARInfo{PathInfo: *info}).TextSize(); size > cache.LargeInfo {
		<-p.settled // until then the client has the room that it took for this
	}
	s.Behind.wait(info.NARSize, p.settled)
	return ended.err
}

// turn waits for a turn to read what takes memory, and returns r, which must not dawdle from then on. end ends the turn.
func (s *store) turn(ctx context.Context, r io.Reader) (_ io.Reader, end func(), err error) {
	if s.Slot == nil {
		return r, func() {}, nil
	}
	if end, err = s.Slot(ctx); err != nil {
		return nil, nil, fmt.Errorf("wait for a slot: %w: %w", cache.ErrUnavailable, err)
	}
	return &paced{r: r, slow: s.hangUp}, end, nil
}

// Settle waits until all that was read is published, or has failed, and returns the first failure since it was last asked.
// It does not end with its context: what is being kept ends with its own.
func (s *store) Settle(context.Context) error {
	p := &s.push
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.paths) > 0 {
		var next *push
		for _, next = range p.paths {
			break
		}
		p.mu.Unlock()
		<-next.settled
		p.mu.Lock()
	}
	err := p.failed
	p.failed = nil
	return err
}

// keep receives a NAR and publishes it after those that were read before it and to which it refers.
func (s *store) keep(ctx context.Context, c *cache.Cache, info *nix.PathInfo, r io.Reader, before []*push) error {
	ctx = cache.WithPublisher(ctx, s.By)
	if s.adder != nil {
		err := s.adder.AddNAR(ctx, info, s.vouched(ctx, r))
		if err == nil {
			s.Pushes.Received()
			s.Pushes.Published()
		}
		return err
	}
	received, err := c.Receive(ctx, cache.Upload{NAR: r, NARHash: info.NARHash, NARSize: info.NARSize})
	if err != nil {
		return err
	}
	s.Pushes.Received()
	for _, b := range before {
		<-b.settled
	}
	// It may have taken hours to come in: what counts is what the client may do now, and how the cache is now.
	if c, err = s.open(ctx, cache.Push); err != nil {
		return err
	}
	added, err := c.Publish(ctx, info, received)
	if added {
		s.Pushes.Published()
		s.Logger.Debug("published", "path", info.Path.String(), "cache", c.Name())
	}
	return err
}

// vouched is a reader that fails in place of its end if the client may not push any more by then.
func (s *store) vouched(ctx context.Context, r io.Reader) io.Reader {
	return io.MultiReader(r, &check{func() error {
		_, err := s.open(ctx, cache.Push)
		return err
	}})
}

// A check is a reader of nothing, whose end may be an error.
type check struct{ end func() error }

func (c *check) Read([]byte) (int, error) { return 0, cmp.Or(c.end(), io.EOF) }

// add adds a path that is being read, and returns those that it has to wait for. It waits until there are few enough.
func (p *pushes) add(info *nix.PathInfo) (own *push, before []*push, err error) {
	for {
		p.mu.Lock()
		other := p.paths[info.Path] // twice the same waits for itself
		if other == nil && len(p.paths) >= maxUnsettled {
			for _, other = range p.paths {
				break
			}
		}
		if other == nil {
			break
		}
		p.mu.Unlock()
		<-other.settled
	}
	defer p.mu.Unlock()
	if p.failed != nil {
		err, p.failed = p.failed, nil
		return nil, nil, err // before more is sent in vain
	}
	for _, ref := range info.References {
		if b := p.paths[ref]; b != nil {
			before = append(before, b)
		}
	}
	if p.paths == nil {
		p.paths = map[nix.StorePath]*push{}
	}
	own = &push{settled: make(chan struct{})}
	p.paths[info.Path] = own
	return own, before, nil
}

func (p *pushes) settle(path nix.StorePath, own *push, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.paths, path)
	if p.failed == nil {
		p.failed = err
	}
	close(own.settled)
}

// A paced is a reader that calls slow when it has waited for too long. What else happens between two reads is not the client's fault.
type paced struct {
	r    io.Reader
	slow func()

	n, next int64         // bytes that were read; with how many the client gets new time
	left    time.Duration // of its time
	late    atomic.Bool
}

func (p *paced) Read(b []byte) (int, error) {
	if p.n >= p.next {
		p.next, p.left = p.n+slice, patience
	}
	begun := time.Now()
	timer := time.AfterFunc(p.left, func() {
		p.late.Store(true)
		p.slow()
	})
	n, err := p.r.Read(b)
	timer.Stop()
	p.left -= time.Since(begun)
	p.n += int64(n)
	if p.late.Load() {
		return 0, errSlow
	}
	return n, err
}

// An ending is a reader that tells when it has ended.
type ending struct {
	r     io.Reader
	n     atomic.Int64 // bytes that were read
	once  sync.Once
	ended chan struct{}
	err   error // nil: all was read
}

func (e *ending) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	e.n.Add(int64(n))
	if errors.Is(err, io.EOF) {
		e.end(nil)
	}
	return n, err
}

// end says that nothing is read any more. Only the first time counts, which is told.
func (e *ending) end(err error) (first bool) {
	e.once.Do(func() {
		first = true
		e.err = err
		close(e.ended)
	})
	return first
}
