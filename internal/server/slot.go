package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"firn/internal/cache"
	"firn/internal/decompress"
	"firn/internal/fairlimit"
	"firn/internal/server/connlimit"
)

// uploadSlot waits until there is a slot, or n bytes of memory, for an upload. done gives it back.
func (s *Server) uploadSlot(x *exchange, of *fairlimit.Slots, n int) (done func(), err error) {
	done, err = s.wait(x, of, n, waitLimit-x.waited)
	if err != nil {
		return nil, fmt.Errorf("%w: too many uploads at once: %w", cache.ErrUnavailable, err)
	}
	return done, nil
}

// decoding returns the limits of the decoder of an upload, of which the memory is shared by owner, as
// the slots of uploads are: that of NARs and logs, or that of texts, which is apart so that a small
// narinfo does not wait for NARs.
//
// While x.holdsText, the decoder is refused more memory than there is now, and does not wait: uploads
// that hold one kind of memory and wait for the other would wait for each other.
func (s *Server) decoding(x *exchange, memory *fairlimit.Slots, most int64) *decompress.Limits {
	return decompress.NewLimits(decompress.Options{Most: most, Lend: func(_ context.Context, bytes int64) (func(), error) {
		limit := waitLimit - x.waited
		if x.holdsText {
			limit = 0
		}
		done, err := s.wait(x, memory, int(bytes), limit)
		if errors.Is(err, context.DeadlineExceeded) {
			err = cache.Refuse(cache.ErrUnavailable, "decompressing this takes %d MiB of memory, and other uploads leave too little for it: "+
				"try again later, or compress at a lower level", (bytes+1<<20-1)>>20)
		}
		return done, err
	}})
}

// wait waits until n of something are free for an upload, and counts the time: all waits of an upload
// together take no longer than waitLimit.
func (s *Server) wait(x *exchange, of *fairlimit.Slots, n int, limit time.Duration) (done func(), err error) {
	start := time.Now()
	defer func() { x.waited += time.Since(start) }()
	return s.slot(x, of, n, limit)
}

// errQueue refuses a request whose owner has enough of them that wait.
var errQueue = fmt.Errorf("%w: too many of this client wait already", cache.ErrUnavailable)

// slot waits for n slots until a limit, or until the client goes away. The number of requests that
// wait is bounded as well, and shared in the same way: each of them keeps a connection, or a part of
// one. An upload that waits for memory of decoders counts as an upload already.
func (s *Server) slot(x *exchange, of *fairlimit.Slots, n int, limit time.Duration) (done func(), err error) {
	owners := s.owners(x)
	if done, ok := of.TryTakeN(n, owners...); ok {
		return done, nil
	}
	if of != s.memory && of != s.textDecoders {
		leave, ok := s.waiting.TryTake(owners...)
		if !ok {
			return nil, errQueue
		}
		defer leave()
	}
	ctx, cancel := context.WithTimeout(x.r.Context(), limit)
	defer cancel()
	if c, ok := connlimit.Of(ctx); ok && x.hasBody() && x.r.ProtoMajor == 1 {
		var end context.CancelCauseFunc
		ctx, end = context.WithCancelCause(ctx)
		defer end(nil)
		defer c.Watch(func() { end(errGone) })()
	}
	return of.TakeN(ctx, n, owners...)
}

// owners returns the names under which a request takes a slot: of the principal, where that is known,
// and of the address.
func (s *Server) owners(x *exchange) (owners []string) {
	if name := x.who.Name(); name != "" {
		owners = append(owners, "principal "+name)
	}
	return append(owners, fairlimit.Address(s.originOf(x.r).addr))
}

// readSlot waits until one more NAR or log may be sent. done gives the slot back.
func (s *Server) readSlot(x *exchange) (done func(), err error) {
	done, err = s.slot(x, s.readers, 1, readLimit)
	if err != nil {
		return nil, fmt.Errorf("%w: too much is being sent: %w", cache.ErrUnavailable, err)
	}
	return done, nil
}
