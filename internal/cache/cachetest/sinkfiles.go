package cachetest

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"firn/internal/cache"
	"firn/nix"
)

func testPutLog(t *sinkTester) {
	logger, ok := t.sink.Source.(cache.Logger)
	if !ok {
		t.Fatal("the sink keeps logs and does not give them")
	}
	drv := storePath(t, "1"+absent[1:]+".drv")
	for _, log := range []string{"a\n", strings.Repeat("a line of a log\n", 100_000), ""} {
		if err := t.sink.PutLog(t.Context(), drv, strings.NewReader(log)); err != nil {
			t.Fatalf("PutLog: %v", err)
		}
		broken := errors.New("line broken")
		err := t.sink.PutLog(t.Context(), drv, io.MultiReader(strings.NewReader("no\n"), iotest.ErrReader(broken)))
		if !errors.Is(err, broken) {
			t.Errorf("PutLog of what breaks: %v, want %v", err, broken)
		}
		testLogger(t.T, Fixture{Source: logger, Logs: map[nix.StorePath][]byte{drv: []byte(log)}})
	}
}

func testPutRealisation(t *sinkTester) {
	realiser, ok := t.sink.Source.(cache.Realiser)
	if !ok {
		t.Fatal("the sink keeps realisations and does not give them")
	}
	id := nix.RealisationID{DrvHash: nix.SHA256Sum([32]byte{5}), Output: "out"}
	dependency := nix.RealisationID{DrvHash: nix.SHA256Sum([32]byte{6}), Output: "dev"}
	first := nix.Realisation{ID: id, OutPath: storePath(t, absent), Dependencies: map[nix.RealisationID]nix.StorePath{dependency: storePath(t, absent+"-dev")}}
	one, two := newKey(t, "one-1").Sign(first.AppendFingerprint(nil)), newKey(t, "two-1").Sign(first.AppendFingerprint(nil))
	other := nix.Realisation{ID: id, OutPath: storePath(t, absent+"-2")}
	for _, step := range []struct {
		put  nix.Realisation
		sigs []nix.Signature
		want []nix.Signature
	}{
		{first, []nix.Signature{one}, []nix.Signature{one}},
		{first, []nix.Signature{two}, []nix.Signature{one, two}},
		{first, nil, []nix.Signature{one, two}},
		{other, []nix.Signature{one}, []nix.Signature{one, two}},
	} {
		step.put.Signatures = step.sigs
		if err := t.sink.PutRealisation(t.Context(), &step.put, Unchecked()); err != nil {
			t.Fatalf("PutRealisation: %v", err)
		}
		got, err := realiser.Realisation(t.Context(), id)
		if err != nil {
			t.Fatalf("Realisation: %v", err)
		}
		want := first
		want.Signatures = step.want
		if diff := cmp.Diff(asJSON(t, &want), asJSON(t, got)); diff != "" {
			t.Errorf("Realisation (-want +got):\n%s", diff)
		}
	}
	testRealiser(t.T, Fixture{Source: t.sink.Source})
}

func testPutBuildTrace(t *sinkTester) {
	realiser, ok := t.sink.Source.(cache.Realiser)
	if !ok {
		t.Fatal("the sink keeps build traces and does not give them")
	}
	drv := storePath(t, absent+".drv")
	first := nix.BuildTrace{Drv: drv, Output: "out", OutPath: storePath(t, absent)}
	one, two := newKey(t, "one-1").Sign(first.AppendFingerprint(nil)), newKey(t, "two-1").Sign(first.AppendFingerprint(nil))
	other := nix.BuildTrace{Drv: drv, Output: "out", OutPath: storePath(t, absent+"-2")}
	for _, step := range []struct {
		put  nix.BuildTrace
		sigs []nix.Signature
		want []nix.Signature
	}{
		{first, []nix.Signature{one}, []nix.Signature{one}},
		{first, []nix.Signature{two}, []nix.Signature{one, two}},
		{first, nil, []nix.Signature{one, two}},
		{other, []nix.Signature{one}, []nix.Signature{one, two}},
	} {
		step.put.Signatures = step.sigs
		if err := t.sink.PutBuildTrace(t.Context(), &step.put, Unchecked()); err != nil {
			t.Fatalf("PutBuildTrace: %v", err)
		}
		got, err := realiser.BuildTrace(t.Context(), drv, "out")
		if err != nil {
			t.Fatalf("BuildTrace: %v", err)
		}
		want := first
		want.Signatures = step.want
		if diff := cmp.Diff(asJSON(t, &want), asJSON(t, got)); diff != "" {
			t.Errorf("BuildTrace (-want +got):\n%s", diff)
		}
	}
	if _, err := realiser.BuildTrace(t.Context(), drv, "dev"); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("BuildTrace of another output: %v, want ErrNotFound", err)
	}
}

