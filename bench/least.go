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
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/klauspost/compress/zstd"

	"firn/nix/nar"
)

// The least is what a program in Go must do to serve the same bytes: one goroutine a connection, a
// request line split at its spaces, and
//
//	/plain/HASH.narinfo    a narinfo from memory
//	/zstd/…, /depot/…      a file, by sendfile
//	/nar/BASE              the NAR of a store path, made from its files
//	/unpacked/HASH/SIZE    the NAR of SIZE bytes that is compressed in the file /depot/HASH.nar.zst
//
// It is a yardstick and no web server: it trusts its client and its files.

const (
	leastCommand = "least" // the first argument that makes this program the least
	sinkCommand  = "sink"  // the first argument that makes this program a server that keeps nothing
	// leastWhole is the size in bytes up to which a file is read into memory and sent with what is
	// around it; larger ones go by sendfile. leastBlock is how much is sent at once.
	leastWhole, leastBlock = 128 << 10, 256 << 10
)

type leastServer struct {
	www      string            // has the directories plain, zstd and depot
	store    string            // has the store paths
	narinfos map[string][]byte // answers, by path
	plans    sync.Map          // of NARs, by base name; a server that knows nothing of its store would look at each file for its size
}

// serveLeast serves on addr until the process ends.
func serveLeast(addr, www, store string) error {
	s := &leastServer{www: www, store: store, narinfos: make(map[string][]byte)}
	files, err := filepath.Glob(filepath.Join(www, "plain", "*.narinfo"))
	if err != nil {
		return err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		s.narinfos["/plain/"+filepath.Base(file)] = append(okHead(nil, int64(len(text))), text...)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			err := s.serve(c.(*net.TCPConn))
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
				fmt.Fprintf(os.Stderr, "serve %s: %v\n", c.RemoteAddr(), err)
			}
		}()
	}
}

func okHead(dst []byte, size int64) []byte {
	return fmt.Appendf(dst, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size)
}

func (s *leastServer) serve(c *net.TCPConn) error {
	in := bufio.NewReader(c)
	out := make([]byte, 0, leastBlock)
	unpack, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer unpack.Close()
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		fields := bytes.Fields(line)
		if len(fields) != 3 {
			return fmt.Errorf("request line %q", line)
		}
		name := string(fields[1])
		for len(bytes.TrimSpace(line)) > 0 {
			if line, err = in.ReadSlice('\n'); err != nil {
				return err
			}
		}
		switch dir, rest, _ := strings.Cut(name[1:], "/"); {
		case s.narinfos[name] != nil:
			_, err = c.Write(s.narinfos[name])
		case dir == "nar":
			err = s.sendNAR(c, out, rest)
		case dir == "unpacked":
			err = s.sendUnpacked(c, unpack, rest)
		case dir == "zstd" || dir == "depot":
			err = sendFile(c, filepath.Join(s.www, name))
		default:
			_, err = c.Write([]byte("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"))
		}
		if err != nil {
			return err
		}
	}
}

func sendFile(c *net.TCPConn, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err := c.Write(okHead(nil, info.Size())); err != nil {
		return err
	}
	_, err = io.CopyN(c, f, info.Size())
	return err
}

// sendUnpacked sends what is compressed in the file of a NAR. rest is HASH/SIZE.
func (s *leastServer) sendUnpacked(c *net.TCPConn, unpack *zstd.Decoder, rest string) error {
	hash, size, _ := strings.Cut(rest, "/")
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(s.www, "depot", hash+".nar.zst"))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unpack.Reset(f); err != nil {
		return err
	}
	if _, err := c.Write(okHead(nil, n)); err != nil {
		return err
	}
	_, err = unpack.WriteTo(c)
	return err
}

// A piece is bytes of a NAR, and the file whose contents follow them; "": none.
type piece struct {
	text []byte
	file string
	size int64
}

// sendNAR makes a NAR from the files of a store path.
func (s *leastServer) sendNAR(c *net.TCPConn, out []byte, base string) error {
	known, ok := s.plans.Load(base)
	if !ok {
		p, err := planOf(filepath.Join(s.store, base))
		if err != nil {
			return err
		}
		known, _ = s.plans.LoadOrStore(base, p)
	}
	p := known.(*plan)
	out = okHead(out[:0], p.size)
	for i := range p.pieces {
		piece := &p.pieces[i]
		out = append(out, piece.text...)
		if piece.file == "" {
			continue
		}
		// os.Open would ask epoll first, which takes no files.
		fd, err := syscall.Open(piece.file, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		whole := piece.size <= leastWhole
		if !whole || len(out)+int(piece.size) > cap(out) {
			_, err = c.Write(out)
			out = out[:0]
		}
		n := int64(len(out))
		if whole && err == nil {
			out = out[:n+piece.size]
			_, err = syscall.Read(fd, out[n:])
			syscall.Close(fd)
		} else {
			f := os.NewFile(uintptr(fd), piece.file)
			if err == nil {
				_, err = io.CopyN(c, f, piece.size)
			}
			f.Close()
		}
		if err != nil {
			return err
		}
	}
	_, err := c.Write(out)
	return err
}

// A plan is what a NAR has between the contents of files.
type plan struct {
	pieces []piece
	size   int64
}

func planOf(name string) (*plan, error) {
	ctx := context.Background()
	layout, err := nar.NewLayout(ctx, name)
	if err != nil {
		return nil, err
	}
	p := &plan{size: layout.Size()}
	var at int64
	add := func(to int64, file string, size int64) error {
		var text bytes.Buffer
		err := layout.WriteRange(ctx, &text, name, at, to-at)
		p.pieces = append(p.pieces, piece{text.Bytes(), file, size})
		at = to + size
		return err
	}
	for h := range layout.Listing().All() {
		if h.Type == nar.TypeRegular && h.Size > 0 {
			if err := add(h.Offset, filepath.Join(name, h.Path), h.Size); err != nil {
				return nil, err
			}
		}
	}
	return p, add(p.size, "", 0)
}

// A sink is a binary cache that keeps nothing: NARs are read and forgotten. What a push to it takes
// is what Nix itself takes. Narinfos are remembered, because a client asks for them again before it
// sends what refers to them.
type sink struct{ narinfos sync.Map }

func (s *sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodPut && path.Ext(r.URL.Path) == ".narinfo":
		const most = 1 << 20
		text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.narinfos.Store(r.URL.Path, text)
	case r.Method == http.MethodPut:
		// If the client hangs up, it does not read an answer.
		_, _ = io.Copy(io.Discard, r.Body)
	case r.URL.Path == "/nix-cache-info":
		fmt.Fprintln(w, "StoreDir: /nix/store")
	default:
		text, ok := s.narinfos.Load(r.URL.Path)
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(text.([]byte))
	}
}
