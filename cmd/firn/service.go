package main

import (
	"context"
	"net"
	"strings"
	"sync"

	"firn/internal/listen"
	"firn/internal/server"
)

// open opens the addresses for endpoints of a kind, all or none; those of the settings do not count where the service manager
// has opened sockets for them.
func open(ctx context.Context, sockets listen.Sockets, kind string, addresses []listen.Address, opts listen.Options) ([]net.Listener, error) {
	if passed := sockets[kind]; len(passed) > 0 {
		return passed, nil
	}
	return listen.OpenAll(ctx, addresses, opts)
}

// A watched is what the service manager is told of.
type watched struct {
	manager   *listen.Manager
	endpoints []listen.Endpoint
}

// add adds the endpoints of a kind.
func (w *watched) add(kind string, listeners []net.Listener) {
	for _, l := range listeners {
		w.endpoints = append(w.endpoints, listen.Endpoint{Kind: kind, Addr: l.Addr()})
	}
}

// run tells the service manager that all endpoints answer, once and then as often as it wants to hear it, until ctx ends.
// Only then then is called, beside that, so that nothing else is told to be ready before.
func (w *watched) run(ctx context.Context, then func()) {
	w.manager.Ready(ctx, w.endpoints, w.status())
	var beside sync.WaitGroup
	beside.Go(then)
	w.manager.Watch(ctx)
	beside.Wait()
}

// status is what people see of a server that serves.
func (w *watched) status() string {
	places := make([]string, len(w.endpoints))
	for i, d := range w.endpoints {
		places[i] = d.String()
	}
	return "serving " + strings.Join(places, ", ")
}

// end tells it that an end has begun.
func (w *watched) end() {
	w.manager.Stopping("ending as soon as all answers are sent", server.GraceLimit)
}
