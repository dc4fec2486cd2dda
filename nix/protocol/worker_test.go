package protocol

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"firn/nix"
)

func talkWorker(t *testing.T, m *memory, opts Options, minor uint64, features ...string) *peer {
	t.Helper()
	opts.Version = "firn test"
	p := talk(t, func(conn net.Conn) error { return ServeWorker(t.Context(), conn, m.store(), opts) })
	p.put(workerMagicClient, 1<<8|minor) // as new clients do; old ones wait for the answer
	p.wantUint(workerMagicServer)
	p.wantUint(workerVersion)
	if minor >= 38 {
		p.putStrings(append(features, "disable-set-options")...)
		p.wantUint(1)
		p.wantString(featureBuildTrace)
	}
	p.put(0, 0)
	if minor >= 33 {
		p.wantString("firn test")
	}
	if minor >= 35 {
		p.wantUint(notTrusted)
	}
	p.wantUint(stderrLast)
	return p
}

func (p *peer) wantError(minor uint64, want string) {
	p.Helper()
	p.wantUint(stderrError)
	if minor < 26 {
		p.wantString(want)
		p.wantUint(1)
		return
	}
	p.wantString("Error")
	p.wantUint(0)
	p.wantString("Error")
	p.wantString(want)
	p.wantUint(0)
	p.wantUint(0)
}

func (p *peer) wantLast(numbers ...uint64) {
	p.Helper()
	p.wantUint(stderrLast)
	for _, n := range numbers {
		p.wantUint(n)
	}
}

// putFrames sends text in frames of n bytes.
func (p *peer) putFrames(text []byte, n int) {
	for frame := range slices.Chunk(text, n) {
		p.put(uint64(len(frame)))
		p.w.Write(frame)
	}
	p.put(0)
}

// several is what AddMultipleToStore has in its frames.
func several(infos []*nix.PathInfo, nars ...[]byte) []byte {
	var b bytes.Buffer
	w := newWire(struct {
		io.Reader
		io.Writer
	}{nil, &b})
	w.putUint(uint64(len(infos)))
	for i, info := range infos {
		w.putPath(info.Path)
		w.putInfo(info)
		w.w.Write(nars[i])
	}
	w.flush()
	return b.Bytes()
}

