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

// turn waits until there is a slot for an upload. done gives it back.
func (s *Server) turn(x *exchange, of *fairlimit.Slots) (done func(), err error) {
	return s.turnN(x, of, 1)
}

// turnN is turn for n slots, or bytes.
func (s *Server) turnN(x *exchange, of *fairlimit.Slots, n int) (done func(), err error) {
	done, err = s.wait(x, of, n)
	if err != nil {
		return nil, fmt.Errorf("%w: too many uploads at once: %w", cache.ErrUnavailable, err)
	}
	return done, nil
}

// decoding returns the limits of what decodes an upload. Its memory is shared by owner, as the
// slots of uploads are.
func (s *Server) decoding(x *exchange) *decompress.Limits {
	return decompress.NewLimits(decompress.Options{Lend: func(_ context.Context, bytes int64) (func(), error) {
		done, err := s.wait(x, s.memory, int(bytes))
		if errors.Is(err, context.DeadlineExceeded) {
			err = cache.Refuse(cache.ErrUnavailable, "decompressing this takes %d MiB of memory, and other uploads leave too little for it: "+
				"try again later, or compress at a lower level", (bytes+1<<20-1)>>20)
		}
		return done, err
	}})
}

// wait waits until n of something are free for an upload, which waits no longer than turnLimit in
// all.
func (s *Server) wait(x *exchange, of *fairlimit.Slots, n int) (done func(), err error) {
	start := time.Now()
	defer func() { x.waited += time.Since(start) }()
	return s.slot(x, of, n, turnLimit-x.waited)
}

// errQueue refuses a request whose owner has enough of them that wait.
var errQueue = fmt.Errorf("%w: too many of this client wait already", cache.ErrUnavailable)

// slot waits for n slots until a limit, or until the client goes away. How many wait is bounded as
// well, and shared in the same way: each of them keeps a connection, or a part of one. What waits
// for memory has a place among the uploads already.
func (s *Server) slot(x *exchange, of *fairlimit.Slots, n int, limit time.Duration) (done func(), err error) {
	owners := s.owners(x)
	if done, ok := of.TryTakeN(n, owners...); ok {
		return done, nil
	}
	if of != s.memory {
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

// owners are the names under which a request takes a slot: who makes it, where that is known, and from where.
func (s *Server) owners(x *exchange) (owners []string) {
	if name := x.who.Name(); name != "" {
		owners = append(owners, "principal "+name)
	}
	return append(owners, fairlimit.Address(s.originOf(x.r).addr))
}

// reading waits until one more NAR or log may be sent. done gives its place back.
func (s *Server) reading(x *exchange) (done func(), err error) {
	done, err = s.slot(x, s.readers, 1, readLimit)
	if err != nil {
		return nil, fmt.Errorf("%w: too much is being sent: %w", cache.ErrUnavailable, err)
	}
	return done, nil
}
