package cachetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"firn/internal/cache"
	"firn/nix"
)

// TestSink tests a sink, which open opens, empty, for every test, in [nix.DefaultStoreDir].
func TestSink(t *testing.T, open func(t testing.TB) cache.Sink) {
	for _, test := range []struct {
		name string
		run  func(t *sinkTester)
	}{
		{"Receive", testReceive},
		{"ReceiveRefuses", testReceiveRefuses},
		{"ReceiveReader", testReceiveReader},
		{"Publish", testPublish},
		{"PublishUnreceived", testPublishUnreceived},
		{"Published", testPublished},
		{"Basis", testBasis},
		{"References", testReferences},
		{"PublishAgain", testPublishAgain},
		{"Concurrent", testConcurrentSink},
		{"Cancelled", testCancelledSink},
		{"Log", testPutLog},
		{"Realisation", testPutRealisation},
		{"BuildTrace", testPutBuildTrace},
		{"Compressed", testCompressed},
		{"DebugInfo", testDebugInfo},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(&sinkTester{t, open(t)}) })
	}
}

// sinkTester is a sink under test.
type sinkTester struct {
	*testing.T
	sink cache.Sink
}

// URL is the name under which a client sends a file.
func URL(file []byte, suffix string) string {
	return "nar/" + nix.SHA256Sum(sha256.Sum256(file)).Nix32() + ".nar" + suffix
}

// noise returns bytes that do not compress.
func noise(n int) string {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return string(b)
}

// samples are paths of several kinds.
func samples(t testing.TB) []Path {
	refs := NewPath(t, nix.DefaultStoreDir, "refs", strings.Repeat(noise(100)+"/nix/store/"+absent, 5000))
	return []Path{
		NewPath(t, nix.DefaultStoreDir, "hello.txt", "hello\n"),
		NewPath(t, nix.DefaultStoreDir, "empty", ""),
		NewPath(t, nix.DefaultStoreDir, "zeros", string(make([]byte, 3<<20))),
		NewPath(t, nix.DefaultStoreDir, "noise", noise(3<<20+1)),
		refs,
		NewTree(t, nix.DefaultStoreDir, "tree", map[string]string{"bin/sh": "#!/bin/sh\n", "etc/conf": "", "lib/so": noise(100_000)}),
	}
}

// NewTree returns the path of a directory with the given files.
// Its path hash is that of its NAR; it has no content address.
func NewTree(t testing.TB, dir nix.StoreDir, name string, files map[string]string) Path {
	t.Helper()
	archive := TreeNAR(t, files)
	hash := nix.SHA256Sum(sha256.Sum256(archive))
	path, err := dir.ParseBase(hash.Nix32()[:32] + "-" + name)
	if err != nil {
		t.Fatal(err)
	}
	return Path{&nix.PathInfo{Path: path, NARHash: hash, NARSize: int64(len(archive))}, archive}
}

func (t *sinkTester) receive(p Path) cache.Received {
	t.Helper()
	r, err := t.sink.Receive(t.Context(), cache.Upload{URL: URL(p.NAR, ""), NAR: bytes.NewReader(p.NAR)})
	if err != nil {
		t.Fatalf("Receive of %s: %v", p.Info.Path, err)
	}
	return r
}

func (t *sinkTester) publish(info *nix.PathInfo) *nix.PathInfo {
	t.Helper()
	there, err := t.sink.Publish(t.Context(), info, Unchecked())
	if err != nil {
		t.Fatalf("Publish of %s: %v", info.Path, err)
	}
	return there
}

// wantNone checks that nothing was received under a URL.
func (t *sinkTester) wantNone(url string) {
	t.Helper()
	if r, err := t.sink.Received(t.Context(), url); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("Received of %s: %v, %v, want ErrNotFound", url, r, err)
	}
}

// wantInfo checks that the sink has a path, and that it is this.
func (t *sinkTester) wantInfo(p Path) {
	t.Helper()
	info, err := t.sink.Source.PathInfo(t.Context(), p.Info.Path.Hash())
	if err != nil {
		t.Errorf("PathInfo of %s: %v", p.Info.Path, err)
		return
	}
	if diff := cmp.Diff(describe(p.Info), describe(info)); diff != "" {
		t.Errorf("PathInfo of %s (-want +got):\n%s", p.Info.Path, diff)
	}
}

