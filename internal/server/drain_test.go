package server

import (
	"bufio"
	"io"
	"net/http"
	"testing"
	"time"

	"firn/internal/server/connlimit"
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
		time.Sleep(connlimit.QuietTime / 2)
		t.end()
		time.Sleep(connlimit.QuietTime / 3)
		t.wantLast(r, t.ask(conn, r, "/version"), http.StatusOK)
	})
}

// So is one whose answer had begun before the end, and could not be told.
func TestEndDuringAnswer(t *testing.T) {
	inBubble(t, func(t *pipeTester) {
		t.serve(connlimit.Slice, writeAll(connlimit.Slice))
		conn, r := t.dial()
		first := t.ask(conn, r, helloNAR)
		t.end()
		time.Sleep(2 * connlimit.QuietTime)
		t.wantMore(first)
		time.Sleep(connlimit.QuietTime / 2)
		t.wantLast(r, t.ask(conn, r, "/nothing"), http.StatusNotFound)
	})
}

// A request of which a part has come when the server ends is answered.
func TestEndDuringRequest(t *testing.T) {
	inBubble(t, func(t *pipeTester) {
		t.serve(1, writeAll(1))
		conn, r := t.dial()
		for _, part := range []string{"GET /ver", "sion HTTP/1.1\r\nHo", "st: x\r\n\r\n"} {
			time.Sleep(connlimit.QuietTime / 2)
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
		{"short", true, connlimit.QuietTime / 4, connlimit.QuietTime * 3 / 4},
		{"fresh", false, connlimit.FreshTime / 5, connlimit.FreshTime * 4 / 5},
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
				if took := time.Since(start); took < test.want || took > test.want+2*20*time.Millisecond {
					t.Errorf("the end took %s, want %s", took, test.want)
				}
				t.wantCut(r, 0)
			})
		})
	}
}
