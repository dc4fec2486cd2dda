//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"testing/iotest"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"firn/nix"
)

// kept is the title of the section about what a depot keeps.
const kept = "What a depot keeps"

// fillDepot fills a depot with two generations, and another with the first and the one that has new
// versions. It measures what each adds, and returns the state directory of the first. It imports,
// which verifies and keeps as a push does, but needs no client of Nix, and so takes a part of the
// time.
func (b *bench) fillDepot(ctx context.Context, p program, m *material) (string, error) {
	begin := time.Now()
	state, other := filepath.Join(b.work, "depot-"+string(p.column)), filepath.Join(b.work, "versions-"+string(p.column))
	s, err := b.start(ctx, p.serve(state, "--store", "off"), nil) // which makes the cache
	if err != nil {
		return "", err
	}
	s.stop()
	if err := runIn(ctx, b.work, p.path, "import", "--state", state, filepath.Join(m.flat, "plain")); err != nil {
		return "", err
	}
	first, firstFrames, err := sizes(state)
	if err != nil {
		return "", err
	}
	files, _, err := sizes(filepath.Join(m.flat, "zstd"))
	if err != nil {
		return "", err
	}
	row := b.results.row(kept, "all of the first generation", megabytes, atMost(1, nixFiles))
	row.Values[nixFiles] = []float64{files}
	row.add(p.column, first)
	if err := runIn(ctx, b.work, "cp", "-a", state, other); err != nil {
		return "", err
	}
	for _, again := range []struct {
		generation
		state, what string
		frames, all Bar
	}{
		{m.rebuilt, state, "in which only hashes change", Bar{}, atMost(0.01, "")},
		{m.versions, other, "in which every eighth package has a new version", atMost(0.001, ""), atMost(0.0035, "")},
	} {
		from, err := b.start(ctx, b.programs[len(b.programs)-1].serve("", "--store", again.Root), nil)
		if err != nil {
			return "", err
		}
		err = runIn(ctx, b.work, p.path, "import", "--state", again.state, "http://"+from.addr, again.Everything.String())
		from.stop()
		if err != nil {
			return "", from.explain(err)
		}
		all, frames, err := sizes(again.state)
		if err != nil {
			return "", err
		}
		b.results.row(kept, "frames that a rebuild adds "+again.what, percent, again.frames).add(p.column, (frames-firstFrames)/firstFrames)
		b.results.row(kept, "all that a rebuild adds "+again.what, percent, again.all).add(p.column, (all-first)/first)
	}
	b.progress("%s: depots are filled (%.1f s)", p.column, time.Since(begin).Seconds())
	return state, nil
}

// sizes returns the sum of the sizes of all files below a directory, and of those that are packs of
// frames.
func sizes(dir string) (all, packs float64, err error) {
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		all += float64(info.Size())
		if filepath.Base(filepath.Dir(path)) == "packs" || filepath.Base(filepath.Dir(filepath.Dir(path))) == "packs" {
			packs += float64(info.Size())
		}
		return nil
	})
	return all, packs, err
}

// pushing is the title of the section about pushes over HTTP.
const pushing = "Pushes by nix copy over HTTP"