func TestWorker(t0 *testing.T) {
	for minor := uint64(21); minor <= 39; minor++ {
		t0.Run(fmt.Sprint("1.", minor), func(t0 *testing.T) {
			t := talkWorker(t0, filled(), Options{}, minor)
			t.put(opSetOptions, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
			t.putString("name")
			t.putString("value")
			t.wantLast()
			for p, valid := range map[nix.StorePath]uint64{pathA: 1, absent: 0} {
				t.put(opIsValidPath)
				t.putPath(p)
				t.wantLast(valid)
			}
			t.put(opQueryValidPaths)
			t.putPaths([]nix.StorePath{absent, pathB, pathA})
			if minor >= 27 {
				t.put(1)
			}
			t.wantLast()
			t.wantPaths(pathB, pathA)
			t.put(opQueryAllValidPaths)
			t.wantLast()
			t.wantPaths(pathA, pathB)

			t.put(opQueryPathInfo)
			t.putPath(absent)
			t.wantLast(0)
			t.put(opQueryPathInfo)
			t.putPath(pathA)
			t.wantLast(1)
			if info := t.info(dir, pathA); t.err != nil || info.NARSize != int64(len(narA)) || info.References[0] != pathB || len(info.Signatures) != 2 {
				t.Fatalf("path info %+v, %v", info, t.err)
			}
			t.put(opQueryPathFromHashPart)
			t.putString(pathA.Hash().String())
			t.wantLast()
			t.wantString(pathA.String())
			t.put(opQueryPathFromHashPart)
			t.putString(absent.Hash().String())
			t.wantLast()
			t.wantString("")

			t.put(opQuerySubstitutablePaths)
			t.putPaths([]nix.StorePath{pathA})
			t.wantLast(0)
			t.put(opQuerySubstitutablePathInfo)
			t.putPath(pathA)
			t.wantLast(0)
			t.put(opQuerySubstitutablePathInfos, 1)
			t.putPath(pathA)
			if minor >= 22 {
				t.putString("")
			}
			t.wantLast(0)

			t.put(opAddTempRoot)
			t.putPath(absent)
			t.wantLast(1)
			t.put(opEnsurePath)
			t.putPath(pathA)
			t.wantLast(1)
			t.put(opEnsurePath)
			t.putPath(absent)
			t.wantError(minor, "is not there")
			t.put(opBuildPaths)
			t.putStrings(pathA.String(), drv.String()+"!out")
			t.put(0)
			t.wantError(minor, "which builds nothing")
			t.put(opBuildPaths)
			t.putStrings(pathA.String(), builtDrv.String()+"!out", builtDrv.String()+"!*")
			t.put(0)
			t.wantLast(1)
			t.put(opQueryMissing)
			t.putStrings(pathA.String(), absent.String(), drv.String()+"!*")
			t.wantLast(0, 0)
			t.wantPaths(absent)
			t.wantUint(0)
			t.wantUint(0)

			t.put(opBuildPathsWithResults)
			wanted := []string{pathA.String(), absent.String()}
			t.putStrings(wanted...)
			t.put(0)
			t.wantLast(2)
			for i, status := range []uint64{builtAlready, buildNoSubstituters} {
				t.wantString(wanted[i])
				t.wantUint(status)
				t.wantString([]string{"", "is not there"}[i])
				for _, since := range []uint64{29, 29, 29, 29, 37, 37, 28} {
					if minor >= since {
						t.wantUint(0)
					}
				}
			}

			// A client that has this for a builder does not look at results.
			t.put(opBuildPathsWithResults)
			t.putStrings(pathA.String(), drv.String()+"!out")
			t.put(0)
			t.wantError(minor, "builds nothing")

			t.put(opBuildPathsWithResults)
			t.putStrings(builtDrv.String() + "!out")
			t.put(0)
			t.wantLast(1)
			t.wantString(builtDrv.String() + "!out")
			t.wantUint(builtAlready)
			t.wantString("")
			for _, since := range []uint64{29, 29, 29, 29, 37, 37} {
				if minor >= since {
					t.wantUint(0)
				}
			}
			if minor >= 28 {
				t.wantUint(1)
				t.wantString(nix.RealisationID{DrvHash: hashOf(builtDrv), Output: "out"}.String())
				t.wantString(`"outPath":"` + pathB.Base() + `"`)
			}
			t.put(opQueryDerivationOutputMap)
			t.putPath(builtDrv)
			t.wantLast(1)
			t.wantString("out")
			t.wantString(pathB.String())
			t.put(opQueryDerivationOutputs)
			t.putPath(builtDrv)
			t.wantLast()
			t.wantPaths(pathB)
			t.put(opQueryDerivationOutputNames)
			t.putPath(builtDrv)
			t.wantLast(1)
			t.wantString("out")

			t.put(opBuildDerivation)
			t.putPath(drv)
			t.putDerivation()
			t.put(0)
			t.wantLast(buildFailed)
			t.wantString("builds nothing")
			for _, since := range []uint64{29, 29, 29, 29, 37, 37, 28} {
				if minor >= since {
					t.wantUint(0)
				}
			}

			for _, question := range []struct { // after each the conversation goes on
				why string
				ask func()
			}{
				{"it removes", func() { t.put(opCollectGarbage, 0, 0, 0, 0, 0, 0, 0) }},
				{"no roots", func() { t.put(opAddPermRoot); t.putPath(pathA); t.putString("/root") }},
				{"no roots", func() { t.put(opAddIndirectRoot); t.putString("/root") }},
				{"no roots", func() { t.put(opFindRoots) }},
				{"refer to another", func() { t.put(opQueryReferrers); t.putPath(pathA) }},
				{"were built to it", func() { t.put(opQueryValidDerivers); t.putPath(pathA) }},
				{"is not there", func() { t.put(opQueryDerivationOutputs); t.putPath(drv) }},
				{"is not there", func() { t.put(opQueryDerivationOutputNames); t.putPath(drv) }},
				{"is not there", func() { t.put(opQueryDerivationOutputMap); t.putPath(drv) }},
				{"no output", func() { t.put(opBuildPaths); t.putStrings(builtDrv.String() + "!dev"); t.put(0) }},
				{"its store", func() { t.put(opOptimiseStore) }},
				{"its store", func() { t.put(opVerifyStore, 1, 0) }},
				{"cannot add text", func() {
					t.put(opAddTextToStore)
					t.putString("text")
					t.putString("contents")
					t.putPaths([]nix.StorePath{pathA})
				}},
			} {
				question.ask()
				t.wantError(minor, question.why)
			}
			t.put(opNarFromPath)
			t.putPath(absent)
			t.wantError(minor, "is not there")
			t.put(opNarFromPath)
			t.putPath(pathA)
			t.wantLast()
			t.wantNAR(narA)
			t.put(1000)
			t.wantError(minor, "operation 1000")
			t.wantEnd("what cannot be answered")
		})
	}
}

func TestWorkerAdd(t0 *testing.T) {
	const minor = 38
	a, b := infoOf(pathA, narA, pathB), infoOf(pathB, narB)
	m := newMemory()
	t := talkWorker(t0, m, Options{}, minor)
	for _, text := range [][]byte{several(nil), several([]*nix.PathInfo{b, a}, narB, narA)} {
		t.put(opAddMultipleToStore, 0, 0)
		t.putFrames(text, 1000)
		t.wantLast()
	}
	if !bytes.Equal(m.nars[pathA], narA) || !bytes.Equal(m.nars[pathB], narB) || m.paths[pathA] == nil {
		t.Errorf("the store has %v", m.paths)
	}
	t.put(opAddToStoreNar)
	t.putPath(absent)
	t.putInfo(infoOf(absent, narB))
	t.put(0, 0)
	t.putFrames(narB, 5)
	t.wantLast()

	// After what fails, the conversation goes on; what was there before the failure stays.
	wrong := infoOf(path('f', "f"), narA)
	refuse := func(text []byte, want string) {
		t.Helper()
		t.put(opAddMultipleToStore, 0, 0)
		t.flush()
		frames := seed(func(w *wire) { (&peer{wire: w}).putFrames(text, 1<<16) })
		written := make(chan error, 1)
		go func() { // the answer comes before all was sent
			_, err := t.conn.Write(frames)
			written <- err
		}()
		t.wantError(minor, want)
		if err := <-written; err != nil {
			t.Fatal(err)
		}
	}
	refuse(several([]*nix.PathInfo{wrong}, bytes.ToUpper(narA)), "is another one")
	refuse(several([]*nix.PathInfo{a}, narA[:500]), "unexpected EOF")
	refuse(append(several(nil), 1), "more than was announced")
	refuse([]byte{1, 0, 0, 0, 0, 0, 0, 0, 200, 0, 0, 0, 0, 0, 0, 0}, "unexpected EOF")
	refuse([]byte{1, 0, 0, 0, 0, 0, 0, 0, 200, 200, 0, 0, 0, 0, 0, 0}, "more than 4096")

	t.put(opAddBuildLog)
	t.putString(drv.Base())
	t.putFrames([]byte("the log"), 3)
	t.wantLast(1)
	if m.logs[drv] != "the log" {
		t.Errorf("the log is %q", m.logs[drv])
	}
	t.put(opAddSignatures)
	t.putPath(pathA)
	t.putSignatures(a.Signatures)
	t.wantLast(1)
	t.put(opAddToStore)
	t.putString("name")
	t.putString("fixed:r:sha256")
	t.putPaths(nil)
	t.put(0)
	t.putFrames(narB, 1000)
	t.wantError(minor, "cannot add name")

	t.put(opAddMultipleToStore, 0, 0, 1<<32)
	t.wantError(minor, "a frame of 4294967296 bytes")
	t.wantEnd("a frame of")
	t = talkWorker(t0, m, Options{}, minor)
	t.put(opAddMultipleToStore, 0, 0, 100, 1)
	t.wantEnd("unexpected EOF")

	m = filled()
	t = talkWorker(t0, m, Options{ReadOnly: true}, minor)
	t.put(opAddMultipleToStore, 0, 0)
	t.putFrames(several(nil), 100)
	t.wantError(minor, "may only read")
	t.put(opAddSignatures)
	t.putPath(pathA)
	t.putSignatures(nil)
	t.wantError(minor, "may only read")
	t.put(opNarFromPath)
	t.putPath(pathB)
	t.wantLast()
	t.wantNAR(narB)
	t.wantEnd("")
}

// Nix 2.3 is asked for each piece of a NAR, and not for one past its end.
func TestWorkerAddOld(t0 *testing.T) {
	m := newMemory()
	t := talkWorker(t0, m, Options{}, 21)
	t.put(opAddToStoreNar)
	t.putPath(pathA)
	t.putInfo(infoOf(pathA, narA))
	t.put(0, 0)
	for rest := narA; len(rest) > 0; {
		t.wantUint(stderrRead)
		n := t.uint()
		if t.err != nil || n > uint64(len(rest)) {
			t.Fatalf("asked for %d of %d bytes, %v", n, len(rest), t.err)
		}
		n = min(n, 999)
		t.putString(string(rest[:n]))
		rest = rest[n:]
	}
	t.wantLast()
	if !bytes.Equal(m.nars[pathA], narA) {
		t.Error("the NAR is another one")
	}
	t.wantEnd("")
}

func TestWorkerRealisations(t0 *testing.T) {
	id, err := nix.ParseRealisationID("sha256:" + strings.Repeat("ab", 32) + "!out")
	if err != nil {
		t0.Fatal(err)
	}
	r := &nix.Realisation{ID: id, OutPath: pathA}
	text, err := r.MarshalJSON()
	if err != nil {
		t0.Fatal(err)
	}
	t := talkWorker(t0, newMemory(), Options{}, 37)
	t.put(opQueryRealisation)
	t.putString(id.String())
	t.wantLast(0)
	t.put(opRegisterDrvOutput)
	t.putString(string(text))
	t.wantLast()
	t.put(opQueryRealisation)
	t.putString(id.String())
	t.wantLast(1)
	t.wantString(string(text))
	t.put(opRegisterDrvOutput)
	t.putString("{")
	t.wantError(37, "parse realisation")
	t.wantEnd("")

	t = talkWorker(t0, newMemory(), Options{}, 38, featureBuildTrace)
	ask := func() {
		t.put(opQueryRealisation)
		t.putPath(drv)
		t.putString("out")
	}
	ask()
	t.wantLast(0)
	t.put(opRegisterDrvOutput)
	t.putPath(drv)
	t.putString("out")
	t.putPath(pathA)
	t.putSignatures(infoOf(pathA, narA).Signatures)
	t.wantLast()
	ask()
	t.wantLast(1)
	t.wantString(pathA.String())
	t.wantUint(2)
	t.wantString("k-1:")
	t.wantString("ml-dsa-87:")
	t.wantEnd("")
}

func TestWorkerMalformed(t0 *testing.T) {
	for want, begin := range map[string]func(t *peer){
		"store path":   func(t *peer) { t.put(opQueryPathInfo); t.putString("/etc/passwd") },
		"no path":      func(t *peer) { t.put(opQueryPathInfo, 0) },
		"bytes in a":   func(t *peer) { t.put(opQueryPathInfo, 1<<62) },
		"paths, more":  func(t *peer) { t.put(opQueryValidPaths, 1<<21) },
		"settings, mo": func(t *peer) { t.put(opSetOptions, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1<<40) },
		"NAR hash":     func(t *peer) { t.put(opAddToStoreNar); t.putPath(pathA); t.put(0, 0, 0, 0, 1, 0, 0, 0, 0, 0) },
	} {
		t := talkWorker(t0, newMemory(), Options{}, 38)
		begin(t)
		t.wantError(38, want)
		t.wantEnd(want)
	}
	t := talk(t0, func(conn net.Conn) error { return ServeWorker(t0.Context(), conn, newMemory().store(), Options{}) })
	t.putUint(legacyMagicClient)
	t.wantEnd("not the worker protocol")
	t = talk(t0, func(conn net.Conn) error { return ServeWorker(t0.Context(), conn, newMemory().store(), Options{}) })
	t.put(workerMagicClient, 1<<8|20)
	t.wantUint(workerMagicServer)
	t.wantUint(workerVersion)
	t.wantEnd("version 1.20")
}

// fuzzed is a connection on which a client says something, and hears nothing.
type fuzzed struct {
	io.Reader
	written int
}

func (f *fuzzed) Write(p []byte) (int, error) {
	f.written += len(p)
	return len(p), nil
}

func fuzz(f *testing.F, begin []uint64, serve func(ctx context.Context, conn io.ReadWriter, store Store, opts Options) error) {
	f.Fuzz(func(t *testing.T, input []byte) {
		var b bytes.Buffer
		w := newWire(struct {
			io.Reader
			io.Writer
		}{nil, &b})
		for _, n := range begin {
			w.putUint(n)
		}
		w.flush()
		b.Write(input)
		conn := &fuzzed{Reader: &b}
		done := make(chan struct{})
		go func() {
			defer close(done)
			serve(t.Context(), conn, filled().store(), Options{Memory: func() (func(), bool) { return nil, false }})
		}()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatal("it goes on and on")
		}
		if most := 1<<16 + 1000*len(input) + len(narA)*(len(input)/8+1); conn.written > most {
			t.Errorf("%d bytes were answered with %d", len(input), conn.written)
		}
	})
}

