package server

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"firn/internal/audit"
	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/internal/fairlimit"
	"firn/internal/server/connlimit"
	"firn/nix"
)

// uploadTester is a pushTester in a bubble, see pipeTester.
type uploadTester struct {
	*pushTester
	pipe *pipeTester
}

// inUploadBubble runs a test of a server that receives uploads in a bubble.
func inUploadBubble(t *testing.T, opts Options, test func(t *uploadTester)) {
	opts.Proxies.Unix = true
	synctest.Test(t, func(t *testing.T) {
		p := newCaches(t, opts)
		pipe := &pipeTester{tester: p.tester, pipes: make(pipes), served: make(chan error, 1)}
		var ctx context.Context
		ctx, pipe.end = context.WithCancel(context.Background())
		go func() { pipe.served <- p.server.Serve(ctx, pipe.pipes) }()
		t.Cleanup(func() {
			pipe.end()
			if err := <-pipe.served; err != nil {
				t.Errorf("Serve: %v", err)
			}
		})
		test(&uploadTester{p, pipe})
	})
}

// begin sends the header of an upload.
func (t *uploadTester) begin(target string, length int64, headers ...string) (io.WriteCloser, *bufio.Reader) {
	t.Helper()
	conn, r := t.pipe.dial()
	head := fmt.Sprintf("PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n", target, length)
	for _, h := range headers {
		head += h + "\r\n"
	}
	if _, err := io.WriteString(conn, head+"\r\n"); err != nil {
		t.Fatalf("PUT %s: %v", target, err)
	}
	return conn, r
}

// wantAnswer reads an answer.
func (t *uploadTester) wantAnswer(r *bufio.Reader, status int) *http.Response {
	t.Helper()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatalf("there is no answer: %v", err)
	}
	if resp.StatusCode != status {
		text, _ := io.ReadAll(resp.Body)
		t.Errorf("%s: %s, want %d", resp.Status, text, status)
	}
	return resp
}

// wantNothing checks that nothing of an upload was kept.
func (t *uploadTester) wantNothing(url string) {
	t.Helper()
	synctest.Wait()
	if _, err := t.cache.Received(t.Context(), url); err == nil {
		t.Errorf("%s was kept", url)
	}
	if n := t.server.metrics.inFlight.Load(); n != 0 {
		t.Errorf("%d requests are still being answered", n)
	}
}

// A client that sends nothing for too long is cut, and nothing of what it sent stays.
func TestStalledUpload(t *testing.T) {
	inUploadBubble(t, Options{}, func(t *uploadTester) {
		url := cachetest.URL(t.path.NAR, "")
		conn, r := t.begin("/"+url, int64(len(t.path.NAR)), as("push-main"))
		if _, err := conn.Write(t.path.NAR[:50]); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		resp := t.wantAnswer(r, http.StatusRequestTimeout)
		if took := time.Since(start); took < firstPatience || took > 2*firstPatience {
			t.Errorf("the client was cut after %s, want some %s", took, firstPatience)
		}
		if !resp.Close {
			t.Error("the connection stays open")
		}
		io.Copy(io.Discard, r)
		t.wantNothing(url)
		t.wantMetric(`firn_uploads_refused_total{reason="slow"} 1`)
	})
}

// One that has sent enough to be trusted gets more time.
func TestStalledLater(t *testing.T) {
	inUploadBubble(t, Options{}, func(t *uploadTester) {
		path := cachetest.NewPath(t, nix.DefaultStoreDir, "large", strings.Repeat("x", 4*connlimit.Slice))
		conn, r := t.begin("/"+cachetest.URL(path.NAR, ""), int64(len(path.NAR)), as("push-main"))
		if _, err := conn.Write(path.NAR[:2*connlimit.Slice]); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		t.wantAnswer(r, http.StatusRequestTimeout)
		if took := time.Since(start); took < connlimit.Patience*9/10 || took > connlimit.Patience*11/10 {
			t.Errorf("the client was cut after %s, want %s", took, connlimit.Patience)
		}
		io.Copy(io.Discard, r)
	})
}

