package server

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/nix"
)

// narrow is a sink with little room.
type narrow struct {
	*cachetest.Memory
	free, all int64
	full      bool // it finds that there is none, once it has read all
	received  int  // how many bodies it has read
}

func (n *narrow) Room(context.Context) (free, all int64, err error) { return n.free, n.all, nil }

func (n *narrow) Receive(ctx context.Context, u cache.Upload) (cache.Received, error) {
	n.received++
	if n.full {
		if _, err := io.Copy(io.Discard, u.NAR); err != nil {
			return cache.Received{}, err
		}
		return cache.Received{}, fmt.Errorf("write /secret/place: %w", cache.ErrFull)
	}
	return n.Memory.Receive(ctx, u)
}

// inNarrow runs a test of a server with a narrow sink, of whose room much is free.
func inNarrow(t *testing.T, test func(t *uploadTester, sink *narrow)) {
	inUploadBubble(t, Options{}, func(t *uploadTester) {
		sink := &narrow{Memory: cachetest.NewMemory(), free: 1 << 40, all: 1 << 41}
		c, err := cache.New([]cache.Source{sink}, cache.Options{Sink: cache.SinkOf(sink)})
		if err != nil {
			t.Fatal(err)
		}
		t.server.caches = cache.Only(c)
		test(t, sink)
	})
}

// wantText reads the rest of an answer that came at once, and wants some text.
func (t *uploadTester) wantText(resp *http.Response, start time.Time, text string) {
	t.Helper()
	got, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(got), text) {
		t.Errorf("the answer is %q, %v, want %q", got, err, text)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("it came after %s", took)
	}
}

const (
	diskFull = "the disk of this server is full"
	asking   = "Expect: 100-continue"
	oldNix   = "User-Agent: curl/7.85.0 Nix/2.8.0"
	newNix   = "User-Agent: curl/8.14.1 Nix/2.34.8"
)

// TestLargerThanRoom: what is larger than what is free is refused before any of it is read.
func TestLargerThanRoom(t *testing.T) {
	for _, test := range []struct {
		client, expect string
		status         int
	}{
		{newNix, asking, http.StatusInsufficientStorage},
		{newNix, "X-No: expectation", http.StatusInsufficientStorage},
		{oldNix, asking, http.StatusInsufficientStorage},
		// It would fail in trying again, and say nothing of the disk.
		{oldNix, "X-No: expectation", http.StatusRequestEntityTooLarge},
		{"User-Agent: another", "X-No: expectation", http.StatusInsufficientStorage},
	} {
		inNarrow(t, func(t *uploadTester, sink *narrow) {
			sink.free = 1000
			for _, target := range []string{"/nar/" + helloNARHash + ".nar", "/" + helloHash + ".narinfo", "/log/" + helloHash + "-a.drv"} {
				start := time.Now()
				conn, r := t.begin(target, 1001, as("push-main"), test.client, test.expect)
				resp := t.wantAnswer(r, test.status)
				t.wantText(resp, start, diskFull)
				conn.Close()
			}
			if sink.received > 0 {
				t.Error("the sink was asked")
			}
			t.wantMetric(`firn_uploads_refused_total{reason="no room"} 3`)
		})
	}
}

// TestRoomOfUploads: what a client still has to send of other uploads is not free for its next one,
// but it is for others; and it is again once it has come, or comes no more.
func TestRoomOfUploads(t *testing.T) {
	inNarrow(t, func(t *uploadTester, sink *narrow) {
		sink.free = 10_000
		path := func(n int) cachetest.Path {
			return cachetest.NewPath(t, nix.DefaultStoreDir, fmt.Sprint("path-", n), strings.Repeat(fmt.Sprint(n), 6000))
		}
		send := func(p cachetest.Path, token string, status int) {
			t.Helper()
			conn, r := t.begin("/"+cachetest.URL(p.NAR, ""), int64(len(p.NAR)), as(token), asking)
			defer conn.Close()
			if status == http.StatusCreated {
				t.wantAnswer(r, http.StatusContinue)
				if _, err := conn.Write(p.NAR); err != nil {
					t.Fatal(err)
				}
			}
			t.wantAnswer(r, status)
		}
		first := path(1)
		conn, _ := t.begin("/"+cachetest.URL(first.NAR, ""), int64(len(first.NAR)), as("push-main"))
		synctest.Wait()
		send(path(2), "push-main", http.StatusInsufficientStorage)
		send(path(3), "all", http.StatusCreated) // another client
		if _, err := conn.Write(first.NAR[:5000]); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		send(path(4), "push-main", http.StatusCreated)
		conn.Close()
		synctest.Wait()
		if len(t.server.space.coming) > 0 {
			t.Errorf("room is taken by %v", t.server.space.coming)
		}
		send(path(5), "push-main", http.StatusCreated)
	})
}