func testReceive(t *sinkTester) {
	for _, p := range samples(t) {
		url := URL(p.NAR, "")
		t.wantNone(url)
		plain := cache.Received{NARHash: p.Info.NARHash, NARSize: p.Info.NARSize, FileHash: p.Info.NARHash, FileSize: p.Info.NARSize}
		for range 2 {
			if diff := cmp.Diff(text(plain), text(t.receive(p))); diff != "" {
				t.Errorf("Receive of %s (-want +got):\n%s", p.Info.Path, diff)
			}
		}
		// The same NAR once more, compressed, by another URL, and of a known hash.
		file := cache.Received{NARHash: p.Info.NARHash, NARSize: p.Info.NARSize, FileHash: nix.SHA256Sum([32]byte{1}), FileSize: 17, Compression: nix.XZ}
		called := 0
		got, err := t.sink.Receive(t.Context(), cache.Upload{
			URL: url + ".xz", NAR: bytes.NewReader(p.NAR), NARHash: p.Info.NARHash, NARSize: p.Info.NARSize, Compression: nix.XZ,
			File: func() (nix.Hash, int64, error) { called++; return file.FileHash, file.FileSize, nil },
		})
		if err != nil {
			t.Fatalf("Receive of a file: %v", err)
		}
		if called != 1 {
			t.Errorf("File was called %d times", called)
		}
		if diff := cmp.Diff(text(file), text(got)); diff != "" {
			t.Errorf("Receive of a file (-want +got):\n%s", diff)
		}
		for url, want := range map[string]cache.Received{url: plain, url + ".xz": file} {
			got, err := t.sink.Received(t.Context(), url)
			if err != nil {
				t.Fatalf("Received of %s: %v", url, err)
			}
			if diff := cmp.Diff(text(want), text(got)); diff != "" {
				t.Errorf("Received of %s (-want +got):\n%s", url, diff)
			}
			n, err := t.sink.OpenReceived(t.Context(), got)
			if err != nil {
				t.Fatalf("OpenReceived of %s: %v", url, err)
			}
			wantRange(t.T, n, p, 0, n.Size())
			wantRange(t.T, n, p, 50, 20)
			if err := n.Close(); err != nil {
				t.Errorf("close what was received: %v", err)
			}
		}
		if _, err := t.sink.Source.PathInfo(t.Context(), p.Info.Path.Hash()); !errors.Is(err, cache.ErrNotFound) {
			t.Errorf("PathInfo of what is not published: %v, want ErrNotFound", err)
		}
	}
	unknown := cache.Received{NARHash: nix.SHA256Sum([32]byte{7}), NARSize: 112}
	if _, err := t.sink.OpenReceived(t.Context(), unknown); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("OpenReceived of what was not received: %v, want ErrNotFound", err)
	}
}

func text(r cache.Received) string {
	return fmt.Sprintf("NAR %s of %d bytes, file %s of %d bytes", r.NARHash, r.NARSize, r.FileHash, r.FileSize)
}

