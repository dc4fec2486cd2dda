package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"firn/internal/cache"
	"firn/nix"
	"firn/nix/protocol"
)

// localStore is the name of the source that is the store of this machine.
const localStore = "local store"

// A daemon puts paths into the store of this machine, through the Nix daemon, on one connection.
// The daemon checks signatures by its own settings.
type daemon struct {
	socket string
	dir    nix.StoreDir

	mu     sync.Mutex // one question at a time
	conn   net.Conn   // nil: there is none yet, or no more
	client *protocol.WorkerClient
}

// newDaemon returns what puts paths into the store that c serves first; nil where that is not the store of this machine.
func newDaemon(c *cache.Cache, socket string) *daemon {
	if sources := c.Sources(); socket == "" || len(sources) == 0 || sources[0] != localStore {
		return nil
	}
	return &daemon{socket: socket, dir: c.Info().StoreDir}
}

func (d *daemon) addNAR(ctx context.Context, info *nix.PathInfo, r io.Reader) error {
	return d.ask(ctx, func() error { return d.client.AddNAR(info, r) })
}

func (d *daemon) addSignatures(ctx context.Context, path nix.StorePath, sigs []nix.Signature) error {
	return d.ask(ctx, func() error { return d.client.AddSignatures(path, sigs) })
}

// ask asks the daemon something, on a new connection where the last one broke.
func (d *daemon) ask(ctx context.Context, question func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conn == nil {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "unix", d.socket)
		if err != nil {
			return fmt.Errorf("reach Nix daemon: %w: %w", cache.ErrUnavailable, err)
		}
		client, err := protocol.DialWorker(conn, d.dir)
		if err != nil {
			conn.Close()
			return fmt.Errorf("%w: %w", cache.ErrUnavailable, err)
		}
		d.conn, d.client = conn, client
	}
	conn := d.conn // which is nobody's below, when ctx ends at the same moment
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	err := question()
	if answer, ok := errors.AsType[*protocol.AnswerError](err); ok {
		err = cache.Refuse(cache.ErrInvalid, "the Nix daemon of the server: %s", answer.Message)
	}
	if err != nil { // also after an answer, when not all that was sent may have been read
		d.conn.Close()
		d.conn = nil
	}
	return err
}

func (d *daemon) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conn != nil {
		d.conn.Close()
		d.conn = nil
	}
}
