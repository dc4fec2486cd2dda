//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// The bare Go server is what Go can do on this machine at best: the flat files of a binary cache,
// one goroutine a connection, a request line split at its spaces, small files in one write with the head, the others by sendfile.
// It is a yardstick, not a web server: it trusts its client.

const (
	// bareCommand is the first argument that makes this program the bare Go server.
	bareCommand = "bare-go-server"
	// bareWhole is the size up to which a file is read and sent in one write with the head, in bytes.
	bareWhole = 16 << 10
)

// serveBare serves the files of root on addr until ctx ends.
func serveBare(ctx context.Context, addr, root string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go func() {
			defer c.Close()
			if err := serveBareConn(c.(*net.TCPConn), root); !isGone(err) {
				fmt.Fprintf(os.Stderr, "serve %s: %v\n", c.RemoteAddr(), err)
			}
		}()
	}
}

// isGone tells whether err says that the client has left.
func isGone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

func serveBareConn(c *net.TCPConn, root string) error {
	in := bufio.NewReader(c)
	out := make([]byte, 0, bareWhole+headLimit)
	for {
		name, from, err := readBareRequest(in)
		if err != nil {
			return err
		}
		f, err := os.Open(filepath.Join(root, filepath.FromSlash(path.Clean("/"+name))))
		if errors.Is(err, os.ErrNotExist) {
			if _, err := c.Write([]byte("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		err = sendBare(c, out, f, from)
		f.Close()
		if err != nil {
			return err
		}
	}
}

// sendBare answers with the bytes of f from the offset on; a negative offset stands for a request without a range.
func sendBare(c *net.TCPConn, out []byte, f *os.File, from int64) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	if from >= 0 {
		if _, err := f.Seek(from, io.SeekStart); err != nil {
			return err
		}
		out = fmt.Appendf(out, "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes %d-%d/%d\r\n", from, size-1, size)
		size -= from
	} else {
		out = append(out, "HTTP/1.1 200 OK\r\n"...)
	}
	out = append(out, "Content-Length: "...)
	out = strconv.AppendInt(out, size, 10)
	out = append(out, "\r\n\r\n"...)
	if size <= bareWhole {
		body := out[len(out) : len(out)+int(size)]
		if _, err := io.ReadFull(f, body); err != nil {
			return err
		}
		_, err := c.Write(out[:len(out)+int(size)])
		return err
	}
	if _, err := c.Write(out); err != nil {
		return err
	}
	_, err = io.CopyN(c, f, size)
	return err
}

// readBareRequest reads a request: the path, and where a range "bytes=N-" begins; -1 without one.
func readBareRequest(in *bufio.Reader) (name string, from int64, err error) {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return "", 0, err
	}
	fields := bytes.Fields(line)
	if len(fields) != 3 {
		return "", 0, fmt.Errorf("request line %q", line)
	}
	name, from = string(fields[1]), -1
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return "", 0, err
		}
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			return name, from, nil
		}
		if rng, ok := bytes.CutPrefix(line, []byte("Range: bytes=")); ok {
			if from, err = strconv.ParseInt(strings.TrimSuffix(string(rng), "-"), 10, 64); err != nil {
				return "", 0, fmt.Errorf("range %q", rng)
			}
		}
	}
}