var tagPattern = regexp.MustCompile(`^[A-Za-z0-9-]+$`)

func testCompressed(t *sinkTester) {
	s, ok := t.sink.Source.(cache.Compressed)
	if !ok {
		return // it keeps NARs as they are
	}
	if s.Compression() != nix.Zstd {
		t.Fatalf("this test cannot decompress %s", s.Compression())
	}
	decoder, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Close()
	for _, p := range samples(t) {
		if _, _, err := s.StatCompressed(t.Context(), p.Info); !errors.Is(err, cache.ErrNotFound) {
			t.Errorf("StatCompressed of what is not there: %v, want ErrNotFound", err)
		}
		if _, _, err := s.OpenCompressed(t.Context(), p.Info); !errors.Is(err, cache.ErrNotFound) {
			t.Errorf("OpenCompressed of what is not there: %v, want ErrNotFound", err)
		}
		t.receive(p)
		info := t.publish(p.Info)
		size, tag, err := s.StatCompressed(t.Context(), info)
		if err != nil {
			t.Fatalf("StatCompressed of %s: %v", p.Info.Path, err)
		}
		if !tagPattern.MatchString(tag) {
			t.Errorf("StatCompressed of %s: the tag is %q", p.Info.Path, tag)
		}
		n, openTag, err := s.OpenCompressed(t.Context(), info)
		if err != nil || openTag != tag {
			t.Fatalf("OpenCompressed of %s: %v, the tag is %q and not %q", p.Info.Path, err, openTag, tag)
		}
		var file bytes.Buffer
		if err := n.WriteRange(t.Context(), &file, 0, n.Size()); err != nil {
			t.Fatalf("write compressed NAR of %s: %v", p.Info.Path, err)
		}
		if n.Size() != size || int64(file.Len()) != size {
			t.Errorf("compressed NAR of %s: Size is %d, StatCompressed says %d, %d bytes came", p.Info.Path, n.Size(), size, file.Len())
		}
		if got, err := decoder.DecodeAll(file.Bytes(), nil); err != nil || !bytes.Equal(got, p.NAR) {
			t.Errorf("the compressed NAR of %s decompresses to something else (error: %v)", p.Info.Path, err)
		}
		random := rand.New(rand.NewPCG(1, 2))
		compressed := Path{p.Info, file.Bytes()}
		for range 20 {
			off := random.Int64N(size)
			wantRange(t.T, n, compressed, off, random.Int64N(size-off+1))
		}
		if s, ok := s.(cache.CompressedReceiver); ok {
			again, againTag, err := s.OpenReceivedCompressed(t.Context(), cache.Received{NARHash: p.Info.NARHash, NARSize: p.Info.NARSize})
			if err != nil || againTag != tag {
				t.Fatalf("OpenReceivedCompressed of %s: %v, the tag is %q and not %q", p.Info.Path, err, againTag, tag)
			}
			wantRange(t.T, again, compressed, 0, size)
			if err := again.Close(); err != nil {
				t.Errorf("close compressed NAR of %s: %v", p.Info.Path, err)
			}
		}
		if err := n.WriteRange(t.Context(), io.Discard, 0, size+1); err == nil {
			t.Errorf("compressed NAR of %s: a range past its end: no error", p.Info.Path)
		}
		if err := n.Close(); err != nil {
			t.Errorf("close compressed NAR of %s: %v", p.Info.Path, err)
		}
	}
}

func testDebugInfo(t *sinkTester) {
	s, ok := t.sink.Source.(cache.DebugInformer)
	if !ok {
		return // it knows none
	}
	const id = "0123456789abcdef0123456789abcdef01234567"
	const member = "lib/debug/.build-id/01/23456789abcdef0123456789abcdef01234567.debug"
	p := NewTree(t, nix.DefaultStoreDir, "debug", map[string]string{
		member: "debug", "lib/debug/.build-id/zz/23456789abcdef0123456789abcdef01234567.debug": "no",
	})
	if _, _, err := s.DebugInfo(t.Context(), id); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("DebugInfo of what is not there: %v, want ErrNotFound", err)
	}
	t.receive(p)
	if _, _, err := s.DebugInfo(t.Context(), id); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("DebugInfo of what is not published: %v, want ErrNotFound", err)
	}
	t.publish(p.Info)
	path, got, err := s.DebugInfo(t.Context(), id)
	if err != nil || path != p.Info.Path.Hash() || got != member {
		t.Errorf("DebugInfo: %s, %q, %v, want %s, %q", path, got, err, p.Info.Path.Hash(), member)
	}
}
