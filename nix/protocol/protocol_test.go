package protocol

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"

	"firn/nix"
)

const dir = nix.DefaultStoreDir

// A memory is a store in memory, in which what is read is published when it is settled.
type memory struct {
	paths   map[nix.StorePath]*nix.PathInfo
	nars    map[nix.StorePath][]byte
	logs    map[nix.StorePath]string
	outputs map[nix.RealisationID]*nix.Realisation
	traces  map[string]*nix.BuildTrace
	built   map[nix.StorePath]map[string]nix.StorePath // the outputs of derivations
	read    []*nix.PathInfo
	failed  error
}

func newMemory() *memory {
	return &memory{
		paths: map[nix.StorePath]*nix.PathInfo{}, nars: map[nix.StorePath][]byte{}, logs: map[nix.StorePath]string{},
		outputs: map[nix.RealisationID]*nix.Realisation{}, traces: map[string]*nix.BuildTrace{},
		built: map[nix.StorePath]map[string]nix.StorePath{},
	}
}

// store is m as a server end takes it.
func (m *memory) store() Store { return Store{m, m, m} }

func (m *memory) StoreDir() nix.StoreDir { return dir }

func (m *memory) ValidPaths(_ context.Context, paths []nix.StorePath) (valid []nix.StorePath, err error) {
	for _, p := range paths {
		if m.paths[p] != nil {
			valid = append(valid, p)
		}
	}
	return valid, nil
}

func (m *memory) PathInfo(_ context.Context, p nix.StorePath) (*nix.PathInfo, error) {
	if info := m.paths[p]; info != nil {
		return info, nil
	}
	return nil, ErrNotFound
}

func (m *memory) PathFromHash(_ context.Context, hash nix.PathHash) (*nix.PathInfo, error) {
	for p, info := range m.paths {
		if p.Hash() == hash {
			return info, nil
		}
	}
	return nil, ErrNotFound
}

func (m *memory) WriteNAR(_ context.Context, w io.Writer, info *nix.PathInfo) error {
	_, err := w.Write(m.nars[info.Path])
	return err
}

func (m *memory) ReadNAR(_ context.Context, info *nix.PathInfo, r io.Reader) error {
	var nar bytes.Buffer
	if _, err := io.Copy(&nar, r); err != nil {
		return err
	}
	if nix.SHA256Sum(sha256.Sum256(nar.Bytes())) != info.NARHash {
		m.failed = fmt.Errorf("the NAR of %s is another one", info.Path)
		return nil
	}
	m.nars[info.Path] = nar.Bytes()
	m.read = append(m.read, info)
	return nil
}

func (m *memory) Settle(context.Context) error {
	for _, info := range m.read {
		m.paths[info.Path] = info
	}
	err := m.failed
	m.read, m.failed = nil, nil
	return err
}

func (m *memory) AddSignatures(_ context.Context, p nix.StorePath, sigs []nix.Signature) error {
	info := m.paths[p]
	if info == nil {
		return ErrNotFound
	}
	info.Signatures = append(info.Signatures, sigs...)
	return nil
}

func (m *memory) AllPaths(context.Context) iter.Seq2[nix.StorePath, error] {
	return func(yield func(nix.StorePath, error) bool) {
		for p := range m.paths {
			for range 2 {
				if !yield(p, nil) {
					return
				}
			}
		}
	}
}

func (m *memory) ClosureWithOutputs(ctx context.Context, paths []nix.StorePath) ([]nix.StorePath, error) {
	all := slices.Clone(paths)
	for _, p := range paths {
		all = slices.AppendSeq(all, maps.Values(m.built[p]))
	}
	return m.Closure(ctx, all)
}

func (m *memory) Closure(_ context.Context, paths []nix.StorePath) ([]nix.StorePath, error) {
	all := slices.Clone(paths)
	for i := 0; i < len(all); i++ {
		info := m.paths[all[i]]
		if info == nil {
			return nil, ErrNotFound
		}
		for _, ref := range info.References {
			if !slices.Contains(all, ref) {
				all = append(all, ref)
			}
		}
	}
	return all, nil
}

func (m *memory) Outputs(_ context.Context, drv nix.StorePath) (map[string]nix.StorePath, error) {
	if outputs := m.built[drv]; outputs != nil {
		return outputs, nil
	}
	return nil, ErrNotFound
}

func (m *memory) DerivationHash(_ context.Context, drv nix.StorePath) (nix.Hash, error) {
	if m.built[drv] == nil {
		return nix.Hash{}, ErrNotFound
	}
	return hashOf(drv), nil
}

// hashOf is what names the realisations of a derivation here.
func hashOf(drv nix.StorePath) nix.Hash { return nix.SHA256Sum(sha256.Sum256([]byte(drv.String()))) }

