package session

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/nix"
	"firn/nix/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rights are what the client of a test may do, until that changes.
type rights struct{ now atomic.Uint32 }

func (r *rights) Name() string { return "somebody" }
func (r *rights) May(want cache.Rights, _ string) bool {
	return cache.Rights(r.now.Load())&want == want
}

// A tester is a conversation with a cache in memory.
type tester struct {
	*testing.T
	sink   *cachetest.Memory
	cache  *cache.Cache
	rights rights
	gone   atomic.Bool // the key of the client was revoked
	conn   net.Conn
	client *protocol.WorkerClient
	cancel context.CancelFunc // ends the server
	ended  chan error
}

func start(t *testing.T) *tester {
	t.Helper()
	s := &tester{T: t, sink: cachetest.NewMemory(), ended: make(chan error, 1)}
	s.rights.now.Store(uint32(cache.Read | cache.Push))
	var err error
	if s.cache, err = cache.New([]cache.Source{s.sink}, cache.Options{Sink: cache.SinkOf(s.sink), Private: true}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.cancel = cancel
	ours, theirs := connected(t)
	s.conn = ours
	go func() {
		defer theirs.Close()
		s.ended <- Serve(ctx, theirs, Command{Protocol: Worker}, Options{
			Name:  "main",
			Cache: func(context.Context) (*cache.Cache, error) { return s.cache, nil },
			Who: func(context.Context) (cache.Principal, error) {
				if s.gone.Load() {
					return nil, cache.ErrUnauthenticated
				}
				return &s.rights, nil
			},
		})
	}()
	t.Cleanup(func() { ours.Close(); cancel() })
	if s.client, err = protocol.DialWorker(ours, nix.DefaultStoreDir); err != nil {
		t.Fatal(err)
	}
	return s
}

// connected returns the two ends of a connection that holds, unlike a net.Pipe, what both say at once.
func connected(t *testing.T) (ours, theirs net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if ours, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if theirs, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return ours, theirs
}

func (t *tester) path(name, contents string) cachetest.Path {
	return cachetest.NewPath(t, nix.DefaultStoreDir, name, contents)
}

func (t *tester) push(p cachetest.Path) error { return t.client.AddNAR(p.Info, bytes.NewReader(p.NAR)) }

// refused checks that the client was told why, in words that are for it.
func (t *tester) refused(err error, words string) {
	t.Helper()
	var answer *protocol.AnswerError
	if !errors.As(err, &answer) || !strings.Contains(answer.Message, words) {
		t.Errorf("got %v, want an answer with %q", err, words)
	}
}

func TestPush(t0 *testing.T) {
	t := start(t0)
	a := t.path("a", "contents")
	for range 2 {
		if err := t.push(a); err != nil {
			t.Fatal(err)
		}
	}
	info, err := t.client.PathInfo(a.Info.Path)
	if err != nil || info.NARHash != a.Info.NARHash || info.CA != a.Info.CA {
		t.Errorf("path info %+v, %v", info, err)
	}
	var nar bytes.Buffer
	if err := t.client.WriteNAR(&nar, info); err != nil || !bytes.Equal(nar.Bytes(), a.NAR) {
		t.Errorf("the NAR has %d bytes, %v", nar.Len(), err)
	}

	// What is not as it is said to be is refused, the conversation goes on, and nothing of it is there.
	for words, change := range map[string]func(p *cachetest.Path){
		"this is no NAR": func(p *cachetest.Path) { p.NAR[0]++ },
		"this NAR has":   func(p *cachetest.Path) { p.NAR[len(p.NAR)-30]++ },
		"ends too early": func(p *cachetest.Path) { p.NAR = p.NAR[:len(p.NAR)-8]; p.Info.NARSize -= 8 },
		"unexpected EOF": func(p *cachetest.Path) { p.NAR = p.NAR[:len(p.NAR)-8] },
		"CA: ":           func(p *cachetest.Path) { p.Info.CA = a.Info.CA },
		"refers to what ": func(p *cachetest.Path) {
			p.Info.References, p.Info.CA = []nix.StorePath{t.path("x", "x").Info.Path}, nix.ContentAddress{}
		},
	} {
		p := t.path("bad", "other contents, which are longer")
		change(&p)
		t.refused(t.push(p), words)
		if _, err := t.client.PathInfo(p.Info.Path); !errors.Is(err, protocol.ErrNotFound) {
			t.Errorf("%s: it is there: %v", words, err)
		}
	}
	if err := t.push(t.path("bad", "other contents, which are longer")); err != nil {
		t.Error(err)
	}
}

// Rights are looked at for each question.
func TestRights(t0 *testing.T) {
	t := start(t0)
	a, b := t.path("a", "a"), t.path("b", "b")
	if err := t.push(a); err != nil {
		t.Fatal(err)
	}
	t.rights.now.Store(uint32(cache.Read))
	t.refused(t.push(b), "this key may not push to the cache main")
	t.refused(t.client.AddSignatures(a.Info.Path, nil), "this key may not push")
	if _, err := t.client.PathInfo(a.Info.Path); err != nil {
		t.Error(err)
	}
	t.rights.now.Store(0)
	_, err := t.client.PathInfo(a.Info.Path)
	t.refused(err, "there is no cache named main that this key may use")
	t.rights.now.Store(uint32(cache.Read | cache.Push))
	t.gone.Store(true)
	t.refused(t.push(b), "this key has expired or was revoked")
	t.gone.Store(false)
	if err := t.push(b); err != nil {
		t.Error(err)
	}
	t.sink.Fail(errors.New("a secret of the machine"))
	_, err = t.client.PathInfo(t.path("c", "c").Info.Path)
	t.refused(err, "try again later")
	t.sink.Fail(nil)
	t.conn.Close()
	if err := <-t.ended; err != nil {
		t.Errorf("the conversation ended with %v", err)
	}
}

// A key that is revoked while it pushes has nothing published, however long before that the push began.
func TestRevokedWhilePushing(t0 *testing.T) {
	for name, revoke := range map[string]func(*tester){
		"revoked":   func(t *tester) { t.gone.Store(true) },
		"read only": func(t *tester) { t.rights.now.Store(uint32(cache.Read)) },
	} {
		t0.Run(name, func(t0 *testing.T) {
			t := start(t0)
			a := t.path("a", strings.Repeat("contents", 10000))
			half, rest := io.Pipe()
			pushed := make(chan error, 1)
			go func() { pushed <- t.client.AddNAR(a.Info, half) }()
			rest.Write(a.NAR[:len(a.NAR)-8])
			revoke(t)
			rest.Write(a.NAR[len(a.NAR)-8:])
			rest.Close()
			t.refused(<-pushed, "this key ")
			if _, err := t.sink.PathInfo(t.Context(), a.Info.Path.Hash()); !errors.Is(err, cache.ErrNotFound) {
				t.Errorf("the path was published: %v", err)
			}
		})
	}
}

// So is a build log, which takes the place of another one.
func TestRevokedWhileLogging(t0 *testing.T) {
	t := start(t0)
	drv, err := nix.DefaultStoreDir.ParseBase("00000000000000000000000000000000-a.drv")
	if err != nil {
		t.Fatal(err)
	}
	s := &store{Options: Options{
		Name:  "main",
		Cache: func(context.Context) (*cache.Cache, error) { return t.cache, nil },
		Who: func(context.Context) (cache.Principal, error) {
			if t.gone.Load() {
				return nil, cache.ErrUnauthenticated
			}
			return &t.rights, nil
		},
	}, dir: nix.DefaultStoreDir}
	err = s.PutBuildLog(t.Context(), drv, io.MultiReader(strings.NewReader("a log"), readerFunc(func([]byte) (int, error) {
		t.gone.Store(true)
		return 0, io.EOF
	})))
	if err == nil || err.Error() != "this key has expired or was revoked" {
		t.Errorf("got %v", err)
	}
	if log, err := t.cache.OpenLog(t.Context(), drv); err == nil {
		log.Close()
		t.Error("the log was kept")
	}
}

// A client that has a turn, and sends a NAR too slowly, is hung up on; one that pauses while nothing is read of it is not.
func TestPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var hungUp atomic.Bool
		half, rest := io.Pipe()
		p := &paced{r: half, slow: func() { hungUp.Store(true); rest.CloseWithError(io.ErrClosedPipe) }}
		read := func(n int) error {
			_, err := io.ReadFull(p, make([]byte, n))
			return err
		}
		go func() {
			for range 4 { // a slice in just less than patience
				time.Sleep(patience/4 - time.Second)
				rest.Write(make([]byte, slice/4))
			}
			time.Sleep(patience - time.Second)
			rest.Write(make([]byte, slice/2))
		}()
		for range 4 {
			if err := read(slice / 4); err != nil {
				t.Fatal(err)
			}
		}
		if err := read(slice / 2); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * patience) // nobody reads
		if hungUp.Load() {
			t.Fatal("it was hung up on while nobody read")
		}
		if err := read(1); !errors.Is(err, cache.ErrUnavailable) || !hungUp.Load() {
			t.Errorf("a slow client: %v, hung up %t", err, hungUp.Load())
		}
	})
}

