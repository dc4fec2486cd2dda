//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// Request is one request as it is sent, and what has to come back.
type Request struct {
	Bytes  []byte // the whole request, ready for the wire
	Status int    // the only status that is right
	Size   int64  // the only Content-Length that is right, in bytes; negative: any
}

// newRequest is a GET of path from host. A byte range "a-b" or "a-" is asked for when rng is not empty.
func newRequest(host, path, rng string, status int, size int64) Request {
	var b bytes.Buffer
	fmt.Fprintf(&b, "GET %s HTTP/1.1\r\nHost: %s\r\n", path, host)
	if rng != "" {
		fmt.Fprintf(&b, "Range: bytes=%s\r\n", rng)
	}
	b.WriteString("\r\n")
	return Request{Bytes: b.Bytes(), Status: status, Size: size}
}

// path is the path that r asks for.
func (r *Request) path() string {
	fields := bytes.SplitN(r.Bytes, []byte(" "), 3)
	return string(fields[1])
}

// head is what a measurement needs of a response head.
type head struct {
	status int
	length int64 // negative: no Content-Length
	close  bool  // the server closes the connection after this response
}

func (h head) check(r *Request) error {
	switch {
	case h.status != r.Status:
		return fmt.Errorf("status %d instead of %d", h.status, r.Status)
	case h.length < 0:
		return errors.New("no Content-Length")
	case r.Size >= 0 && h.length != r.Size:
		return fmt.Errorf("Content-Length %d instead of %d", h.length, r.Size)
	}
	return nil
}

// parseHead reads a response head at the start of b. The size is that of the head, 0 when it is not complete.
func parseHead(b []byte) (h head, size int, err error) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return head{}, 0, nil
	}
	line, rest, _ := bytes.Cut(b[:end+2], []byte("\r\n"))
	version, status, ok := bytes.Cut(line, []byte(" "))
	if !ok || !bytes.HasPrefix(version, []byte("HTTP/1.")) || len(status) < 3 {
		return head{}, 0, fmt.Errorf("status line %q", line)
	}
	if h.status, err = strconv.Atoi(string(status[:3])); err != nil {
		return head{}, 0, fmt.Errorf("status line %q", line)
	}
	h.length = -1
	h.close = !bytes.HasSuffix(version, []byte(".1"))
	for len(rest) > 0 {
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		key, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case bytes.EqualFold(key, []byte("Content-Length")):
			if h.length, err = strconv.ParseInt(string(value), 10, 64); err != nil || h.length < 0 {
				return head{}, 0, fmt.Errorf("Content-Length %q", value)
			}
		case bytes.EqualFold(key, []byte("Connection")):
			h.close = bytes.EqualFold(value, []byte("close"))
		}
	}
	return h, end + 4, nil
}