func (m *memory) Realisation(_ context.Context, id nix.RealisationID) (*nix.Realisation, error) {
	if r := m.outputs[id]; r != nil {
		return r, nil
	}
	return nil, ErrNotFound
}

func (m *memory) PutRealisation(_ context.Context, r *nix.Realisation) error {
	m.outputs[r.ID] = r
	return nil
}

func (m *memory) BuildTrace(_ context.Context, drv nix.StorePath, output string) (*nix.BuildTrace, error) {
	if t := m.traces[drv.Base()+"!"+output]; t != nil {
		return t, nil
	}
	return nil, ErrNotFound
}

func (m *memory) PutBuildTrace(_ context.Context, t *nix.BuildTrace) error {
	m.traces[t.Drv.Base()+"!"+t.Output] = t
	return nil
}

func (m *memory) PutBuildLog(_ context.Context, drv nix.StorePath, r io.Reader) error {
	text, err := io.ReadAll(r)
	m.logs[drv] = string(text)
	return err
}

// path is a store path of which the hash begins with a letter.
func path(letter byte, name string) nix.StorePath {
	p, err := dir.ParseBase(string(letter) + strings.Repeat("0", 31) + "-" + name)
	if err != nil {
		panic(err)
	}
	return p
}

var (
	pathA, pathB = path('a', "a"), path('b', "b")
	absent       = path('c', "absent")
	drv          = path('d', "x.drv") // which is not there
	builtDrv     = path('f', "y.drv") // which is, with the output pathB
	narA         = []byte(strings.Repeat("the NAR of a, which is looked at by the store only; ", 5000))
	narB         = []byte("the NAR of b")
)

func infoOf(p nix.StorePath, nar []byte, refs ...nix.StorePath) *nix.PathInfo {
	sig, err := nix.ParseSignature("k-1:" + strings.Repeat("A", 86) + "==")
	if err != nil {
		panic(err)
	}
	other, err := nix.NewSignature("ml-dsa-87", make([]byte, 4627)) // whose text is longer than any path
	if err != nil {
		panic(err)
	}
	return &nix.PathInfo{
		Path: p, NARHash: nix.SHA256Sum(sha256.Sum256(nar)), NARSize: int64(len(nar)), References: refs, Deriver: drv, Signatures: []nix.Signature{sig, other},
	}
}

// peer is the other end of a conversation: what it writes and reads is what a client does.
type peer struct {
	*testing.T
	*wire
	conn  net.Conn
	ended chan error // what the server returned
}

// talk begins a conversation with a server end.
func talk(t *testing.T, serve func(conn net.Conn) error) *peer {
	t.Helper()
	ours, theirs := net.Pipe()
	p := &peer{t, newWire(ours), ours, make(chan error, 1)}
	go func() {
		err := serve(theirs)
		theirs.Close()
		p.ended <- err
	}()
	t.Cleanup(func() { ours.Close() })
	return p
}

func (p *peer) ok() {
	p.Helper()
	if p.err != nil {
		p.Fatal(p.err)
	}
}

func (p *peer) wantUint(want uint64) {
	p.Helper()
	if got := p.uint(); p.err != nil || got != want {
		p.Fatalf("got %#x, %v, want %#x", got, p.err, want)
	}
}

func (p *peer) wantString(want string) {
	p.Helper()
	if got := p.string(maxText); p.err != nil || !strings.Contains(got, want) || want == "" && got != "" {
		p.Fatalf("got %q, %v, want %q", got, p.err, want)
	}
}

func (p *peer) wantPaths(want ...nix.StorePath) {
	p.Helper()
	if got := p.paths(dir); p.err != nil || !slices.Equal(got, want) {
		p.Fatalf("got %v, %v, want %v", got, p.err, want)
	}
}

func (p *peer) wantNAR(want []byte) {
	p.Helper()
	p.flush()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(p.r, got); err != nil || !bytes.Equal(got, want) {
		p.Fatalf("the NAR is another one, %v", err)
	}
}

// wantEnd ends the conversation and checks how the server took it: "" is well.
func (p *peer) wantEnd(want string) {
	p.Helper()
	p.flush()
	p.conn.Close()
	err := <-p.ended
	if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
		p.Errorf("the server ended with %v, want %q", err, want)
	}
}

func filled() *memory {
	m := newMemory()
	m.nars[pathA], m.nars[pathB] = narA, narB
	m.paths[pathA], m.paths[pathB] = infoOf(pathA, narA, pathB), infoOf(pathB, narB)
	m.built[builtDrv] = map[string]nix.StorePath{"out": pathB}
	return m
}

