package server

import (
	"fmt"
	"net"
	"testing"
	"time"

	"firn/internal/cache/cachetest"
	"firn/nix"
)

// A client that goes away while it waits for its turn gives its connection back before that comes.
func TestGoneWhileWaiting(t *testing.T) {
	p := newCaches(t, Options{Uploads: 1})
	url := benchListen(t, p.server)
	begin := func(name string, bytes int) net.Conn {
		path := cachetest.NewPath(t, nix.DefaultStoreDir, name, name)
		conn, err := net.Dial("tcp", url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		fmt.Fprintf(conn, "PUT /%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n\r\n", cachetest.URL(path.NAR, ""), len(path.NAR), as("push-main"))
		if _, err := conn.Write(path.NAR[:bytes]); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	until := func(n int64) {
		t.Helper()
		for end := time.Now().Add(time.Minute); p.server.metrics.inFlight.Load() != n; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d requests are being answered, want %d", p.server.metrics.inFlight.Load(), n)
			}
		}
	}
	begin("first", 10)
	until(1)
	second := begin("second", 50)
	until(2)
	second.Close()
	until(1)
}
