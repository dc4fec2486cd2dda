//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/sync/errgroup"
)

// The client shares the cores of the machine with the server that it measures, so it does little:
// requests are bytes made beforehand, fasthttp parses the heads of responses without allocating,
// and bodies are dropped by the kernel. It is the same for all servers.

// A request is sent as it is, and has one right answer.
type request struct {
	path   string
	raw    []byte
	status int
	size   int64 // of the body; negative: any
}

// get makes a request. header is further lines of the head, each with its end, or nothing.
func get(addr, path, header string, status int, size int64) request {
	return request{path, fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", path, addr, header), status, size}
}

// connLimit is how long a connection may be used. It ends a measurement of a server that sends
// nothing any more.
const connLimit = 5 * time.Minute

// A conn is a connection that is kept alive.
type conn struct {
	*net.TCPConn
	in   *bufio.Reader
	head fasthttp.ResponseHeader
	null *os.File
}

func dial(ctx context.Context, addr string) (*conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err == nil {
		err = c.SetDeadline(time.Now().Add(connLimit))
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return &conn{TCPConn: c.(*net.TCPConn), in: bufio.NewReaderSize(c, 4<<10), null: null}, nil
}

func (c *conn) Close() error {
	c.null.Close()
	return c.TCPConn.Close()
}

// begin sends a request and reads the head of the answer. Any answer but the right one is an error:
// no number stands for wrong bytes.
func (c *conn) begin(r *request) (size int64, err error) {
	if _, err := c.Write(r.raw); err != nil {
		return 0, fmt.Errorf("GET %s: %w", r.path, err)
	}
	if err := c.head.Read(c.in); err != nil {
		return 0, fmt.Errorf("GET %s: %w", r.path, err)
	}
	size = int64(c.head.ContentLength())
	switch {
	case c.head.StatusCode() != r.status:
		return 0, fmt.Errorf("GET %s: status %d instead of %d", r.path, c.head.StatusCode(), r.status)
	case size < 0:
		return 0, fmt.Errorf("GET %s: no Content-Length", r.path)
	case r.size >= 0 && size != r.size:
		return 0, fmt.Errorf("GET %s: Content-Length %d instead of %d", r.path, size, r.size)
	}
	return size, nil
}

// do sends a request and drops the body of the answer.
func (c *conn) do(r *request) error {
	size, err := c.begin(r)
	if err != nil {
		return err
	}
	n, _ := c.in.Discard(int(min(size, int64(c.in.Buffered()))))
	if rest := size - int64(n); rest > 0 {
		// From a TCP connection to a file, io.CopyN is splice(2): the bytes never come into this
		// process.
		if _, err := io.CopyN(c.null, c.TCPConn, rest); err != nil {
			return fmt.Errorf("GET %s: %w", r.path, err)
		}
	}
	return nil
}

// run sends requests on so many connections, each request on whichever connection is free first,
// and returns how many it sent in what time. It sends each request once, or, if there is a
// duration, all of them again and again for so long.
func run(ctx context.Context, addr string, connections int, requests []request, duration time.Duration) (int, time.Duration, error) {
	var conns []*conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range connections {
		c, err := dial(ctx, addr)
		if err != nil {
			return 0, 0, err
		}
		conns = append(conns, c)
	}
	var next atomic.Int64
	begin := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for _, c := range conns {
		group.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if duration == 0 && i >= len(requests) || duration > 0 && time.Since(begin) >= duration {
					next.Add(-1)
					return ctx.Err()
				}
				if err := c.do(&requests[i%len(requests)]); err != nil || ctx.Err() != nil {
					return err
				}
			}
		})
	}
	err := group.Wait()
	return int(next.Load()), time.Since(begin), err
}

// hold begins an answer to a request on each of so many connections, reads no more than its head,
// calls during, and hangs up.
func hold(ctx context.Context, addr string, connections int, requests []request, during func()) error {
	for i := range connections {
		c, err := dial(ctx, addr)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.begin(&requests[i%len(requests)]); err != nil {
			return err
		}
	}
	during()
	return nil
}

// fetch gets a path in the usual way, for those who want the bytes.
func fetch(ctx context.Context, url, userAgent string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", userAgent)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return resp, nil
}