func talkLegacy(t *testing.T, m *memory, opts Options, minor uint64) *peer {
	t.Helper()
	p := talk(t, func(conn net.Conn) error { return ServeLegacy(t.Context(), conn, m.store(), opts) })
	p.putUint(legacyMagicClient)
	p.putUint(2<<8 | minor)
	p.wantUint(legacyMagicServer)
	p.wantUint(legacyVersion)
	return p
}

func (p *peer) put(numbers ...uint64) {
	for _, n := range numbers {
		p.putUint(n)
	}
}

// putDerivation says a derivation as it is without its inputs.
func (p *peer) putDerivation() {
	p.putUint(1)
	for _, s := range []string{"out", pathA.String(), "", ""} {
		p.putString(s)
	}
	p.putPaths([]nix.StorePath{pathB})
	p.putString("x86_64-linux")
	p.putString("/bin/sh")
	p.putStrings("-c", "exit 1")
	p.putUint(1)
	p.putString("name")
	p.putString("x")
}

func TestLegacy(t0 *testing.T) {
	for minor := uint64(4); minor <= 9; minor++ {
		t0.Run(fmt.Sprint("2.", minor), func(t0 *testing.T) {
			m := filled()
			m.paths[builtDrv] = infoOf(builtDrv, narB)
			t := talkLegacy(t0, m, Options{}, minor)
			options := []uint64{0, 0, 0, 0, 0}
			if minor >= 7 {
				options = append(options, 0)
			}
			t.put(legacyQueryValidPaths, 1, 1)
			t.putPaths([]nix.StorePath{absent, pathB, pathA})
			t.wantPaths(pathB, pathA)

			t.put(legacyQueryPathInfos)
			t.putPaths([]nix.StorePath{absent, pathA})
			t.wantString(pathA.String())
			t.wantString(drv.String())
			t.wantPaths(pathB)
			t.wantUint(0)
			t.wantUint(uint64(len(narA)))
			t.wantString(infoOf(pathA, narA).NARHash.String())
			t.wantString("")
			t.wantUint(2)
			t.wantString("k-1:")
			t.wantString("ml-dsa-87:")
			t.wantString("")

			t.put(legacyQueryClosure, 1) // with the outputs of derivations, of which there are none
			t.putPaths([]nix.StorePath{pathA})
			t.wantPaths(pathA, pathB)
			t.put(legacyQueryClosure, 1)
			t.putPaths([]nix.StorePath{builtDrv})
			t.wantPaths(builtDrv, pathB)

			t.put(legacyBuildPaths)
			t.putStrings(pathA.String(), builtDrv.String()+"!out")
			t.put(options...)
			t.wantUint(0)
			for wanted, why := range map[string]string{absent.String(): "is not there", drv.String() + "!out": "which builds nothing"} {
				t.put(legacyBuildPaths)
				t.putStrings(pathA.String(), wanted)
				t.put(options...)
				t.wantUint(buildFailed)
				t.wantString(why)
			}

			t.put(legacyBuildDerivation)
			t.putPath(drv)
			t.putDerivation()
			t.put(options...)
			t.wantUint(buildFailed)
			t.wantString("which builds nothing")
			for range 4 {
				t.wantUint(0)
			}
			if minor >= 6 {
				t.wantUint(0)
			}

			t.put(legacyDumpStorePath)
			t.putPath(pathA)
			t.wantNAR(narA)
			t.ok()
			t.wantEnd("")
		})
	}
}

func (p *peer) putLegacyNAR(info *nix.PathInfo, nar []byte) {
	p.put(legacyAddToStoreNar)
	p.putPath(info.Path)
	p.putInfo(info)
	p.w.Write(nar)
}

