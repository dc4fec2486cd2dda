package sshd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	// commandLimit is how long a session may take to say what it wants, and maxRequests how much it may say before.
	commandLimit = time.Minute
	maxRequests  = 100

	exitFailure = 1
)

// noShell is for those who came with nothing but ssh.
const noShell = "hello: this is a Nix cache, and there is no shell. Use it with nix copy --to, or --from, ssh://%s@HOST or ssh-ng://%[1]s@HOST"

// serveSession answers the one command of a session.
func (s *Server) serveSession(ctx, work context.Context, l *Login, n ssh.NewChannel, backlog *backlog, log *slog.Logger) {
	accepted, requests, err := n.Accept()
	if err != nil {
		return
	}
	running, ended := context.WithCancel(context.Background())
	defer ended()
	ch := newChannel(accepted, func() {
		if running.Err() == nil {
			l.hangUp()
		}
	})
	var rest sync.WaitGroup
	defer rest.Wait()
	// Both are read until the client has closed the channel as well: else it would wait, and so might
	// what is behind it.
	rest.Go(func() { _, _ = io.Copy(io.Discard, ch.Stderr()) })
	rest.Go(func() { ch.pump(backlog) })
	defer ch.in.Close()
	defer ch.Channel.Close()
	command, ok := wanted(ctx, requests, l)
	here, gone := context.WithCancel(ctx)
	defer gone()
	// The client may go on asking, as for a change of its window, and is refused.
	rest.Go(func() {
		defer gone()
		ssh.DiscardRequests(requests)
	})
	if !ok {
		return
	}
	err = command.run(func(line string) error {
		log := log.With("command", line)
		log.Debug("session begins")
		start := time.Now()
		done, err := s.sessions.Take(here, l.owners...)
		if err != nil {
			return errEnding
		}
		defer done()
		s.counts.inFlight.Add(1)
		defer s.counts.inFlight.Add(-1)
		defer context.AfterFunc(work, func() { ch.Close() })()
		err = s.answer(ctx, l, line, ch)
		ended()
		log.Debug("session ends", "duration", time.Since(start), "error", err)
		return err
	})
	status := struct{ Status uint32 }{}
	if err == nil {
		s.counts.ended.Add(1)
	} else {
		s.counts.endedInError.Add(1)
		fmt.Fprintf(ch.Stderr(), "firn: %s\n", err)
		status.Status = exitFailure
	}
	ch.CloseWrite()
	ch.SendRequest("exit-status", false, ssh.Marshal(&status))
}

// goodbyeLimit is how long saying goodbye may take.
const goodbyeLimit = time.Second

// Close is CloseWithError for a server that ends.
func (c *channel) Close() error { return c.CloseWithError(errEnding) }

var errEnding = errors.New("the server is ending")

// CloseWithError ends all reading and writing, as soon as the client has heard of it, and says why.
// A client that does not answer to that loses the connection: nothing else ends what is being read from it.
func (c *channel) CloseWithError(reason error) error {
	time.AfterFunc(goodbyeLimit, c.cut)
	defer time.AfterFunc(goodbyeLimit, func() { c.Channel.Close() }).Stop() // of a client that does not read
	fmt.Fprintf(c.Stderr(), "firn: %s\n", reason)
	return c.Channel.Close()
}

// A command is what a client wants to run.
type command struct {
	line  string
	shell string // what is said instead, of one who wants a shell
}

func (c *command) run(answer func(line string) error) error {
	if c.shell != "" {
		return fmt.Errorf("%s", c.shell)
	}
	return answer(c.line)
}

// wanted waits until a client says what it wants; ok is false if it does not.
func wanted(ctx context.Context, requests <-chan *ssh.Request, l *Login) (c *command, ok bool) {
	timer := time.NewTimer(commandLimit)
	defer timer.Stop()
	for range maxRequests {
		var r *ssh.Request
		select {
		case r = <-requests:
		case <-timer.C:
		case <-ctx.Done():
		}
		if r == nil {
			return nil, false
		}
		switch r.Type {
		case "exec":
			var payload struct{ Command string }
			if err := ssh.Unmarshal(r.Payload, &payload); err == nil {
				r.Reply(true, nil)
				return &command{line: payload.Command}, true
			}
		case "shell":
			r.Reply(true, nil) // to be told why not
			return &command{shell: fmt.Sprintf(noShell, l.User)}, true
		}
		r.Reply(false, nil)
	}
	return nil, false
}
