package localstore

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"firn/nix"
)

// Whatever listens at the daemon's socket, an absent path is absent, and soon.
func TestHostileDaemon(t *testing.T) {
	word := func(n uint64) string { return new(words).numbers(n).String() }
	hello := word(magicServer) + word(1<<8|34) + word(6) + "2.8.0\x00\x00\x00" + word(stderrLast)
	for name, answer := range map[string]string{
		"nothing":            "",
		"HTTP":               "HTTP/1.1 400 Bad Request\r\n\r\n",
		"version 2":          word(magicServer) + word(2<<8),
		"version 1.10":       word(magicServer) + word(1<<8|10),
		"endless string":     word(magicServer) + word(1<<8|34) + word(1<<62),
		"long message":       hello + word(stderrNext) + word(1<<20) + strings.Repeat("x", 1<<20),
		"many fields":        hello + word(stderrResult) + word(1) + word(1) + word(1<<40),
		"unknown field":      hello + word(stderrResult) + word(1) + word(1) + word(1) + word(9),
		"unknown message":    hello + word(12345),
		"error":              hello + word(stderrError) + word(5) + "Error\x00\x00\x00" + word(0) + word(5) + "Error\x00\x00\x00" + word(3) + "why\x00\x00\x00\x00\x00",
		"a path, and no end": hello + word(stderrLast) + word(8) + "/nix/sto",
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					io.WriteString(c, answer)
					c.(*net.UnixConn).CloseWrite()
					io.Copy(io.Discard, c)
					c.Close()
				}
			}()
			d := newDaemon(socket, nix.DefaultStoreDir)
			defer d.close()
			if info, err := d.pathInfo(t.Context(), nix.PathHash{}); err == nil {
				t.Errorf("got %v, want an error", info)
			} else {
				t.Log(err)
			}
		})
	}
}

// However many ask for absent paths, the daemon is not made to run a process for each.
func TestExchangesBounded(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Conn, 100)
	go func() {
		defer close(accepted)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- conn // and say nothing
		}
	}()
	d := newDaemon(socket, nix.DefaultStoreDir)
	ctx, cancel := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	for i := range 2 * maxExchanges {
		asking.Go(func() {
			if _, err := d.pathInfo(ctx, nix.PathHash{byte(i)}); !errors.Is(err, context.Canceled) && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("pathInfo: %v", err)
			}
		})
	}
	for range maxExchanges {
		defer (<-accepted).Close()
	}
	cancel()
	asking.Wait()
	l.Close()
	for conn := range accepted {
		conn.Close()
		t.Errorf("more than %d connections", maxExchanges)
	}
}