func TestLegacyAdd(t0 *testing.T) {
	m := newMemory()
	t := talkLegacy(t0, m, Options{}, 7)
	t.putLegacyNAR(infoOf(pathB, narB), narB)
	t.wantUint(1)
	t.putLegacyNAR(infoOf(pathA, narA, pathB), narA)
	t.wantUint(1)
	t.wantEnd("")
	if len(m.paths) != 2 || !bytes.Equal(m.nars[pathA], narA) || m.paths[pathA].References[0] != pathB {
		t.Errorf("the store has %v", m.paths)
	}

	for want, begin := range map[string]func(t *peer){
		"the NAR of":     func(t *peer) { t.putLegacyNAR(infoOf(pathA, narB), bytes.Repeat([]byte("x"), len(narB))) },
		"unexpected EOF": func(t *peer) { t.putLegacyNAR(infoOf(pathA, narA), narA[:1000]) },
		"NAR size":       func(t *peer) { t.putLegacyNAR(infoOf(pathA, nil), nil) },
		"is not there":   func(t *peer) { t.put(legacyDumpStorePath); t.putPath(absent) },
		"not found":      func(t *peer) { t.put(legacyQueryClosure, 0); t.putPaths([]nix.StorePath{absent}) },
		"operation 77":   func(t *peer) { t.put(77) },
		"no path":        func(t *peer) { t.put(legacyDumpStorePath, 0) },
		"more than 4096": func(t *peer) { t.put(legacyDumpStorePath, 1<<40) },
		"padded":         func(t *peer) { t.put(legacyDumpStorePath, 1); t.w.WriteString("a0000000") },
		"store path":     func(t *peer) { t.put(legacyDumpStorePath); t.putString("/etc/passwd") },
		"paths, more":    func(t *peer) { t.put(legacyQueryValidPaths, 0, 0, 1<<60) },
	} {
		t := talkLegacy(t0, newMemory(), Options{}, 7)
		begin(t)
		t.wantEnd(want)
	}
	t = talkLegacy(t0, m, Options{ReadOnly: true}, 7)
	t.put(legacyAddToStoreNar)
	t.wantEnd("may only read")
	t = talk(t0, func(conn net.Conn) error { return ServeLegacy(t0.Context(), conn, m.store(), Options{}) })
	t.putUint(workerMagicClient)
	t.wantEnd("not the serve protocol")
}

// Each path of a copy is answered when it is published.
func TestLegacyCopy(t0 *testing.T) {
	m := newMemory()
	t := talkLegacy(t0, m, Options{}, 7)
	t.put(legacyQueryValidPaths, 0, 0)
	t.putPaths([]nix.StorePath{pathA, pathB})
	t.wantPaths()
	t.putLegacyNAR(infoOf(pathB, narB), narB)
	t.wantUint(1)
	if m.paths[pathB] == nil {
		t.Errorf("%s is answered, and is not published", pathB)
	}
	t.put(legacyQueryPathInfos) // as Nix asks before it sends a path
	t.putPaths([]nix.StorePath{pathA})
	t.wantString("")
	t.putLegacyNAR(infoOf(pathA, narA, pathB), narA)
	t.wantUint(1)
	if m.paths[pathA] == nil {
		t.Errorf("%s is answered, and is not published", pathA)
	}
	t.wantEnd("")

	m = newMemory() // a wrong NAR gets no answer
	t = talkLegacy(t0, m, Options{}, 7)
	t.putLegacyNAR(infoOf(pathB, narA), bytes.ToUpper(narA))
	t.wantEnd("the NAR of " + pathB.String())
}

func TestClient(t0 *testing.T) {
	m := newMemory()
	p := talk(t0, func(conn net.Conn) error { return ServeWorker(t0.Context(), conn, m.store(), Options{Version: "test"}) })
	c, err := DialWorker(p.conn, dir)
	if err != nil {
		t0.Fatal(err)
	}
	for _, err := range []error{c.AddNAR(infoOf(pathB, narB), bytes.NewReader(narB)), c.AddNAR(infoOf(pathA, narA, pathB), bytes.NewReader(narA))} {
		if err != nil {
			t0.Fatal(err)
		}
	}
	var answer *AnswerError
	if err := c.AddNAR(infoOf(absent, narA), bytes.NewReader(bytes.ToUpper(narA))); !errors.As(err, &answer) || !strings.Contains(answer.Message, "is another one") {
		t0.Errorf("a wrong NAR: %v", err)
	}
	if err := c.AddSignatures(pathA, infoOf(pathA, narA).Signatures); err != nil {
		t0.Error(err)
	}
	if err := c.AddSignatures(absent, nil); !errors.As(err, &answer) {
		t0.Errorf("signatures for what is absent: %v", err)
	}
	valid, err := c.ValidPaths([]nix.StorePath{absent, pathA, pathB})
	if err != nil || !slices.Equal(valid, []nix.StorePath{pathA, pathB}) {
		t0.Errorf("there are %v, %v", valid, err)
	}
	info, err := c.PathInfo(pathA)
	if err != nil || len(info.Signatures) != 4 || info.Deriver != drv || info.NARSize != int64(len(narA)) {
		t0.Errorf("path info %+v, %v", info, err)
	}
	if _, err := c.PathInfo(absent); !errors.Is(err, ErrNotFound) {
		t0.Errorf("what is absent: %v", err)
	}
	var nar bytes.Buffer
	if err := c.WriteNAR(&nar, info); err != nil || !bytes.Equal(nar.Bytes(), narA) {
		t0.Errorf("the NAR has %d bytes, %v", nar.Len(), err)
	}
	p.wantEnd("")
}
