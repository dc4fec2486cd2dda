package session

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
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
	sink    *cachetest.Memory
	cache   *cache.Cache
	clients *Clients
}

func newHouse(t *testing.T) *house {
	h := &house{T: t, sink: cachetest.NewMemory(), clients: NewClients()}
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
			Name:    "main",
			Cache:   func(context.Context) (*cache.Cache, error) { return h.cache, nil },
			Who:     func(context.Context) (cache.Principal, error) { return r, nil },
			Client:  "a",
			Clients: h.clients,
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

// A conversation that may not begin yet ends with its client, and what that says meanwhile is heard when it begins.
func TestWaitToBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		first := &store{}
		leave, _, err := h.clients.join("a", first)
		if err != nil {
			t.Fatal(err)
		}
		path := cachetest.NewPath(t, nix.DefaultStoreDir, "path", "contents").Info
		p, _, err := first.push.add(path)
		if err != nil {
			t.Fatal(err)
		}
		first.push.read(p)

		_, conn := h.worker() // no part of a copy to ssh://, nor is one that only reads
		conn.Close()
		conn, ended := h.begin(Command{Protocol: Legacy, ReadOnly: true})
		conn.Write(hello)
		h.greet(conn)
		conn.Close()
		<-ended
		if !first.alone.Load() {
			t.Error("the first one is not alone any more")
		}

		conn, ended = h.begin(Command{Protocol: Legacy})
		conn.Write(hello)
		conn.Close()
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "the connection broke") {
			t.Errorf("it ends with %v", err)
		}

		conn, ended = h.begin(Command{Protocol: Legacy})
		conn.Write(hello[:3])
		conn.Write(hello[3:])
		synctest.Wait()
		first.push.settle(path.Path, p, nil)
		h.greet(conn)
		synctest.Wait()
		conn.Write(encode(2, 1, path.Path.String())) // what is known of it, which is more than is read ahead at once
		answer := make([]byte, 8)
		if _, err := io.ReadFull(conn, answer); err != nil || !bytes.Equal(answer, make([]byte, 8)) {
			t.Errorf("got %v, %v, want the end of an empty list", answer, err)
		}
		conn.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		leave()
		if len(h.clients.have) > 0 {
			t.Errorf("there are %v when all have ended", h.clients.have)
		}
	})
}

// A client that has several conversations is alone in none of them, and what may be answered early in one is settled before the next begins.
func TestClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClients()
		first, second, other := &store{}, &store{}, &store{}
		begin := func(client string, s *store) (leave func(), err error) {
			r, w := io.Pipe()
			defer w.Close()
			leave, _, err = c.begin(t.Context(), client, s, r)
			return leave, err
		}
		must := func(leave func(), err error) func() {
			if err != nil {
				t.Fatal(err)
			}
			return leave
		}
		add := func(contents string) (nix.StorePath, *push) {
			path := cachetest.NewPath(t, nix.DefaultStoreDir, "path", contents).Info
			p, _, err := first.push.add(path)
			if err != nil {
				t.Fatal(err)
			}
			return path.Path, p
		}
		leaveFirst := must(begin("a", first))
		leaveOther := must(begin("b", other))
		if !first.alone.Load() || !other.alone.Load() {
			t.Error("clients with one conversation are not alone in it")
		}
		being, beingRead := add("is being read")
		must(begin("a", second))() // which does not wait

		path, p := add("contents")
		first.push.read(p)
		var leaveSecond func()
		begun := make(chan struct{})
		go func() {
			defer close(begun)
			leaveSecond = must(begin("a", second))
		}()
		synctest.Wait()
		select {
		case <-begun:
			t.Error("the second conversation begins before what was read in the first is settled")
		default:
		}
		first.push.settle(path, p, nil)
		<-begun
		if first.alone.Load() || second.alone.Load() || !other.alone.Load() {
			t.Error("it is not so that two of three are not alone")
		}
		leaveSecond()
		first.push.settle(being, beingRead, nil)

		path, p = add("contents")
		first.push.read(p)
		failed := make(chan error)
		go func() {
			_, err := begin("a", second)
			failed <- err
		}()
		synctest.Wait()
		first.push.settle(path, p, errors.New("it was wrong"))
		if err := <-failed; err == nil || !strings.Contains(err.Error(), "it was wrong") {
			t.Errorf("what fails in the first is %v to the next, which waits for it", err)
		}
		if _, err := begin("a", second); err == nil || !strings.Contains(err.Error(), "it was wrong") {
			t.Errorf("what failed in the first is %v to the next", err)
		}
		if err := first.Settle(t.Context()); err == nil {
			t.Error("what failed is not told in its own conversation")
		}
		must(begin("a", second))() // it was told
		leaveFirst()
		leaveOther()
		leaveSecond = must(begin("a", second))
		if !second.alone.Load() {
			t.Error("the last one is not alone")
		}
		leaveSecond()
		if len(c.have) > 0 {
			t.Errorf("there are %v when all have ended", c.have)
		}
	})
}