func testReceiveRefuses(t *sinkTester) {
	p := NewPath(t, nix.DefaultStoreDir, "noise", noise(2<<20))
	broken := errors.New("line broken")
	changed := bytes.Replace(p.NAR, []byte("contents"), []byte("contemns"), 1)
	padded := bytes.Clone(FileNAR("x"))
	padded[96+1] = 1
	for i, test := range []struct {
		name string
		u    cache.Upload
		want error
	}{
		{"nothing", cache.Upload{NAR: strings.NewReader("")}, cache.ErrInvalid},
		{"no NAR", cache.Upload{NAR: strings.NewReader("<html>this is no NAR</html>")}, cache.ErrInvalid},
		{"cut in its head", cache.Upload{NAR: bytes.NewReader(p.NAR[:50])}, cache.ErrInvalid},
		{"cut in its contents", cache.Upload{NAR: bytes.NewReader(p.NAR[:1<<20])}, cache.ErrInvalid},
		{"cut in its end", cache.Upload{NAR: bytes.NewReader(p.NAR[:len(p.NAR)-1])}, cache.ErrInvalid},
		{"a byte too many", cache.Upload{NAR: bytes.NewReader(append(bytes.Clone(p.NAR), 0))}, cache.ErrInvalid},
		{"wrong word", cache.Upload{NAR: bytes.NewReader(changed)}, cache.ErrInvalid},
		{"wrong padding", cache.Upload{NAR: bytes.NewReader(padded)}, cache.ErrInvalid},
		{"another hash", cache.Upload{NAR: bytes.NewReader(p.NAR), NARHash: nix.SHA256Sum([32]byte{})}, cache.ErrInvalid},
		{"shorter than it should be", cache.Upload{NAR: bytes.NewReader(p.NAR), NARSize: p.Info.NARSize + 8}, cache.ErrInvalid},
		{"longer than it should be", cache.Upload{NAR: bytes.NewReader(p.NAR), NARSize: p.Info.NARSize - 8}, cache.ErrInvalid},
		{"the line breaks at once", cache.Upload{NAR: iotest.ErrReader(broken)}, broken},
		{"the line breaks", cache.Upload{NAR: io.MultiReader(bytes.NewReader(p.NAR[:1<<20]), iotest.ErrReader(broken))}, broken},
		{"the line breaks at the end", cache.Upload{NAR: io.MultiReader(bytes.NewReader(p.NAR), iotest.ErrReader(broken))}, broken},
		{"the file is not what it should be", cache.Upload{NAR: bytes.NewReader(p.NAR), File: func() (nix.Hash, int64, error) {
			return nix.Hash{}, 0, cache.Refuse(cache.ErrInvalid, "no such file")
		}}, cache.ErrInvalid},
	} {
		test.u.URL = fmt.Sprintf("nar/%d.nar", i)
		_, err := t.sink.Receive(t.Context(), test.u)
		if !errors.Is(err, test.want) {
			t.Errorf("%s: Receive: %v, want %v", test.name, err, test.want)
		}
		if refusal, ok := errors.AsType[*cache.Refusal](err); test.want == cache.ErrInvalid && (!ok || refusal.Text() == "") {
			t.Errorf("%s: Receive says nothing for the client: %v", test.name, err)
		}
		t.wantNone(test.u.URL)
	}
	// What was refused is not kept under its hash either.
	if _, err := t.sink.Publish(t.Context(), p.Info, Unchecked()); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("Publish of what was refused: %v, want ErrNotFound", err)
	}
}

// testPublished checks that an upload tells whether its NAR is published.
func testPublished(t *sinkTester) {
	for _, p := range samples(t) {
		url := URL(p.NAR, "")
		want := func(when string, published bool) {
			t.Helper()
			r, err := t.sink.Received(t.Context(), url)
			if err != nil || r.Published != published {
				t.Errorf("Received %s: published: %v, %v, want %v", when, r.Published, err, published)
			}
		}
		t.receive(p)
		want("before it is published", false)
		t.publish(p.Info)
		want("after it is published", true)
		t.receive(p)
		want("once more", true)
	}
}

// Unchecked is a basis that nothing changes, for tests of something else.
func Unchecked() cache.Basis {
	return cache.Basis{Paths: math.MaxInt64, Visited: map[nix.PathHash]bool{}, Partial: true}
}