// TestRefusedAgain: what was refused for want of room once its body was read is refused by its
// header when the client tries again, some times; a client that comes later, or sends something
// else, is heard.
func TestRefusedAgain(t *testing.T) {
	for _, client := range []string{oldNix, newNix} {
		inNarrow(t, func(t *uploadTester, sink *narrow) {
			sink.full = true
			put := func(p cachetest.Path, read bool) {
				t.Helper()
				conn, r := t.begin("/"+cachetest.URL(p.NAR, ""), int64(len(p.NAR)), as("push-main"), client, asking)
				defer conn.Close()
				if read {
					t.wantAnswer(r, http.StatusContinue)
					if _, err := conn.Write(p.NAR); err != nil {
						t.Fatal(err)
					}
				}
				start := time.Now()
				t.wantText(t.wantAnswer(r, http.StatusInsufficientStorage), start, diskFull)
			}
			put(t.path, true)
			for range 4 {
				put(t.path, false)
			}
			put(t.path, true)
			put(t.path, false)
			put(cachetest.NewPath(t, nix.DefaultStoreDir, "another", "another"), true)
			time.Sleep(refusedTime + time.Second)
			put(t.path, true)
			if sink.received != 4 {
				t.Errorf("%d bodies were read", sink.received)
			}
		})
	}
}

// TestSendsTheRest: a Nix that sends only the rest of a body when it tries again is kept waiting
// for that once, and told what may be the cause.
func TestSendsTheRest(t *testing.T) {
	for _, test := range []struct {
		client string
		waits  int
	}{{oldNix, 1}, {newNix, 4}} {
		inNarrow(t, func(t *uploadTester, sink *narrow) {
			waits := 0
			for range 4 {
				start := time.Now()
				conn, r := t.begin("/"+cachetest.URL(t.path.NAR, ""), int64(len(t.path.NAR)), as("push-main"), test.client, asking)
				if next, err := r.Peek(len("HTTP/1.1 100")); err != nil {
					t.Fatal(err)
				} else if strings.HasSuffix(string(next), "100") { // it is asked for the body
					t.wantAnswer(r, http.StatusContinue)
					waits++
				}
				resp := t.wantAnswer(r, http.StatusRequestTimeout)
				if took := time.Since(start); took > 2*firstPatience {
					t.Errorf("it was kept waiting for %s", took)
				}
				text, err := io.ReadAll(resp.Body)
				if err != nil || !strings.Contains(string(text), "if another error came before this one, that is the cause") {
					t.Errorf("the answer is %q, %v", text, err)
				}
				conn.Close()
			}
			if waits != test.waits {
				t.Errorf("%s was kept waiting %d times, want %d", test.client, waits, test.waits)
			}
		})
	}
}

// TestRestOfNAR: what is no NAR may be the rest of one, of a client that sends no more than that
// when it tries again.
func TestRestOfNAR(t *testing.T) {
	for client, told := range map[string]bool{oldNix: true, newNix: false} {
		inNarrow(t, func(t *uploadTester, sink *narrow) {
			rest := t.path.NAR[32:]
			conn, r := t.begin("/"+cachetest.URL(t.path.NAR, ""), int64(len(rest)), as("push-main"), client)
			defer conn.Close()
			if _, err := conn.Write(rest); err != nil {
				t.Fatal(err)
			}
			resp := t.wantAnswer(r, http.StatusBadRequest)
			text, err := io.ReadAll(resp.Body)
			if err != nil || strings.Contains(string(text), "only the rest") != told {
				t.Errorf("%s is answered %q, %v", client, text, err)
			}
		})
	}
}

// TestHealthOfFullDisk: a disk without room keeps no client from reading, and is told of.
func TestHealthOfFullDisk(t *testing.T) {
	const mega = 1 << 20
	for _, test := range []struct {
		free, all int64
		nearly    bool
	}{
		{0, 0, false}, {0, 100 * mega, true}, {mega - 1, 100 * mega, true}, {mega, 100 * mega, false},
		{63 * mega, 1000_000 * mega, true}, {64 * mega, 1000_000 * mega, false},
	} {
		inNarrow(t, func(t *uploadTester, sink *narrow) {
			sink.free, sink.all = test.free, test.all
			conn, r := t.pipe.dial()
			defer conn.Close()
			if _, err := io.WriteString(conn, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			resp := t.wantAnswer(r, http.StatusOK)
			text, err := io.ReadAll(resp.Body)
			want := "ok\n"
			if test.nearly {
				want = "ok, but the disk is nearly full: what is pushed may be refused\n"
			}
			if err != nil || string(text) != want {
				t.Errorf("with %d of %d bytes: %q, %v", test.free, test.all, text, err)
			}
		})
	}
}

func TestNixVersion(t *testing.T) {
	for agent, want := range map[string]int{
		"curl/7.74.0 Nix/2.3.7": 3, "curl/8 Nix/2.28.7 extra": 28, "Nix/2.29": 29, "curl/8.23.0-rc3 Nix/2.34.8": 34, "Nix/1.11": -1,
		"Nix/3.1": 0, "curl/8": 0, "Nix/2.": 0, "Nix/2.99999999999999": 9999, "Lix/2.90": 0, "": 0,
	} {
		minor, ok := nixVersion([]string{agent})
		if ok != (want != 0) || ok && minor != want {
			t.Errorf("%q: %d, %t", agent, minor, ok)
		}
	}
	if _, ok := nixVersion(nil); ok {
		t.Error("no agent is one")
	}
}
