//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"sync"
	"time"
)

// The sink is a binary cache that keeps nothing: what Nix takes to push to it is what Nix itself takes, and so the limit of this machine for any server.
// NARs are read and forgotten. Narinfos are remembered, for a client asks for them again before it sends what refers to them.

const (
	// sinkCommand is the first argument that makes this program the sink.
	sinkCommand = "sink"
	// sinkBuffer is the size of the reads of a body, in bytes.
	sinkBuffer = 256 << 10
)

// sink is an http.Handler.
type sink struct {
	buffers sync.Pool
	mu      sync.Mutex
	kept    map[string][]byte // narinfos
}

func newSink() *sink {
	return &sink{
		buffers: sync.Pool{New: func() any { return new([sinkBuffer]byte) }},
		kept:    map[string][]byte{"/nix-cache-info": []byte("StoreDir: /nix/store\n")},
	}
}

func (s *sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		s.mu.Lock()
		text, ok := s.kept[r.URL.Path]
		s.mu.Unlock()
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(text) // to a client that may have left
	case http.MethodPut:
		if err := s.put(r); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	default:
		http.Error(w, "only GET, HEAD and PUT", http.StatusMethodNotAllowed)
	}
}

func (s *sink) put(r *http.Request) error {
	if path.Ext(r.URL.Path) == ".narinfo" {
		text, err := io.ReadAll(io.LimitReader(r.Body, narinfoLimit))
		if err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.kept[r.URL.Path] = text
		return nil
	}
	buffer := s.buffers.Get().(*[sinkBuffer]byte)
	defer s.buffers.Put(buffer)
	for {
		if _, err := r.Body.Read(buffer[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// serveSink runs a sink on addr until ctx ends.
func serveSink(ctx context.Context, addr string) error {
	server := &http.Server{Addr: addr, Handler: newSink(), ReadHeaderTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// sinkSpec is the sink as a process of its own.
func sinkSpec(name string) Spec {
	return Spec{Name: name, Command: func(addr netip.AddrPort, _ string) (*exec.Cmd, error) {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		return exec.Command(self, sinkCommand, addr.String()), nil
	}}
}