// A log takes memory as well: it has its turn, and one that comes too slowly ends that.
func TestPacedLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := cachetest.NewMemory()
		c, err := cache.New([]cache.Source{sink}, cache.Options{Sink: cache.SinkOf(sink)})
		if err != nil {
			t.Fatal(err)
		}
		drv, err := nix.DefaultStoreDir.ParseBase("00000000000000000000000000000000-a.drv")
		if err != nil {
			t.Fatal(err)
		}
		who := &rights{}
		who.now.Store(uint32(cache.Read | cache.Push))
		log, rest := io.Pipe()
		var turns atomic.Int32 // that are under way
		s := &store{Options: Options{
			Name:  "main",
			Cache: func(context.Context) (*cache.Cache, error) { return c, nil },
			Who:   func(context.Context) (cache.Principal, error) { return who, nil },
			Slot: func(context.Context) (func(), error) {
				turns.Add(1)
				return func() { turns.Add(-1) }, nil
			},
			Logger: slog.New(slog.DiscardHandler),
		}, dir: nix.DefaultStoreDir, hangUp: func() { rest.CloseWithError(io.ErrClosedPipe) }}
		kept := make(chan error, 1)
		go func() { kept <- s.PutBuildLog(t.Context(), drv, log) }()
		rest.Write([]byte("a line"))
		time.Sleep(patience - time.Second)
		if n := turns.Load(); n != 1 {
			t.Errorf("%d turns are under way, want 1", n)
		}
		time.Sleep(2 * time.Second)
		select {
		case err := <-kept:
			if !errors.Is(err, cache.ErrUnavailable) || turns.Load() != 0 {
				t.Errorf("a slow log: %v, and %d turns are under way", err, turns.Load())
			}
		default:
			t.Error("a slow log is waited for")
			rest.Close()
			<-kept
		}
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// A server that ends hangs up between two questions, and not in the middle of one.
func TestEnd(t0 *testing.T) {
	t := start(t0)
	a := t.path("a", strings.Repeat("contents", 10000))
	half, rest := io.Pipe()
	pushed := make(chan error, 1)
	go func() { pushed <- t.client.AddNAR(a.Info, half) }()
	rest.Write(a.NAR[:50000])
	t.cancel()
	rest.Write(a.NAR[50000:])
	rest.Close()
	if err := <-pushed; err != nil {
		t.Errorf("a push ended with %v", err)
	}
	if _, err := t.sink.PathInfo(t.Context(), a.Info.Path.Hash()); err != nil {
		t.Error(err)
	}
	<-t.ended
}

