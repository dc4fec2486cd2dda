package sshd_test

import (
	"bytes"
	"io"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"firn/internal/access"
	"firn/internal/sshd"
)

// flood has a client send single bytes on several channels of several connections, which no session
// reads, until the server takes no more. It returns by how much the heap grew, and the connections.
func (t *tester) flood(key ssh.Signer, connections, channels int, stderr bool) (grown int64, clients []*ssh.Client) {
	t.Helper()
	const packets = 150_000 // on each channel, which are 7 MB of heap
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var sent atomic.Int64
	var senders sync.WaitGroup
	t.Cleanup(senders.Wait)
	for range connections {
		c := t.login(key)
		clients = append(clients, c)
		for range channels {
			ch, requests, err := c.OpenChannel("session", nil)
			if err != nil {
				t.Fatal(err)
			}
			go ssh.DiscardRequests(requests)
			senders.Go(func() {
				to := io.Writer(ch)
				if stderr {
					to = ch.Stderr()
				}
				for range packets {
					if _, err := to.Write([]byte{1}); err != nil {
						return
					}
					sent.Add(1)
				}
			})
		}
	}
	settled := make(chan struct{})
	go func() {
		defer close(settled)
		senders.Wait()
	}()
	for last := int64(-1); ; { // until all is sent, or nothing more is taken
		select {
		case <-settled:
		case <-time.After(500 * time.Millisecond):
			if now := sent.Load(); now != last {
				last = now
				continue
			}
		}
		break
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	grown = int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d bytes were sent, and the heap grew by %d", sent.Load(), grown)
	return grown, clients
}

// What is sent and read by nobody takes memory by the packet. A client that sends in single bytes is not
// listened to any more long before its windows are full, which would be 300 MB here, and others are.
func TestSingleBytes(t0 *testing.T) {
	for name, stderr := range map[string]bool{"input": false, "error": true} {
		t0.Run(name, func(t0 *testing.T) {
			t := start(t0, sshd.Options{}.TakeLittle(4<<20, 8<<20), access.Options{})
			key := t.key("ci", access.SSHKeyOptions{})
			grown, clients := t.flood(key, 1, 3, stderr)
			if grown > 10<<20 {
				t.Errorf("the heap grew by %d MB", grown>>20)
			}
			t.want(t.login(key), "echo", "hello", "hello")
			clients[0].Close()
		})
	}
}

// All connections of a key together pin less than 200 MB, with the limits that a server has.
func TestWorstOfOneKey(t0 *testing.T) {
	t := start(t0, sshd.Options{}, access.Options{})
	key := t.key("ci", access.SSHKeyOptions{})
	grown, clients := t.flood(key, 8, 5, false)
	if grown > 200_000_000 {
		t.Errorf("the heap grew by %d MB", grown/1_000_000)
	}
	if grown < 50_000_000 {
		t.Errorf("the heap grew by only %d MB: this shows nothing", grown/1_000_000)
	}
	t.want(t.login(t.key("other", access.SSHKeyOptions{})), "echo", "hello", "hello")
	for _, c := range clients {
		c.Close()
	}
}

// Sessions go on as long as they like, whatever is sent to others on the same connection, with little that may be unread.
func TestUnread(t0 *testing.T) {
	t := start(t0, sshd.Options{}.TakeLittle(256<<10, 256<<10), access.Options{})
	c := t.login(t.key("ci", access.SSHKeyOptions{}))
	long := strings.Repeat("0123456789abcdef", 1<<20)
	idle := t.session(c)
	if err := idle.Start("hang up"); err != nil { // it reads, and hears nothing
		t.Fatal(err)
	}
	for range 3 {
		t.want(c, "count", long, strconv.Itoa(len(long)))
	}
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() { t.want(c, "count", long, strconv.Itoa(len(long))) })
	}
	group.Wait()

	// A client that takes much says so with each packet, and who sends to it reads nothing meanwhile.
	s := t.session(c)
	in, err := s.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("zeros"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, "early"); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, out); n != zeros || err != nil {
		t.Errorf("got %d bytes, %v, want %d", n, err, zeros)
	}
}

// A session whose client sends what it does not want ends, and the connection goes on.
func TestUnwanted(t0 *testing.T) {
	t := start(t0, sshd.Options{}.TakeLittle(256<<10, 256<<10), access.Options{})
	c := t.login(t.key("ci", access.SSHKeyOptions{}))
	for range 3 {
		s := t.session(c)
		s.Stdin = bytes.NewReader(make([]byte, 8<<20))
		if err := s.Run("nonsense"); err == nil {
			t.Error("there is nonsense")
		}
	}
	t.want(c, "echo", "hello", "hello")
}
