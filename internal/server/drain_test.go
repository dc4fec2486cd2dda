package server

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"runtime"
	"testing"
	"time"
)

// wantLast takes an answer from a server that is ending, which says that it is the last of its connection, and then has it closed.
func (t *pipeTester) wantLast(r *bufio.Reader, resp *http.Response, status int) {
	t.Helper()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Error(err)
	}
	if resp.StatusCode != status || !resp.Close {
		t.Errorf("while the server ends the answer is %d, and says that it is the last: %t; want %d, true", resp.StatusCode, resp.Close, status)
	}
	t.wantCut(r, 0)
}

// wantMore takes an answer that says nothing of an end.
func (t *pipeTester) wantMore(resp *http.Response) {
	t.Helper()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.Close {
		t.Errorf("the answer is %s, %v, and says that it is the last: %t", resp.Status, err, resp.Close)
	}
}

// A client that asks one thing after the other is answered by a server that ends, and told to ask elsewhere next.
func TestEndBetweenRequests(t *testing.T) {
	inBubble(t, func(t *pipeTester) {
		t.serve(1, writeAll(1))
		conn, r := t.dial()
		t.wantMore(t.ask(conn, r, "/version"))
		time.Sleep(quietTime / 2)
		t.end()
		time.Sleep(quietTime / 3)
		t.wantLast(r, t.ask(conn, r, "/version"), http.StatusOK)
	})
}

// So is one whose answer had begun before the end, and could not be told.
func TestEndDuringAnswer(t *testing.T) {
	inBubble(t, func(t *pipeTester) {
		t.serve(slice, writeAll(slice))
		conn, r := t.dial()
		first := t.ask(conn, r, helloNAR)
		t.end()
		time.Sleep(2 * quietTime)
		t.wantMore(first)
		time.Sleep(quietTime / 2)
		t.wantLast(r, t.ask(conn, r, "/nothing"), http.StatusNotFound)
	})
}

// A request of which a part has come when the server ends is answered.
func TestEndDuringRequest(t *testing.T) {
	inBubble(t, func(t *pipeTester) {
		t.serve(1, writeAll(1))
		conn, r := t.dial()
		for _, part := range []string{"GET /ver", "sion HTTP/1.1\r\nHo", "st: x\r\n\r\n"} {
			time.Sleep(quietTime / 2)
			if _, err := io.WriteString(conn, part); err != nil {
				t.Fatal(err)
			}
			t.end()
		}
		t.wantLast(r, t.answer(r), http.StatusOK)
	})
}

// A connection that is silent does not keep the server from its end: at once if it has been for a while,
// soon if it has just been used, and a little later if it was only just opened.
func TestEndOfSilence(t *testing.T) {
	for _, test := range []struct {
		name   string
		asks   bool
		silent time.Duration // before the end
		want   time.Duration
	}{
		{"long", true, time.Minute, 0},
		{"short", true, quietTime / 4, quietTime * 3 / 4},
		{"fresh", false, freshTime / 5, freshTime * 4 / 5},
		{"never used", false, 15 * time.Second, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *pipeTester) {
				t.serve(1, writeAll(1))
				conn, r := t.dial()
				if test.asks {
					t.wantMore(t.ask(conn, r, "/version"))
				}
				time.Sleep(test.silent)
				t.end()
				start := time.Now()
				if err := <-t.served; err != nil {
					t.Errorf("Serve: %v", err)
				}
				t.served <- nil
				if took := time.Since(start); took < test.want || took > test.want+2*drainInterval {
					t.Errorf("the end took %s, want %s", took, test.want)
				}
				t.wantCut(r, 0)
			})
		})
	}
}

// What the kernel holds for a client, or from it, is seen.
func TestHasMore(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if hasMore(server) {
		t.Error("of a connection through which nothing came it is said that there is something")
	}
	if _, err := client.Write([]byte("GET")); err != nil {
		t.Fatal(err)
	}
	for !hasMore(server) { // as soon as it has come
		if err := t.Context().Err(); err != nil {
			t.Fatal("what came was not seen")
		}
	}
	if _, err := io.ReadFull(server, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if hasMore(server) {
		t.Error("what was read is still said to be there")
	}
	if runtime.GOOS != "linux" {
		return
	}
	// The buffers of both are full once nothing more goes out in a while. On a busy machine the
	// time of a write may be over before it has begun, so the test writes some more then.
	for range 100 {
		if err := server.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := server.Write(make([]byte, 64<<20)) // more than the buffers hold
		if err == nil {
			t.Fatal("64 MiB went out to a client that does not read")
		}
		if n == 0 && hasMore(server) {
			return
		}
	}
	t.Error("what is to go out was not seen")
}
