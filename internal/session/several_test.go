package session

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/nix"
	"firn/nix/protocol"
)

// encode encodes what a client says, as numbers and texts.
func encode(words ...any) (b []byte) {
	for _, word := range words {
		switch word := word.(type) {
		case int:
			b = binary.LittleEndian.AppendUint64(b, uint64(word))
		case string:
			b = binary.LittleEndian.AppendUint64(b, uint64(len(word)))
			b = append(b, word...)
			b = append(b, make([]byte, -len(word)&7)...)
		}
	}
	return b
}

// hello is what a client of the serve protocol says first: its number and 2.7.
var hello = encode(0x390c9deb, 2<<8|7)

// A house is a cache with several conversations, all of one client.
type house struct {
	*testing.T
	sink  *cachetest.Memory
	cache *cache.Cache
}

func newHouse(t *testing.T) *house {
	h := &house{T: t, sink: cachetest.NewMemory()}
	var err error
	if h.cache, err = cache.New([]cache.Source{h.sink}, cache.Options{Sink: cache.SinkOf(h.sink)}); err != nil {
		t.Fatal(err)
	}
	return h
}

// begin begins a conversation, which ends when conn is closed.
func (h *house) begin(command Command) (conn net.Conn, ended <-chan error) {
	r := &rights{}
	r.now.Store(uint32(cache.Read | cache.Push))
	ours, theirs := net.Pipe()
	result := make(chan error, 1)
	go func() {
		defer theirs.Close()
		result <- Serve(h.Context(), theirs, command, Options{
			Name:  "main",
			Cache: func(context.Context) (*cache.Cache, error) { return h.cache, nil },
			Who:   func(context.Context) (cache.Principal, error) { return r, nil },
		})
	}()
	return ours, result
}

func (h *house) worker() (*protocol.WorkerClient, net.Conn) {
	conn, _ := h.begin(Command{Protocol: Worker})
	client, err := protocol.DialWorker(conn, nix.DefaultStoreDir)
	if err != nil {
		h.Fatal(err)
	}
	return client, conn
}

// greet waits until the server has said its part of the handshake.
func (h *house) greet(conn net.Conn) {
	h.Helper()
	if _, err := io.ReadFull(conn, make([]byte, len(hello))); err != nil {
		h.Error(err)
	}
}

// legacyNAR is the question that sends a path without references, up to its NAR.
func legacyNAR(p cachetest.Path) []byte {
	return encode(9, p.Info.Path.String(), "", p.Info.NARHash.Base16(), 0, 0, int(p.Info.NARSize), 0, 0, p.Info.CA.String())
}

// What a client is in the middle of sending holds up no other of its conversations, in whichever protocol.
func TestConversationsGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which fails where all wait for each other
		h := newHouse(t)
		there := cachetest.NewPath(t, nix.DefaultStoreDir, "there", "contents")
		slow := cachetest.NewPath(t, nix.DefaultStoreDir, "slow", strings.Repeat("contents", 10000))
		slower := cachetest.NewPath(t, nix.DefaultStoreDir, "slower", strings.Repeat("contents", 20000))

		pusher, conn := h.worker()
		defer conn.Close()
		if err := pusher.AddNAR(there.Info, bytes.NewReader(there.NAR)); err != nil {
			t.Fatal(err)
		}
		half, rest := io.Pipe()
		pushed := make(chan error, 1)
		go func() { pushed <- pusher.AddNAR(slow.Info, half) }()
		rest.Write(slow.NAR[:50000])

		legacy, legacyEnded := h.begin(Command{Protocol: Legacy})
		go legacy.Write(hello)
		h.greet(legacy)
		legacy.Write(legacyNAR(slower))
		legacy.Write(slower.NAR[:50000])
		synctest.Wait()

		for _, command := range []Command{{Protocol: Legacy}, {Protocol: Legacy, ReadOnly: true}} {
			conn, ended := h.begin(command)
			go conn.Write(hello)
			h.greet(conn)
			conn.Close()
			<-ended
		}
		other, conn := h.worker()
		defer conn.Close()
		var nar bytes.Buffer
		if err := other.WriteNAR(&nar, there.Info); err != nil || !bytes.Equal(nar.Bytes(), there.NAR) {
			t.Errorf("a pull has %d bytes, %v", nar.Len(), err)
		}
		also := cachetest.NewPath(t, nix.DefaultStoreDir, "also", "other contents")
		if err := other.AddNAR(also.Info, bytes.NewReader(also.NAR)); err != nil {
			t.Error(err)
		}

		rest.Write(slow.NAR[50000:])
		rest.Close()
		if err := <-pushed; err != nil {
			t.Error(err)
		}
		legacy.Write(slower.NAR[50000:])
		if _, err := io.ReadFull(legacy, make([]byte, 8)); err != nil {
			t.Error(err)
		}
		legacy.Close()
		if err := <-legacyEnded; err != nil {
			t.Error(err)
		}
		for _, p := range []cachetest.Path{slow, slower, also} {
			if _, err := h.sink.PathInfo(t.Context(), p.Info.Path.Hash()); err != nil {
				t.Errorf("%s: %v", p.Info.Path, err)
			}
		}
	})
}
