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

// slot waits for a slot until a limit.
func (s *Server) slot(x *exchange, of *slots.Slots, limit time.Duration) (done func(), err error) {
	ctx, cancel := context.WithTimeout(x.r.Context(), limit)
	defer cancel()
	return of.Take(ctx, s.owners(x)...)
}

// owners are the names under which a request takes a slot: who makes it, where that is known, and from where.
func (s *Server) owners(x *exchange) (owners []string) {
	if name := x.who.Name(); name != "" {
		owners = append(owners, "principal "+name)
	}
	return append(owners, slots.Address(s.originOf(x.r).addr))
}