// pushes has real Nix push a part of the closure to each build of firn and to a server that keeps
// nothing.
func (b *bench) pushes(ctx context.Context, m *material) error {
	all := append([]program{{column: least}}, b.programs...)
	for round := range b.opts.Copies {
		for _, compression := range []string{"none", "zstd"} {
			row := b.results.row(pushing, map[string]string{"none": "uncompressed", "zstd": "compressed by Nix with zstd"}[compression], seconds, atMost(2.2, least))
			err := turns(round, all, func(p program) error {
				to, end, err := b.receiver(ctx, p)
				if err != nil {
					return err
				}
				defer end.stop()
				to.RawQuery = "parallel-compression=true&compression=" + compression
				unix.Sync() // so that nothing waits for what was written before
				took, err := b.nix(ctx, nil, "copy", "--from", m.pushed.Root, "--to", to.String(), m.pushed.Everything.String())
				row.add(p.column, took.Seconds())
				b.progress("push, %s, to %s: %.2f s", row.What, p.column, took.Seconds())
				return end.explain(err)
			})
			if err != nil {
				return err
			}
		}
	}
	for _, p := range b.programs {
		if err := b.uploads(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// receiver starts what a push goes to, with nothing in it. Of a build of firn the URL has a token.
func (b *bench) receiver(ctx context.Context, p program) (*url.URL, *server, error) {
	if p.column == least {
		s, err := b.start(ctx, ownCommand(sinkCommand), nil)
		if err != nil {
			return nil, nil, err
		}
		return &url.URL{Scheme: "http", Host: s.addr}, s, nil
	}
	state, err := os.MkdirTemp(b.work, "push-")
	if err != nil {
		return nil, nil, err
	}
	s, err := b.start(ctx, p.serve(state, "--store", "off"), nil)
	if err != nil {
		return nil, nil, err
	}
	token, err := p.token(ctx, state)
	if err != nil {
		s.stop()
		return nil, nil, s.explain(err)
	}
	return &url.URL{Scheme: "http", Host: s.addr, User: url.UserPassword("bench", token)}, s, nil
}

const (
	// uploads is how many NARs are uploaded at once when memory is measured, and uploadSize the
	// contents of each in bytes.
	uploads, uploadSize = 16, 1 << 30
	// uploadPart is how much of a NAR is sent before the client hangs up, in bytes; uploadPartQuick
	// in a quick run. What firn needs it needs by then; whole NARs take three times as long, and no
	// more memory.
	uploadPart, uploadPartQuick = 256 << 20, 1 << 20
)

// errHungUp ends an upload that is not to be whole.
var errHungUp = errors.New("the client has sent enough")

// uploads measures the memory of firn while it receives many large NARs at once.
func (b *bench) uploads(ctx context.Context, p program) error {
	to, s, err := b.receiver(ctx, p)
	if err != nil {
		return err
	}
	defer s.stop()
	part := int64(uploadPart)
	if b.opts.Quick {
		part = uploadPartQuick
	}
	group, ctx := errgroup.WithContext(ctx)
	for range uploads {
		group.Go(func() error {
			var name [32]byte // the hash of a file that never becomes whole
			rand.Read(name[:])
			one := *to
			one.Path = "/nar/" + nix.SHA256Sum(name).Nix32() + ".nar"
			var head []byte // of the NAR of a large file
			for _, word := range []string{"nix-archive-1", "(", "type", "regular", "contents"} {
				head = binary.LittleEndian.AppendUint64(head, uint64(len(word)))
				head = append(append(head, word...), make([]byte, -len(word)&7)...)
			}
			head = binary.LittleEndian.AppendUint64(head, uploadSize)
			text, w := io.Pipe()
			defer text.Close()
			go io.Copy(hex.NewEncoder(w), rand.Reader) // compresses to a half, and ends when nothing reads it any more
			r := io.MultiReader(bytes.NewReader(head), io.LimitReader(text, part), iotest.ErrReader(errHungUp))
			req, err := http.NewRequestWithContext(ctx, http.MethodPut, one.String(), r)
			if err != nil {
				return err
			}
			req.ContentLength = uploadSize
			resp, err := http.DefaultClient.Do(req)
			if errors.Is(err, errHungUp) {
				return nil
			}
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			answer, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
			return fmt.Errorf("PUT %s: %s before the upload ended: %s", one.Path, resp.Status, answer)
		})
	}
	if err := group.Wait(); err != nil {
		return s.explain(err)
	}
	_, peak, err := memoryOf(s.pid)
	b.results.row(takes, "resident at most, 16 uploads of 1 GB at once", megabytes, atMost(300e6, "")).add(p.column, peak)
	return err
}
