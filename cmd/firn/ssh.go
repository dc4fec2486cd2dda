package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"

	"firn/internal/access"
	"firn/internal/audit"
	"firn/internal/cache"
	"firn/internal/fairlimit"
	"firn/internal/listen"
	"firn/internal/session"
	"firn/internal/sshd"
)

// sshDir is where the host keys are in the state directory.
const sshDir = "ssh"

// sshReads is how many NARs of some size are read at once over SSH, half of them of one key or from one address: as many as over HTTP.
// The depot allows both together.
const sshReads = 32

// sshMemory is the memory for SSH requests in MiB, shared by all sessions, not counting each session's first MiB. One key or one
// address gets at most half of it. A question about a million paths, as of nix copy --all, takes some 150.
const sshMemory = 320

// An sshServer is the server for SSH, with what is counted behind it.
type sshServer struct {
	*sshd.Server
	operations *session.Operations
}

// openSSHServer makes the server for SSH, and opens its addresses. It is nil if there are none.
func (c *serveCommand) openSSHServer(ctx context.Context, sockets listen.Sockets, all cache.Registry, who *access.Access, audited *audit.Log, log *slog.Logger, a *banner) (*sshServer, []net.Listener, error) {
	if len(c.SSH) == 0 && len(sockets[listen.SSH]) == 0 {
		return nil, nil, nil
	}
	listeners, err := open(ctx, sockets, listen.SSH, c.SSH, listen.Options{})
	if err != nil {
		return nil, nil, fmt.Errorf("ssh: %w", err)
	}
	keys, err := sshd.HostKeys(filepath.Join(c.State, sshDir), log)
	if err != nil {
		listen.CloseAll(listeners)
		return nil, nil, fmt.Errorf("%w%s", err, stateAdvice(err))
	}
	behind, operations := session.NewBehind(), &session.Operations{}
	reads, memory := fairlimit.New(sshReads), fairlimit.New(sshMemory)
	answer := func(ctx context.Context, l *sshd.Login, line string, conn io.ReadWriteCloser) error {
		command, err := session.ParseCommand(line)
		if err != nil {
			return err
		}
		by := "" // of a key that was revoked just now, which the session tells the client
		if who, err := l.Who(ctx); err == nil {
			by = who.Name()
		}
		client := audit.Client{FrontEnd: audit.SSH, Remote: l.Remote, Name: by, Cache: l.User}
		pushes := audited.Begin(client)
		defer pushes.End()
		return session.Serve(ctx, conn, command, session.Options{
			Name:       l.User,
			Cache:      func(ctx context.Context) (*cache.Cache, error) { return all.ByName(ctx, l.User) },
			Who:        l.Who,
			ToStore:    c.SSHStore,
			Version:    "firn " + a.version,
			Behind:     behind,
			Slot:       func(ctx context.Context) (func(), error) { return reads.Take(ctx, l.Owners()...) },
			Memory:     func() (func(), bool) { return memory.TryTake(l.Owners()...) },
			Operations: operations,
			By:         by,
			Pushes:     pushes,
			Denied: func(need cache.Rights) {
				reason := audit.MayNotRead
				if need&cache.Push != 0 {
					reason = audit.MayNotPush
				}
				audited.Refused(client, reason, nil)
			},
			Logger: log.With("remote", l.Remote.String(), "user", l.User, "by", by),
		})
	}
	a.ssh = listeners
	for _, k := range keys {
		a.hostKeys = append(a.hostKeys, k.PublicKey())
	}
	srv := sshd.New(who, answer, sshd.Options{HostKeys: keys, Version: a.version, Audit: audited, Logger: log})
	return &sshServer{srv, operations}, listeners, nil
}

// publicPort is the port at which other machines reach one of the listeners, or else the first
// one's; 0 if there is none.
func publicPort(listeners []net.Listener) (port int) {
	for _, l := range listeners {
		addr, ok := l.Addr().(*net.TCPAddr)
		if ok && (port == 0 || !addr.IP.IsLoopback()) {
			port = addr.Port
		}
	}
	return port
}