// A client that goes while it is sent something is no failure of the server, which would have to be looked after.
func TestGoneWhilePulling(t *testing.T) {
	a := cachetest.NewPath(t, nix.DefaultStoreDir, "a", strings.Repeat("contents", 1<<20)) // more than a connection holds
	c, err := cache.New([]cache.Source{cachetest.NewMemory(a)}, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := connected(t)
	defer ours.Close()
	var log bytes.Buffer
	ended := make(chan error, 1)
	go func() {
		defer theirs.Close()
		ended <- Serve(t.Context(), theirs, Command{Protocol: Worker}, Options{
			Cache:  func(context.Context) (*cache.Cache, error) { return c, nil },
			Who:    func(context.Context) (cache.Principal, error) { return cache.Anybody, nil },
			Logger: slog.New(slog.NewTextHandler(&log, nil)),
		})
	}()
	client, err := protocol.DialWorker(ours, nix.DefaultStoreDir)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.WriteNAR(writerFunc(func(p []byte) (int, error) { return 0, ours.Close() }), a.Info); err == nil {
		t.Error("the client got all of it")
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "broke") {
		t.Errorf("the conversation ended with %v", err)
	}
	if log.Len() > 0 {
		t.Errorf("it was logged:\n%s", &log)
	}
}

// A cache that there is not, or that a key may not use, is the same to a client.
func TestNoCache(t *testing.T) {
	for _, find := range []func(context.Context) (*cache.Cache, error){
		func(context.Context) (*cache.Cache, error) { return nil, cache.ErrNotFound },
		func(context.Context) (*cache.Cache, error) { return cache.New(nil, cache.Options{Private: true}) },
	} {
		ours, theirs := net.Pipe()
		err := Serve(t.Context(), theirs, Command{Protocol: Legacy}, Options{
			Name: "x", Cache: find, Who: func(context.Context) (cache.Principal, error) { return cache.Anybody, nil },
		})
		if err == nil || !strings.HasPrefix(err.Error(), "there is no cache named x that this key may use: ") {
			t.Errorf("got %v", err)
		}
		ours.Close()
	}
}

// Conversations that share a Behind have few larger NARs that are read and not settled, and any number of small ones.
func TestBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBehind()
		var waited atomic.Int32
		settled := make(chan struct{})
		for range maxBehind + 3 {
			go func() {
				b.wait(smallNAR+1, settled)
				waited.Add(1)
			}()
		}
		b.wait(smallNAR, settled)
		synctest.Wait()
		if n := waited.Load(); n != maxBehind {
			t.Errorf("%d are behind, want %d", n, maxBehind)
		}
		close(settled)
		synctest.Wait()
		if n := waited.Load(); n != maxBehind+3 {
			t.Errorf("%d of %d went on once they were settled", n, maxBehind+3)
		}
		next := make(chan struct{})
		b.wait(smallNAR+1, next) // there is space again
		close(next)
	})
}
