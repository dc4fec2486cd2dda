package depot

import (
	"container/list"
	"context"
	"sync"
	"time"
)

// minRest is how long a loan has rested before it may be called in: a client that takes 64 KiB in less is not slow.
const minRest = 50 * time.Millisecond

// loans bound the memory that all have who decompress. Who waits for a client to take bytes has his loan rest:
// should others need the memory, the loan that has rested for the longest is called in, and its owner has to decompress once more.
// So slow clients keep nobody waiting, however many there are.
type loans struct {
	turn chan struct{} // held by the one who waits for memory; others wait for that

	mu      sync.Mutex
	free    int64
	resting list.List     // of *loan; the one that rests for the longest is in front
	changed chan struct{} // closed when there is more to be had; nil if nobody waits
}

// A loan is used by one goroutine.
type loan struct {
	of     *loans
	weight int64  // bytes; 0 when it was called in
	drop   func() // gives up what is in the memory
	at     *list.Element
	since  time.Time // when it began to rest
}

func newLoans(bytes int64) *loans { return &loans{turn: make(chan struct{}, 1), free: bytes} }

// take waits until there are so many bytes. drop is called by somebody else while the loan rests, if it is called in.
func (l *loans) take(ctx context.Context, weight int64, drop func()) (*loan, error) {
	o := &loan{of: l, drop: drop}
	return o, o.renew(ctx, weight)
}

// renew takes a loan again that was called in.
func (o *loan) renew(ctx context.Context, weight int64) error {
	l := o.of
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for {
		l.mu.Lock()
		wait := l.callIn(weight)
		if l.free >= weight {
			l.free -= weight
			o.weight = weight
			l.mu.Unlock()
			return nil
		}
		changed := make(chan struct{})
		l.changed = changed
		l.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		timer.Stop()
	}
}

// callIn frees memory of those who rest, as far as that is needed. If it is not enough, it is to be tried again after wait.
func (l *loans) callIn(weight int64) (wait time.Duration) {
	for l.free < weight && l.resting.Len() > 0 {
		o := l.resting.Front().Value.(*loan)
		if rested := time.Since(o.since); rested < minRest {
			return minRest - rested
		}
		l.resting.Remove(o.at)
		o.at = nil
		l.free += o.weight
		o.weight = 0
		o.drop()
	}
	return time.Hour // until something changes
}

// rest has the loan called in if need be, until resume.
func (o *loan) rest() {
	o.of.mu.Lock()
	defer o.of.mu.Unlock()
	o.since = time.Now()
	o.at = o.of.resting.PushBack(o)
	o.of.wake()
}

// resume ends a rest, and reports whether the loan is still there.
func (o *loan) resume() bool {
	o.of.mu.Lock()
	defer o.of.mu.Unlock()
	if o.at == nil {
		return false
	}
	o.of.resting.Remove(o.at)
	o.at = nil
	return true
}

// end gives the memory back. The loan must not rest.
func (o *loan) end() {
	o.of.mu.Lock()
	defer o.of.mu.Unlock()
	o.of.free += o.weight
	o.weight = 0
	o.of.wake()
}

func (l *loans) wake() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}
