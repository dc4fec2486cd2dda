// Package session has a conversation in one of Nix's own protocols: of one client with one cache.
//
//	command, err := session.ParseCommand("nix-store --serve --write")
//	err = session.Serve(ctx, conn, command, session.Options{Name: "main", Cache: …, Who: …})
//
// Paths that are pushed go through the same verification and publication as those that come over HTTP.
// What was published before a connection breaks stays, and of the rest nothing does.
package session

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"firn/internal/cache"
	"firn/nix/protocol"
)

const (
	// quietTime is how long a client may say nothing between two questions before a server that ends takes that for a pause.
	quietTime = time.Second

	// stuckTime is how long it may say nothing in the middle of one.
	stuckTime = 30 * time.Second

	// lookInterval is how often a server that ends looks whether it can.
	lookInterval = 100 * time.Millisecond
)

// Serve has a conversation with a client until that ends it. Once ctx ends, it goes on until it can be broken off, and then closes conn.
// The text of an error is for the client.
func Serve(ctx context.Context, conn io.ReadWriteCloser, command Command, opts Options) error {
	opts.Logger = cmp.Or(opts.Logger, slog.New(slog.DiscardHandler))
	s := &store{Options: opts, hangUp: func() {
		if c, ok := conn.(interface{ CloseWithError(error) error }); ok {
			c.CloseWithError(errSlow)
		} else {
			conn.Close()
		}
	}}
	c, err := s.open(ctx, cache.Read)
	if err != nil {
		return s.tell(err)
	}
	s.dir = c.Info().StoreDir
	if opts.ToStore {
		if s.adder, err = c.FirstAdder(ctx); err != nil {
			return s.tell(err)
		}
	}
	heard := &heard{Reader: conn, Writer: conn, broke: &s.broke}
	heard.now()
	work, cancel := context.WithCancel(context.WithoutCancel(ctx)) // ending ctx ends the acceptance of questions, not the answers
	defer cancel()
	ended := make(chan struct{})
	defer close(ended)
	defer context.AfterFunc(ctx, func() {
		ticker := time.NewTicker(lookInterval)
		defer ticker.Stop()
		for {
			select {
			case <-ended:
				return
			case <-ticker.C:
			}
			if silent := heard.silent(); silent > stuckTime || silent > quietTime && s.busy.Load() == 0 {
				conn.Close()
				return
			}
		}
	})()

	options := protocol.Options{ReadOnly: command.ReadOnly, Version: opts.Version, Memory: opts.Memory}
	answers := protocol.Store{Paths: s, Pushes: s, Derivations: s}
	if command.Protocol == Legacy {
		err = protocol.ServeLegacy(work, heard, answers, options)
	} else {
		err = protocol.ServeWorker(work, heard, answers, options)
	}
	if err != nil { // what was read is kept, also of a client that has gone, unless that takes long
		defer time.AfterFunc(stuckTime, cancel).Stop()
	}
	return errors.Join(err, s.Settle(work)) // whose texts are for clients
}

// heard is a connection that knows when something was last sent in either direction, and says when it has broken.
type heard struct {
	io.Reader
	io.Writer
	last  atomic.Int64 // nanoseconds since 1970
	broke *atomic.Bool
}

func (h *heard) now() { h.last.Store(time.Now().UnixNano()) }

func (h *heard) silent() time.Duration { return time.Since(time.Unix(0, h.last.Load())) }

func (h *heard) Read(p []byte) (int, error) {
	n, err := h.Reader.Read(p)
	h.now()
	if err != nil && !errors.Is(err, io.EOF) {
		h.broke.Store(true)
	}
	return n, err
}

func (h *heard) Write(p []byte) (int, error) {
	n, err := h.Writer.Write(p)
	h.now()
	if err != nil {
		h.broke.Store(true)
	}
	return n, err
}
