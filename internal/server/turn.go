package server

import (
	"context"
	"fmt"
	"time"

	"firn/internal/cache"
	"firn/internal/slots"
)

// turn waits until there is a slot for an upload. done gives it back.
func (s *Server) turn(x *exchange, of *slots.Slots) (done func(), err error) {
	done, err = s.slot(x, of, turnLimit)
	if err != nil {
		return nil, fmt.Errorf("%w: too many uploads at once: %w", cache.ErrUnavailable, err)
	}
	return done, nil
}

// slot waits for a slot until a limit, or until the client goes away.
func (s *Server) slot(x *exchange, of *slots.Slots, limit time.Duration) (done func(), err error) {
	owners := s.owners(x)
	if done, ok := of.TryTake(owners...); ok {
		return done, nil
	}
	ctx, cancel := context.WithTimeout(x.r.Context(), limit)
	defer cancel()
	if l, ok := ctx.Value(linkKey{}).(*link); ok && x.hasBody() && x.r.ProtoMajor == 1 {
		var leave context.CancelCauseFunc
		ctx, leave = context.WithCancelCause(ctx)
		defer leave(nil)
		defer l.watch(func() { leave(errGone) })()
	}
	return of.Take(ctx, owners...)
}

// owners are the names under which a request takes a slot: who makes it, where that is known, and from where.
func (s *Server) owners(x *exchange) (owners []string) {
	if name := x.who.Name(); name != "" {
		owners = append(owners, "principal "+name)
	}
	return append(owners, slots.Address(s.originOf(x.r).addr))
}