// A client that sends slowly but steadily can take all the time it needs.
func TestSteadyUpload(t *testing.T) {
	inUploadBubble(t, Options{}, func(t *uploadTester) {
		path := cachetest.NewPath(t, nix.DefaultStoreDir, "large", strings.Repeat("x", 4*connlimit.Slice))
		url := cachetest.URL(path.NAR, "")
		conn, r := t.begin("/"+url, int64(len(path.NAR)), as("push-main"))
		start := time.Now()
		for sent := 0; sent < len(path.NAR); {
			n, err := conn.Write(path.NAR[sent:min(sent+connlimit.MinRate*5/4, len(path.NAR))])
			if err != nil {
				t.Fatalf("after %d bytes and %s: %v", sent, time.Since(start), err)
			}
			sent += n
			time.Sleep(time.Second)
		}
		if took := time.Since(start); took < 3*connlimit.Patience {
			t.Errorf("that took %s, which is not long enough to show anything", took)
		}
		t.wantAnswer(r, http.StatusCreated)

		// What was set for the body does not end what comes after it.
		time.Sleep(idleLimit - time.Second)
		if _, err := io.WriteString(conn, "GET /version HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		t.wantAnswer(r, http.StatusOK)
		conn.Close()
	})
}

// A client that goes away in the middle leaves nothing.
func TestVanishedUpload(t *testing.T) {
	for sent := range []int{0, 1, 50, 119} {
		inUploadBubble(t, Options{}, func(t *uploadTester) {
			url := cachetest.URL(t.path.NAR, "")
			conn, _ := t.begin("/"+url, int64(len(t.path.NAR)), as("push-main"))
			if _, err := conn.Write(t.path.NAR[:sent]); err != nil {
				t.Fatal(err)
			}
			conn.Close()
			t.wantNothing(url)
			t.wantMetric(`firn_uploads_refused_total{reason="gone"} 1`)
		})
	}
}

// A body that is shorter than was promised, and whole by itself, is refused too.
func TestShortUpload(t *testing.T) {
	inUploadBubble(t, Options{}, func(t *uploadTester) {
		url := cachetest.URL(t.path.NAR, "")
		conn, _ := t.begin("/"+url, int64(len(t.path.NAR))+1, as("push-main"))
		if _, err := conn.Write(t.path.NAR); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		t.wantNothing(url)
	})
}

// A client that waits to be asked for its body is told of a refusal instead, and asked otherwise.
func TestExpect(t *testing.T) {
	const length = 1 << 40
	for _, test := range []struct {
		target, token string
		status        int
	}{
		{"/nar/" + helloNARHash + ".nar", "", 401},
		{"/nar/" + helloNARHash + ".nar", "no-such-token", 401},
		{"/nar/" + helloNARHash + ".nar", "read-team", 403},
		{"/nar/" + helloNARHash + ".nar", "push-main", 413},
		{"/nar/x.nar", "push-main", 413},
		{"/" + helloHash + ".narinfo", "push-main", 413},
		{"/team/nar/" + helloNARHash + ".nar", "push-main", 403},
		{"/fixed/nar/" + helloNARHash + ".nar", "push-main", 405},
		{"/metrics", "push-main", 405},
	} {
		inUploadBubble(t, Options{}, func(t *uploadTester) {
			start := time.Now()
			_, r := t.begin(test.target, length, as(test.token), "Expect: 100-continue")
			t.wantAnswer(r, test.status)
			if n, err := io.Copy(io.Discard, r); err != nil || n > 300 {
				t.Errorf("%d more bytes came, and %v", n, err)
			}
			if took := time.Since(start); took > time.Second {
				t.Errorf("the connection was closed after %s", took)
			}
		})
	}
	inUploadBubble(t, Options{}, func(t *uploadTester) {
		url := cachetest.URL(t.path.NAR, "")
		conn, r := t.begin("/"+url, int64(len(t.path.NAR)), as("push-main"), "Expect: 100-continue")
		t.wantAnswer(r, http.StatusContinue)
		if _, err := conn.Write(t.path.NAR); err != nil {
			t.Fatal(err)
		}
		t.wantAnswer(r, http.StatusCreated)
		conn.Close()
	})
}

// A client that sends its body whether it is wanted or not sees the answer.
func TestRefusedWhileSending(t *testing.T) {
	inUploadBubble(t, Options{}, func(t *uploadTester) {
		conn, r := t.begin("/nar/"+helloNARHash+".nar", 1<<20, as("read-team"))
		sent := make(chan error, 1)
		go func() {
			_, err := conn.Write(make([]byte, 1<<20))
			sent <- err
		}()
		resp := t.wantAnswer(r, http.StatusForbidden)
		if text, err := io.ReadAll(resp.Body); err != nil || len(text) == 0 || !resp.Close {
			t.Errorf("the answer is %q, %v, and the connection stays open: %t", text, err, !resp.Close)
		}
		if err := <-sent; err != nil {
			t.Errorf("the body was not read: %v", err)
		}
	})
}

// A client that was refused, and goes on sending, keeps no connection from others.
func TestRefusedMakesRoom(t *testing.T) {
	for _, header := range []string{"X-No: expectation", "Expect: 100-continue"} {
		inUploadBubble(t, Options{}, func(t *uploadTester) {
			t.pipe.end()
			if err := <-t.pipe.served; err != nil {
				t.Fatal(err)
			}
			t.server.seats = fairlimit.NewSeats[*connlimit.Conn](1) // when nothing of the old server reads it any more
			t.pipe.pipes = make(pipes)
			var ctx context.Context
			ctx, t.pipe.end = context.WithCancel(context.Background())
			go func() { t.pipe.served <- t.server.Serve(ctx, t.pipe.pipes) }()

			start := time.Now()
			_, r := t.begin("/nar/"+helloNARHash+".nar", 1<<30, as(""), header)
			if _, err := io.ReadAll(t.wantAnswer(r, http.StatusUnauthorized).Body); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			conn, r := t.pipe.dial()
			t.pipe.ask(conn, r, "/nix-cache-info")
			if took := time.Since(start); took != 0 {
				t.Errorf("%s: another client waited for %s", header, took)
			}
			conn.Close()
			time.Sleep(time.Second) // net/http waits for half of that
		})
	}
}

// waiting is a sink in which uploads wait to be let through.
type waiting struct {
	*cachetest.Memory
	entered chan struct{}
	release chan struct{}
}

func (w waiting) Receive(ctx context.Context, u cache.Upload) (cache.Received, error) {
	w.entered <- struct{}{}
	<-w.release
	return w.Memory.Receive(ctx, u)
}

// TestSlotsAreShared: one token, or one machine, cannot hold all slots with bodies that never come.
func TestSlotsAreShared(t *testing.T) {
	for name, c := range map[string]struct {
		idle, other []string // headers; {} stands for another number in each
	}{
		"of one token": {
			[]string{as("push-main"), "X-Forwarded-For: 192.0.2.{}"}, []string{as("all"), "X-Forwarded-For: 198.51.100.1"},
		},
		"of one address": {
			[]string{as("push-main"), "X-Forwarded-For: 192.0.2.1"}, []string{as("all"), "X-Forwarded-For: 198.51.100.1"},
		},
		"of one network": {
			[]string{as("push-main"), "X-Forwarded-For: 2001:db8::{}"}, []string{as("all"), "X-Forwarded-For: 2001:db8:1::1"},
		},
	} {
		for _, target := range []string{"/nar/" + helloNARHash + ".nar", "/" + helloHash + ".narinfo"} {
			inUploadBubble(t, Options{Uploads: 8}, func(t *uploadTester) {
				start := time.Now()
				for i := range 100 {
					var headers []string
					for _, h := range c.idle {
						headers = append(headers, strings.ReplaceAll(h, "{}", fmt.Sprint(i+1)))
					}
					conn, _ := t.begin(target, 120, headers...)
					defer conn.Close()
				}
				synctest.Wait()
				conn, r := t.begin("/"+cachetest.URL(t.path.NAR, ""), int64(len(t.path.NAR)), c.other...)
				if _, err := conn.Write(t.path.NAR); err != nil {
					t.Fatal(err)
				}
				t.wantAnswer(r, http.StatusCreated)
				if took := time.Since(start); took > time.Second {
					t.Errorf("%s: an upload of another owner waited for %s", name, took)
				}
				conn.Close()
			})
		}
	}
}

// TestWaitingIsShared: of the uploads of one token, from wherever they come, some are received, as
// many as may wait do, and the others are refused at once. Each of them would keep a connection for
// minutes.
func TestWaitingIsShared(t *testing.T) {
	for _, target := range []string{"/nar/" + helloNARHash + ".nar", "/" + helloHash + ".narinfo"} {
		inUploadBubble(t, Options{Uploads: 8}, func(t *uploadTester) {
			t.server.small = fairlimit.New(8)
			t.server.waiting = fairlimit.New(40)
			start := time.Now()
			refused := make(chan bool)
			for i := range 100 {
				conn, r := t.begin(target, 120, as("push-main"), fmt.Sprintf("X-Forwarded-For: 192.0.2.%d", i+1))
				defer conn.Close()
				go func() {
					resp, err := http.ReadResponse(r, nil)
					if err == nil && time.Since(start) < time.Second {
						refused <- resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != ""
					}
				}()
			}
			for range 100 - 4 - 20 {
				if !<-refused {
					t.Error("one was answered other than with 503")
				}
			}
			synctest.Wait()
			select {
			case <-refused:
				t.Error("one more was refused")
			default:
			}
			if took := time.Since(start); took > time.Second {
				t.Errorf("they were refused after %s", took)
			}
			conn, r := t.begin("/"+cachetest.URL(t.path.NAR, ""), int64(len(t.path.NAR)), as("all"), "X-Forwarded-For: 198.51.100.1")
			if _, err := conn.Write(t.path.NAR); err != nil {
				t.Fatal(err)
			}
			t.wantAnswer(r, http.StatusCreated)
			if took := time.Since(start); took > time.Second {
				t.Errorf("an upload of another owner waited for %s", took)
			}
			conn.Close()
		})
	}
}

// TestReadersAreShared: one client that takes nothing of many NARs keeps no other from getting one,
// also where both come through one proxy.
func TestReadersAreShared(t *testing.T) {
	inUploadBubble(t, Options{}, func(t *uploadTester) {
		t.server.readers = fairlimit.New(8)
		path := cachetest.NewPath(t, nix.DefaultStoreDir, "large", strings.Repeat("x", 1<<20))
		target := "/" + cachetest.URL(path.NAR, "")
		conn, r := t.begin(target, int64(len(path.NAR)), as("push-main"))
		if _, err := conn.Write(path.NAR); err != nil {
			t.Fatal(err)
		}
		t.wantAnswer(r, http.StatusCreated)
		conn.Close()
		get := func(from, token string) (net.Conn, *bufio.Reader) {
			conn, r := t.pipe.dial()
			if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: %s\r\n%s\r\nConnection: close\r\n\r\n", target, from, as(token)); err != nil {
				t.Fatal(err)
			}
			return conn, r
		}
		var waits []*bufio.Reader
		for range 20 {
			conn, r := get("192.0.2.1", "push-main")
			defer conn.Close()
			waits = append(waits, r)
		}
		synctest.Wait()
		start := time.Now()
		_, r = get("198.51.100.1", "all")
		resp := t.wantAnswer(r, http.StatusOK)
		if body, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(body, path.NAR) {
			t.Errorf("%d bytes, %v", len(body), err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("it waited for %s", took)
		}
		// Those that wait hear so before their clients give up.
		late := 0
		time.Sleep(readLimit + time.Second)
		for _, r := range waits {
			if resp, err := http.ReadResponse(r, nil); err == nil && resp.StatusCode == http.StatusServiceUnavailable {
				late++
			}
		}
		if late != 16 {
			t.Errorf("%d of 20 were told to come again, want 16", late)
		}
	})
}

// TestLogsAreShared: who takes nothing of many logs keeps nobody else from reading one.
func TestLogsAreShared(t *testing.T) {
	inUploadBubble(t, Options{}, func(t *uploadTester) {
		target := "/log/" + absentHash + "-x.drv"
		t.wantPutIn("main", target, strings.Repeat("a line\n", 100_000))
		for range 2 * openLogs {
			conn, _ := t.pipe.dial()
			if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n", target); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		conn, r := t.pipe.dial()
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 198.51.100.1\r\nConnection: close\r\n\r\n", target); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		resp := t.wantAnswer(r, http.StatusOK)
		if text, err := io.ReadAll(resp.Body); err != nil || len(text) != 700_000 {
			t.Errorf("%d bytes, %v", len(text), err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("somebody else's log waited for %s", took)
		}
	})
}

// wantPutIn keeps a log in a cache.
func (t *uploadTester) wantPutIn(name, target, body string) {
	t.Helper()
	conn, r := t.begin("/"+name+target, int64(len(body)), as("push-"+name))
	if _, err := io.WriteString(conn, body); err != nil {
		t.Fatal(err)
	}
	t.wantAnswer(r, http.StatusNoContent)
	conn.Close()
}

// Uploads wait for each other, but not for so long that a client would give up.
func TestUploadsTakeTurns(t *testing.T) {
	inUploadBubble(t, Options{Uploads: 1}, func(t *uploadTester) {
		sink := waiting{cachetest.NewMemory(), make(chan struct{}, 2), make(chan struct{})}
		c, err := cache.New([]cache.Source{sink}, cache.Options{Sink: cache.SinkOf(sink)})
		if err != nil {
			t.Fatal(err)
		}
		t.server.caches = cache.Only(c)
		url := "/" + cachetest.URL(t.path.NAR, "")
		first, r1 := t.begin(url, int64(len(t.path.NAR)), as("push-main"))
		if _, err := first.Write(t.path.NAR[:8]); err != nil {
			t.Fatal(err)
		}
		<-sink.entered
		second, r2 := t.begin(url, int64(len(t.path.NAR)), as("push-main"), "Expect: 100-continue")
		start := time.Now()
		resp := t.wantAnswer(r2, http.StatusServiceUnavailable)
		if took := time.Since(start); took != waitLimit || took > 5*time.Minute {
			t.Errorf("the second waited %s, want %s", took, waitLimit)
		}
		if resp.Header.Get("Retry-After") == "" {
			t.Error("the second is not told when to try again")
		}
		second.Close()
		third, r3 := t.begin(url, int64(len(t.path.NAR)), as("push-main"))
		close(sink.release)
		for i, r := range []*bufio.Reader{r1, r3} {
			if _, err := []io.Writer{first, third}[i].Write(t.path.NAR[[]int{8, 0}[i]:]); err != nil {
				t.Fatal(err)
			}
			t.wantAnswer(r, []int{201, 204}[i])
		}
		first.Close()
		third.Close()
	})
}

// revocable is an Authenticator all of whose tokens can be revoked.
type revocable struct {
	Authenticator
	gone atomic.Bool
}

func (r *revocable) Authenticate(ctx context.Context, authorization string, remote netip.Addr) (cache.Principal, error) {
	if r.gone.Load() {
		return nil, fmt.Errorf("%w: it was revoked", cache.ErrUnauthenticated)
	}
	return r.Authenticator.Authenticate(ctx, authorization, remote)
}

// A token that is revoked while a body is on its way has nothing shown that is in it.
func TestRevokedWhileUploading(t *testing.T) {
	inUploadBubble(t, Options{}, func(t *uploadTester) {
		access := &revocable{Authenticator: tokens}
		t.server.access = access
		path := cachetest.NewPath(t, nix.DefaultStoreDir, "late", "contents")
		url := "nar/" + path.Info.NARHash.Nix32() + ".nar"
		if _, err := t.cache.Receive(t.Context(), cache.Upload{URL: url, NAR: bytes.NewReader(path.NAR), NARHash: path.Info.NARHash}); err != nil {
			t.Fatal(err)
		}
		narinfo := (&nix.NARInfo{PathInfo: *path.Info, URL: url, Compression: nix.None, FileHash: path.Info.NARHash, FileSize: path.Info.NARSize}).AppendText(nil)
		drv := "00000000000000000000000000000000-a.drv"
		for target, body := range map[string]string{
			"/" + path.Info.Path.Hash().String() + ".narinfo": string(narinfo),
			"/log/" + drv: "a log",
		} {
			conn, r := t.begin(target, int64(len(body)), as("push-main"))
			io.WriteString(conn, body[:3])
			synctest.Wait()
			access.gone.Store(true)
			io.WriteString(conn, body[3:])
			t.wantAnswer(r, http.StatusUnauthorized)
			conn.Close()
			access.gone.Store(false)
		}
		if _, err := t.cache.NARInfo(t.Context(), path.Info.Path.Hash()); !errors.Is(err, cache.ErrNotFound) {
			t.Errorf("the path was published: %v", err)
		}
		if log, err := t.cache.OpenLog(t.Context(), mustParseBase(t, drv)); err == nil {
			log.Close()
			t.Error("the log was kept")
		}
	})
}

func mustParseBase(t *uploadTester, base string) nix.StorePath {
	t.Helper()
	path, err := nix.DefaultStoreDir.ParseBase(base)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// opening is a sink that counts the NARs that were opened under the names of their uploads.
type opening struct {
	*cachetest.Memory
	opened atomic.Int32
}

func (o *opening) OpenReceived(ctx context.Context, r cache.Received) (cache.NAR, error) {
	o.opened.Add(1)
	return o.Memory.OpenReceived(ctx, r)
}

// TestWaitingOpensNothing: a request for a NAR that has to wait while others are sent theirs does
// not open it.
func TestWaitingOpensNothing(t *testing.T) {
	inUploadBubble(t, Options{}, func(t *uploadTester) {
		t.server.readers = fairlimit.New(8)
		sink := &opening{Memory: cachetest.NewMemory()}
		c, err := cache.New([]cache.Source{sink}, cache.Options{Sink: cache.SinkOf(sink)})
		if err != nil {
			t.Fatal(err)
		}
		t.server.caches = cache.Only(c)
		path := cachetest.NewPath(t, nix.DefaultStoreDir, "large", strings.Repeat("x", 1<<20))
		target := "/" + cachetest.URL(path.NAR, "")
		conn, r := t.begin(target, int64(len(path.NAR)), as("push-main"))
		if _, err := conn.Write(path.NAR); err != nil {
			t.Fatal(err)
		}
		t.wantAnswer(r, http.StatusCreated)
		conn.Close()
		for range 20 {
			conn, _ := t.pipe.dial()
			defer conn.Close()
			if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\n%s\r\n\r\n", target, as("push-main")); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n := sink.opened.Load(); n != 4 {
			t.Errorf("%d NARs are open, want 4: one client has half of 8 readers", n)
		}
	})
}

// panicking is a sink that fails in a way that it must not.
type panicking struct{ *cachetest.Memory }

func (panicking) Receive(context.Context, cache.Upload) (cache.Received, error) { panic("a bug") }
func (panicking) Room(context.Context) (free, all int64, err error)             { return 1 << 40, 1 << 41, nil }

// An upload whose handler panics gives back what it holds, and is counted as failed.
func TestPanicOfUpload(t *testing.T) {
	var log bytes.Buffer
	uploads := audit.New(audit.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	inUploadBubble(t, Options{Uploads: 1, Audit: uploads}, func(t *uploadTester) {
		sink := panicking{cachetest.NewMemory()}
		c, err := cache.New([]cache.Source{sink}, cache.Options{Sink: cache.SinkOf(sink)})
		if err != nil {
			t.Fatal(err)
		}
		t.server.caches.(shelf).caches["main"] = c
		for range 2 {
			conn, r := t.begin("/"+cachetest.URL(t.path.NAR, ""), int64(len(t.path.NAR)), as("push-main"))
			go conn.Write(t.path.NAR)
			if text, err := io.ReadAll(r); err != nil || len(text) > 0 {
				t.Errorf("%q, %v, want the end of the connection", text, err)
			}
			conn.Close()
		}
		synctest.Wait()
		if n := len(t.server.space.coming); n > 0 {
			t.Errorf("%d clients still have room taken", n)
		}
		if uploads.Close(); !strings.Contains(log.String(), "failed=2") {
			t.Errorf("the uploads are logged as %q, want two that failed", &log)
		}
	})
}

// brokenBody is a body whose reading panics once more than the first part of a text is read.
type brokenBody struct{ n int }

func (b *brokenBody) Read(p []byte) (int, error) {
	if b.n > 2*firstText {
		panic("a bug")
	}
	b.n += len(p)
	return len(p), nil
}

func (*brokenBody) Close() error { return nil }

// An upload of a text whose decoder panics gives its memory back.
func TestPanicOfText(t *testing.T) {
	p := newCaches(t, Options{})
	r := httptest.NewRequest(http.MethodPut, "/"+p.path.Info.Path.Hash().String()+".narinfo", nil)
	r.Body, r.ContentLength = &brokenBody{}, nix.MaxNARInfoSize
	name, value, _ := strings.Cut(as("push-main"), ": ")
	r.Header.Set(name, value)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("it did not panic")
			}
		}()
		p.server.Handler().ServeHTTP(httptest.NewRecorder(), r)
	}()
	if _, ok := p.server.receivedTexts.TryTakeN(textMemory); !ok {
		t.Error("an upload that has ended holds memory")
	}
}