// testBasis checks that what is referred to is known to be, and is published only by those who have
// looked at that.
func testBasis(t *sinkTester) {
	all := samples(t)
	p, other, last := all[0], all[1], all[4]
	basis := func(want bool) cache.Basis {
		t.Helper()
		b, err := t.sink.Basis(t.Context(), other.Info.Path.Hash())
		if err != nil || b.Dangling != want {
			t.Errorf("%s is awaited: %v, %v, want %v", other.Info.Path, b.Dangling, err, want)
		}
		return b
	}
	refused := func(b cache.Basis) {
		t.Helper()
		if _, err := t.sink.Publish(t.Context(), other.Info, b); !errors.Is(err, cache.ErrChanged) || !errors.Is(err, cache.ErrUnavailable) {
			t.Errorf("Publish of %s: %v, want ErrChanged", other.Info.Path, err)
		}
	}
	for _, p := range []Path{p, other, last} {
		t.receive(p)
	}
	before := basis(false)
	t.publish(refersTo(p, p, other))
	refused(before)
	searched := basis(true)
	refused(searched)
	searched.Visited = map[nix.PathHash]bool{all[2].Info.Path.Hash(): true, last.Info.Path.Hash(): true}
	t.publish(last.Info)
	refused(searched)
	again := basis(true)
	again.Visited = searched.Visited
	if _, err := t.sink.Publish(t.Context(), other.Info, again); err != nil {
		t.Errorf("Publish of %s: %v", other.Info.Path, err)
	}
	if _, err := t.sink.Publish(t.Context(), other.Info, before); err != nil {
		t.Errorf("Publish of %s, which is there: %v", other.Info.Path, err)
	}
}

// refersTo is a path with references.
func refersTo(p Path, refs ...Path) *nix.PathInfo {
	info := *p.Info
	info.References = nil
	for _, r := range refs {
		info.References = append(info.References, r.Info.Path)
	}
	info.References = nix.SortPaths(info.References)
	return &info
}

func testReferences(t *sinkTester) {
	all := samples(t)
	for _, p := range all[:3] {
		t.receive(p)
		t.publish(refersTo(p, p, all[3]))
	}
	var hashes []nix.PathHash
	for _, p := range all {
		hashes = append(hashes, p.Info.Path.Hash())
	}
	found := 0
	got := make(map[nix.StorePath]bool)
	for r, err := range t.sink.References(t.Context(), hashes) {
		if err != nil {
			t.Fatalf("References: %v", err)
		}
		found++
		got[r.Path] = slices.Equal(r.References, nix.SortPaths([]nix.StorePath{r.Path, all[3].Info.Path})) && !r.Withheld
	}
	if !got[all[0].Info.Path] || !got[all[1].Info.Path] || !got[all[2].Info.Path] || found != 3 {
		t.Errorf("References: %v", got)
	}
	for r, err := range t.sink.References(t.Context(), nil) {
		t.Errorf("References of nothing: %v, %v", r, err)
	}
}

// testReceiveReader checks how the reader of a NAR is used.
func testReceiveReader(t *sinkTester) {
	p := NewPath(t, nix.DefaultStoreDir, "noise", noise(1<<20))
	var r *watched
	upload := func(from io.Reader, whole bool) cache.Upload {
		r = &watched{t: t, from: from}
		return cache.Upload{URL: URL(p.NAR, ".x"), NAR: r, File: func() (nix.Hash, int64, error) {
			if whole && !r.ended {
				t.Error("File was called before the NAR had ended")
			}
			t.wantNone(URL(p.NAR, ".x"))
			return nix.SHA256Sum([32]byte{1}), 5, nil
		}}
	}
	for _, from := range []io.Reader{
		io.MultiReader(bytes.NewReader(p.NAR[:1000]), iotest.ErrReader(io.ErrClosedPipe)),
		iotest.DataErrReader(bytes.NewReader(append(bytes.Clone(p.NAR), 0))),
	} {
		_, err := t.sink.Receive(t.Context(), upload(from, false))
		r.returned()
		if err == nil {
			t.Error("Receive of what is wrong: no error")
		}
	}
	for _, from := range []io.Reader{iotest.HalfReader(bytes.NewReader(p.NAR)), iotest.DataErrReader(bytes.NewReader(p.NAR))} {
		u := upload(from, true)
		u.URL += "y"
		if _, err := t.sink.Receive(t.Context(), u); err != nil {
			t.Errorf("Receive: %v", err)
		}
		r.returned()
	}
	if _, err := t.sink.Receive(t.Context(), cache.Upload{NAR: iotest.OneByteReader(bytes.NewReader(FileNAR("x")))}); err != nil {
		t.Errorf("Receive byte by byte: %v", err)
	}
}

