package cache

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"

	"firn/nix"
	"firn/nix/nar"
)

// What is in memory of directories is what is counted, however long the paths are.
func TestGitTreeMemory(t *testing.T) {
	inUse := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	g := gitHasher{algorithm: nix.SHA1}
	add := func(h nar.Header) {
		if err := g.add(&h, strings.NewReader("")); err != nil {
			t.Fatal(err)
		}
	}
	deep := ""
	add(nar.Header{Type: nar.TypeDirectory})
	for range 60 {
		deep += "/" + strings.Repeat("d", 250)
		add(nar.Header{Path: deep[1:], Type: nar.TypeDirectory})
	}
	before, counted := inUse(), g.held
	for i := range 4000 {
		add(nar.Header{Path: fmt.Sprintf("%s/%06d", deep[1:], i), Type: nar.TypeRegular})
	}
	held := inUse() - before
	if counted = g.held - counted; held > int64(counted) {
		t.Errorf("%d bytes are in memory, and %d counted", held, counted)
	}
	if _, err := g.end(); err != nil || g.held != 0 {
		t.Errorf("%d bytes are counted at the end, %v", g.held, err)
	}
}

// stuck is a NAR that is not read before its context ends.
type stuck struct{ reading chan struct{} }

func (stuck) Size() int64  { return 1000 }
func (stuck) Close() error { return nil }

func (s stuck) WriteRange(ctx context.Context, _ io.Writer, _, _ int64) error {
	s.reading <- struct{}{}
	<-ctx.Done()
	return context.Cause(ctx)
}

// So many git hashes are computed at once and no more. Who waits for that can give up.
func TestGitHashesAtOnce(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	n := stuck{make(chan struct{}, 2*maxGitHashes)}
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	for range maxGitHashes {
		work.Go(func() {
			if _, err := gitHash(ctx, n, nix.SHA1); err == nil {
				t.Error("a NAR that was not read has a hash")
			}
		})
	}
	for range maxGitHashes {
		<-n.reading
	}
	gone, leave := context.WithCancel(t.Context())
	leave()
	if _, err := gitHash(gone, n, nix.SHA1); err == nil {
		t.Error("it was not waited")
	}
	if len(n.reading) > 0 {
		t.Error("one more NAR was read")
	}
}