// seed returns what a client says.
func seed(say func(w *wire)) []byte {
	var b bytes.Buffer
	w := newWire(struct {
		io.Reader
		io.Writer
	}{nil, &b})
	say(w)
	w.flush()
	return b.Bytes()
}

func FuzzServeLegacy(f *testing.F) {
	for op := range uint64(10) {
		f.Add(seed(func(w *wire) {
			w.putUint(op)
			w.putPath(pathA)
			w.putInfo(infoOf(pathA, narB))
			w.w.Write(narB)
		}))
		f.Add(seed(func(w *wire) { w.putUint(op); w.putUint(0); w.putUint(0); w.putPaths([]nix.StorePath{pathA, absent}) }))
	}
	fuzz(f, []uint64{legacyMagicClient, legacyVersion}, ServeLegacy)
}

func FuzzServeWorker(f *testing.F) {
	seedWorker(f)
	fuzz(f, []uint64{workerMagicClient, 1<<8 | 37, 0, 0}, ServeWorker)
}

// Nix 2.3 sends NARs, and says what something was built to, in another way.
func FuzzServeOldWorker(f *testing.F) {
	seedWorker(f)
	fuzz(f, []uint64{workerMagicClient, workerOldest, 0, 0}, ServeWorker)
}

func seedWorker(f *testing.F) {
	for op := range uint64(48) {
		f.Add(seed(func(w *wire) { w.putUint(op); w.putPath(pathA); w.putUint(0) }))
		f.Add(seed(func(w *wire) { w.putUint(op); w.putPaths([]nix.StorePath{pathA, absent}); w.putUint(0) }))
	}
	f.Add(seed(func(w *wire) {
		text := several([]*nix.PathInfo{infoOf(pathB, narB)}, narB)
		for _, n := range []uint64{opAddMultipleToStore, 0, 0, uint64(len(text))} {
			w.putUint(n)
		}
		w.w.Write(text)
		w.putUint(0)
		w.putUint(opAddToStoreNar)
		w.putPath(pathA)
		w.putInfo(infoOf(pathA, narB))
	}))
	f.Add(seed(func(w *wire) { // one piece, as the server asks for it
		w.putUint(opAddToStoreNar)
		w.putPath(pathA)
		w.putInfo(infoOf(pathA, narB))
		w.putUint(0)
		w.putUint(0)
		w.putString(string(narB))
	}))
}