// watched is a reader that must be read by one goroutine at a time, and not after the call that it was given to.
type watched struct {
	t     *sinkTester
	from  io.Reader
	mu    sync.Mutex
	ended bool
	over  bool
}

func (w *watched) Read(p []byte) (int, error) {
	if !w.mu.TryLock() {
		w.t.Error("the NAR is read by two goroutines at once")
		return 0, io.ErrClosedPipe
	}
	defer w.mu.Unlock()
	if w.over {
		w.t.Error("the NAR is read after Receive has returned")
	}
	n, err := w.from.Read(p)
	w.ended = w.ended || err != nil
	return n, err
}

func (w *watched) returned() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
}

func testPublish(t *sinkTester) {
	all := samples(t)
	key := newKey(t, "theirs-1")
	for i := range all {
		info := *all[i].Info
		info.Deriver = storePath(t, absent+".drv")
		info.References = nix.SortPaths([]nix.StorePath{info.Path, all[0].Info.Path})
		info.CA = nix.ContentAddress{}
		if i == 0 {
			info = *all[0].Info
		}
		other, err := nix.NewSignature("ml-dsa-1", make([]byte, 3309))
		if err != nil {
			t.Fatal(err)
		}
		info.Signatures = []nix.Signature{key.Sign(info.AppendFingerprint(nil)), key.Sign([]byte("something else")), other}
		info.Extra = []nix.Field{{Name: "Provenance", Value: `{"type":"copied"}`}}
		all[i].Info = &info
	}
	for _, p := range all {
		t.receive(p)
		before := version(t, t.sink.Source)
		there := t.publish(p.Info)
		if diff := cmp.Diff(describe(p.Info), describe(there)); diff != "" {
			t.Errorf("Publish of %s (-want +got):\n%s", p.Info.Path, diff)
		}
		if before.Hit(version(t, t.sink.Source)) {
			t.Errorf("Version stayed %v though %s was published", before, p.Info.Path)
		}
		t.wantInfo(p)
	}
	Run(t.T, func(*testing.T) Fixture { return Fixture{Source: t.sink.Source, Paths: all} })

	// Another path of the same NAR.
	other := *all[0].Info
	other.Path, other.Signatures, other.CA = storePath(t, absent), nil, nix.ContentAddress{}
	t.publish(&other)
	t.wantInfo(Path{&other, all[0].NAR})
	t.wantInfo(all[0])
}

func testPublishUnreceived(t *sinkTester) {
	p, q := NewPath(t, nix.DefaultStoreDir, "a", "a"), NewPath(t, nix.DefaultStoreDir, "b", noise(500_000))
	wantNot := func(info *nix.PathInfo) {
		t.Helper()
		if _, err := t.sink.Publish(t.Context(), info, Unchecked()); !errors.Is(err, cache.ErrNotFound) {
			t.Errorf("Publish of %s: %v, want ErrNotFound", info.Path, err)
		}
		if _, err := t.sink.Source.PathInfo(t.Context(), info.Path.Hash()); !errors.Is(err, cache.ErrNotFound) {
			t.Errorf("PathInfo of %s: %v, want ErrNotFound", info.Path, err)
		}
	}
	wantNot(p.Info)
	t.receive(p)
	wantNot(q.Info)
	longer := *p.Info
	longer.NARSize += 8
	wantNot(&longer)
	// A NAR that came without a URL is received as well.
	if _, err := t.sink.Receive(t.Context(), cache.Upload{NAR: bytes.NewReader(q.NAR)}); err != nil {
		t.Fatalf("Receive without a URL: %v", err)
	}
	t.publish(q.Info)
	t.wantInfo(q)
	t.wantNone("")
}

