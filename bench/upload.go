//go:build linux

package main

import (
	"context"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"firn/nix"
)

// Many clients upload large NARs at once: what firn needs of memory for that is bounded.

const (
	// uploads is how many NARs are uploaded at once when memory is measured, and uploadSize the contents of each, in bytes;
	// uploadSizeQuick in a quick run.
	uploads                     = 16
	uploadSize, uploadSizeQuick = 1 << 30, 32 << 20
	// uploadPart is how much of a NAR is sent before the client hangs up, in bytes. What firn needs it needs by then;
	// whole NARs take three times as long, and no more memory.
	uploadPart = 256 << 20
)

// errHungUp ends an upload that is not to be whole.
var errHungUp = errors.New("the client has sent enough")

// uploadAtOnce measures the memory of firn while it receives many large NARs.
func (b *shootout) uploadAtOnce(ctx context.Context, program string, size, part int64) error {
	s, err := b.startDepot(ctx, program, filepath.Join(b.work, "uploads"))
	if err != nil {
		return err
	}
	defer s.stop()
	names, err := uploadNames(size)
	if err != nil {
		return err
	}
	begin := time.Now()
	group, groupCtx := errgroup.WithContext(ctx)
	for i, name := range names {
		group.Go(func() error { return s.upload(groupCtx, name, size, part, i) })
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("%d uploads at once: %w%s", uploads, err, s.logTail())
	}
	m, err := memoryOf(s.PID)
	if err != nil {
		return err
	}
	b.samples.add(pushPlain, metricUploads.Key, float64(m.Peak))
	b.progress("%s: %s %s, in %.1f s", metricUploads.Title, metricUploads.format(float64(m.Peak)), metricUploads.Unit, time.Since(begin).Seconds())
	return nil
}

// upload sends the i-th NAR, or a part of it.
func (s *depotServer) upload(ctx context.Context, name string, size, part int64, i int) error {
	r, w := io.Pipe()
	go func() {
		err := writeUpload(&cutWriter{w, part}, size)
		if err == nil {
			_, err = w.Write(uploadTail(i))
		}
		w.CloseWithError(err)
	}()
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://"+s.Addr.String()+"/nar/"+name+".nar", r)
	if err != nil {
		return err
	}
	request.ContentLength = int64(len(uploadHead(size))) + size + int64(len(uploadTail(i))) - tailSize
	request.SetBasicAuth("bench", s.token)
	response, err := http.DefaultClient.Do(request)
	if errors.Is(err, errHungUp) {
		return nil
	}
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode/100 != 2 {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1<<10))
		return fmt.Errorf("PUT %s: %s: %s", name, response.Status, text)
	}
	return nil
}

// cutWriter takes so many bytes, and no more.
type cutWriter struct {
	w    io.Writer
	left int64
}

func (c *cutWriter) Write(p []byte) (int, error) {
	if c.left < int64(len(p)) {
		return 0, errHungUp
	}
	c.left -= int64(len(p))
	return c.w.Write(p)
}

// tailSize is by how many bytes at the end of their files the NARs differ, so that their hashes share nearly all of the work.
const tailSize = 16

// uploadHead is the NAR of a file of size bytes, a multiple of 8, up to its contents.
func uploadHead(size int64) []byte {
	var head []byte
	for _, word := range []string{"nix-archive-1", "(", "type", "regular", "contents"} {
		head = appendWord(head, word)
	}
	return binary.LittleEndian.AppendUint64(head, uint64(size))
}

// uploadTail is the end of the i-th NAR: the last bytes of the file, and what follows.
func uploadTail(i int) []byte {
	return appendWord(fmt.Appendf(nil, "%*d", tailSize, i), ")")
}

// appendWord appends a string as NARs have it.
func appendWord(dst []byte, word string) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, uint64(len(word)))
	dst = append(dst, word...)
	return append(dst, make([]byte, -len(word)&7)...)
}

// writeUpload writes a NAR up to its tail: lines that compress well and occur once each.
func writeUpload(w io.Writer, size int64) error {
	if _, err := w.Write(uploadHead(size)); err != nil {
		return err
	}
	const perWrite = 64 << 10
	block := make([]byte, 0, perWrite+128)
	for line, left := uint64(0), size-tailSize; left > 0; {
		block = block[:0]
		for ; len(block) < perWrite; line++ {
			block = append(block, "a line of a file that is rather large, and its number: "...)
			block = strconv.AppendUint(block, line*0x9e3779b97f4a7c15, 36)
			block = append(block, '\n')
		}
		part := block[:min(int64(len(block)), left)]
		if _, err := w.Write(part); err != nil {
			return err
		}
		left -= int64(len(part))
	}
	return nil
}

// uploadNames are the file hashes of all uploads. What they have in common is hashed once.
func uploadNames(size int64) ([]string, error) {
	sum := sha256.New()
	if err := writeUpload(sum, size); err != nil {
		return nil, err
	}
	state, err := sum.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return nil, err
	}
	names := make([]string, uploads)
	for i := range names {
		if err := sum.(encoding.BinaryUnmarshaler).UnmarshalBinary(state); err != nil {
			return nil, err
		}
		sum.Write(uploadTail(i))
		names[i] = nix.SHA256Sum([32]byte(sum.Sum(nil))).Nix32()
	}
	return names, nil
}