func testPublishAgain(t *sinkTester) {
	p := NewPath(t, nix.DefaultStoreDir, "a", "a")
	fingerprint := p.Info.AppendFingerprint(nil)
	one, two := newKey(t, "one-1").Sign(fingerprint), newKey(t, "two-1").Sign(fingerprint)
	with := func(sigs ...nix.Signature) Path {
		info := *p.Info
		info.Signatures = sigs
		return Path{&info, p.NAR}
	}
	t.receive(p)
	t.publish(with(one).Info)
	for _, step := range []struct {
		name            string
		publish, expect Path
		changes         bool
	}{
		{"the same", with(one), with(one), false},
		{"no signature", with(), with(one), false},
		{"another signature", with(two), with(one, two), true},
		{"known signatures", with(two, one), with(one, two), false},
	} {
		before := version(t, t.sink.Source)
		there := t.publish(step.publish.Info)
		if diff := cmp.Diff(describe(step.expect.Info), describe(there)); diff != "" {
			t.Errorf("%s: Publish (-want +got):\n%s", step.name, diff)
		}
		if step.changes && before.Hit(version(t, t.sink.Source)) {
			t.Errorf("%s: Version stayed %v", step.name, before)
		}
		t.wantInfo(step.expect)
	}

	// Another NAR for the same path changes nothing.
	q := NewPath(t, nix.DefaultStoreDir, "a", "another build")
	t.receive(q)
	other := *q.Info
	other.Path, other.CA = p.Info.Path, nix.ContentAddress{}
	if there := t.publish(&other); there.NARHash != p.Info.NARHash {
		t.Errorf("Publish of another NAR: there is %s, want %s", there.NARHash, p.Info.NARHash)
	}
	t.wantInfo(with(one, two))
	n, err := t.sink.Source.OpenNAR(t.Context(), with(one, two).Info)
	if err != nil {
		t.Fatalf("OpenNAR: %v", err)
	}
	defer n.Close()
	wantRange(t.T, n, p, 0, n.Size())
}

// testConcurrentSink has many clients push the same at once.
func testConcurrentSink(t *sinkTester) {
	all := samples(t)
	var wg sync.WaitGroup
	for i := range 4 {
		key := newKey(t, fmt.Sprintf("builder-%d", i))
		wg.Go(func() {
			for _, p := range all {
				if _, err := t.sink.Receive(t.Context(), cache.Upload{URL: URL(p.NAR, ""), NAR: bytes.NewReader(p.NAR)}); err != nil {
					t.Errorf("Receive of %s: %v", p.Info.Path, err)
					return
				}
				info := *p.Info
				info.Signatures = []nix.Signature{key.Sign(info.AppendFingerprint(nil))}
				if _, err := t.sink.Publish(t.Context(), &info, Unchecked()); err != nil {
					t.Errorf("Publish of %s: %v", p.Info.Path, err)
				}
			}
		})
	}
	wg.Wait()
	for i, p := range all {
		info, err := t.sink.Source.PathInfo(t.Context(), p.Info.Path.Hash())
		if err != nil {
			t.Fatalf("PathInfo of %s: %v", p.Info.Path, err)
		}
		if len(info.Signatures) != 4 {
			t.Errorf("%s has %d signatures, want those of all who pushed it", p.Info.Path, len(info.Signatures))
		}
		all[i].Info = info
	}
	testConcurrent(t.T, Fixture{Source: t.sink.Source, Paths: all})
}

func testCancelledSink(t *sinkTester) {
	p := NewPath(t, nix.DefaultStoreDir, "noise", noise(1<<20))
	ctx, cancel := context.WithCancel(t.Context())
	url := URL(p.NAR, "")
	u := cache.Upload{URL: url, NAR: io.MultiReader(bytes.NewReader(p.NAR[:1000]), cancelling(cancel), bytes.NewReader(p.NAR[1000:]))}
	if _, err := t.sink.Receive(ctx, u); err == nil {
		// It may have gone through, but then it is there.
		if _, err := t.sink.Received(t.Context(), url); err != nil {
			t.Errorf("Receive with a context that ends: no error, and then %v", err)
		}
		return
	}
	t.wantNone(url)
	if _, err := t.sink.Publish(ctx, p.Info, Unchecked()); err == nil {
		t.Error("Publish of what was not received, with an ended context: no error")
	}
}

// cancelling is a reader of nothing that calls a function.
type cancelling func()

func (c cancelling) Read([]byte) (int, error) { c(); return 0, io.EOF }
