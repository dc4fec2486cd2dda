package depot_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/internal/catalog/sqlite"
	"firn/internal/depot"
	blobdir "firn/internal/depot/blob/dir"
	"firn/internal/depot/index"
	"firn/internal/testing/seed"
)

const (
	// killedVariable names the directory of a child's depot: see useUntilKilled.
	killedVariable = "FIRN_DEPOT_CHILD"
	// killedRounds is how often a child is killed, unless FIRN_KILL_ROUNDS says otherwise.
	killedRounds = 12
	// killedWords is how much a child may say at most; most are killed much sooner, as much is done at a start.
	// Time would be no measure: on a busy machine children would be killed before they have done anything.
	killedWords = 600
	// killedWorkers push and delete at once.
	killedWorkers = 4
	// killedPaths is how many paths a worker has from time to time.
	killedPaths = 8
	// killedKnown is how many paths are looked at after each round, of those that are not there.
	killedKnown = 80
)

// killedEpoch is when the clock of a depot that is killed begins. It is in the past, so files are young until the test makes them old.
var killedEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// killedTime is the time after so many ticks of the depot: three hours pass with each, so that all grace ends while things are done.
func killedTime(ticks int64) time.Time {
	return killedEpoch.Add(time.Duration(ticks) * 3 * time.Hour)
}

// TestKilled kills a process that pushes, deletes paths and caches, sweeps and rewrites packs, all at once, at moments that nothing decides.
// What it acknowledged, and did not delete, is there whole; what it deleted is not there; and nothing is left of that in the end.
func TestKilled(t *testing.T) {
	rounds := killedRounds
	if text := os.Getenv("FIRN_KILL_ROUNDS"); text != "" {
		var err error
		if rounds, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	k := &killing{
		T: t, dir: t.TempDir(), paths: make(map[killedPath]existence), caches: make(map[string]existence),
		counts: make(map[string]int), random: seed.Rand(seed.Of(t), 0),
	}
	round := func(words int) {
		k.killAfter(words)
		k.check()
		if t.Failed() {
			t.FailNow()
		}
	}
	for range rounds {
		round(int(math.Pow(killedWords, k.random.Float64())))
	}
	// Children that are killed early do not get to everything. Some more live long enough.
	for more := 0; more < rounds && k.missing(rounds) != ""; more++ {
		round(killedWords)
	}
	k.sweepAll()
	t.Logf("%v", k.counts)
	if what := k.missing(rounds); what != "" {
		t.Errorf("%s only %d times in %d rounds and as many long ones", what, k.counts[what], rounds)
	}
}

// missing returns something that children did too rarely for so many rounds to have tested it, or "".
func (k *killing) missing(rounds int) string {
	for _, what := range []string{"pushed", "deleted", "made", "dropped", "rewrote"} {
		if k.counts[what] < max(1, rounds/8) {
			return what
		}
	}
	return ""
}

// existence of a path or a cache.
type existence uint8

const (
	absent  existence = iota // it is not there
	unknown                  // it may be, and whole then
	present
)

type killedPath struct {
	cache  string
	number uint64
}

// A killing knows what has to be there.
type killing struct {
	*testing.T
	dir    string
	ticks  int64
	caches map[string]existence // but for main
	paths  map[killedPath]existence
	counts map[string]int
	random *rand.Rand
}

// killAfter starts a child, kills it soon after it has said something so many times, and takes in what it said.
func (k *killing) killAfter(words int) {
	k.Helper()
	self, err := os.Executable()
	if err != nil {
		k.Fatal(err)
	}
	cmd := exec.CommandContext(k.Context(), self)
	cmd.Env = append(os.Environ(), killedVariable+"="+k.dir, fmt.Sprint(seed.Variable, "=", k.random.Uint64()))
	var given bytes.Buffer
	fmt.Fprintln(&given, k.ticks)
	for p, is := range k.paths {
		if p.cache == cache.Main {
			fmt.Fprintln(&given, p.number, is)
		}
	}
	cmd.Stdin, cmd.Stderr = &given, os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		k.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		k.Fatal(err)
	}
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if err != nil { // what has no line feed was not said
			break
		}
		if k.hear(strings.Fields(line), line) {
			if words--; words == 0 {
				wait := time.Duration(k.random.Int64N(int64(4 * time.Millisecond)))
				time.AfterFunc(wait, func() { _ = cmd.Process.Kill() })
			}
		}
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		k.Errorf("the child ended by itself: %v", err)
	}
}

// hear takes in a line of a child, and reports whether it says more than that time passes.
func (k *killing) hear(words []string, line string) bool {
	if strings.Contains(line, `msg="rewrote a pack"`) {
		words = []string{"rewrote"}
	}
	k.counts[words[0]]++
	var p killedPath
	if len(words) >= 3 {
		p.cache = words[1]
		p.number, _ = strconv.ParseUint(words[2], 10, 64)
	}
	switch words[0] {
	case "tick":
		k.ticks++
		return false
	case "rewrote", "refused":
	case "push", "delete":
		k.paths[p] = unknown
	case "pushed":
		k.paths[p] = present
	case "deleted":
		k.paths[p] = absent
	case "make", "drop":
		k.caches[words[1]] = unknown
	case "made":
		k.caches[words[1]] = present
	case "dropped":
		k.caches[words[1]] = absent
	default:
		k.Error(line)
	}
	return true
}

// open opens the depot as it was left.
func (k *killing) open(opts depot.Options) *tester {
	k.Helper()
	t, err := openKilled(k, k.dir, opts)
	if err != nil {
		k.Fatal(err)
	}
	return t
}

func openKilled(tb testing.TB, path string, opts depot.Options) (*tester, error) {
	cat, err := sqlite.Open(tb.Context(), filepath.Join(path, "catalog.db"), sqlite.Options{Now: opts.Now})
	if err != nil {
		return nil, err
	}
	blobs, err := blobdir.Open(filepath.Join(path, "packs"), blobdir.Options{Make: true})
	if err != nil {
		return nil, err
	}
	return newTesterOn(tb, cat, blobs, opts), nil
}

// check looks at what a child has left, and finds out what became of what it was doing.
func (k *killing) check() {
	k.Helper()
	t := k.open(depot.Options{Now: func() time.Time { return killedTime(k.ticks) }})
	defer t.close()
	t.wantClean()
	all, err := t.catalog.AllCaches(t.Context())
	if err != nil {
		k.Fatal(err)
	}
	parts := make(map[string]*depot.View)
	for _, c := range all {
		parts[c.Name] = t.depot.For(c)
	}
	for name, is := range k.caches {
		if parts[name] == nil && is == present || parts[name] != nil && is == absent {
			k.Errorf("the cache %s, of existence %d, is there: %v", name, is, parts[name] != nil)
		}
		k.caches[name] = absent
		if parts[name] != nil {
			k.caches[name] = present
		}
	}
	for p, is := range k.paths {
		part := parts[p.cache]
		if part == nil { // it was deleted, or is told above
			delete(k.paths, p)
			continue
		}
		nar := killedNAR(k, p.number)
		info, err := part.PathInfo(k.Context(), infoOf(k, nar).Path.Hash())
		if errors.Is(err, cache.ErrNotFound) {
			if is == present {
				k.Errorf("%v was acknowledged and is not there", p)
			}
			if k.paths[p] = absent; is == absent && len(k.paths) > killedKnown {
				delete(k.paths, p)
			}
			continue
		}
		if err != nil || is == absent {
			k.Errorf("%v, of existence %d, is there: %v", p, is, err)
			continue
		}
		k.paths[p] = present
		opened, err := part.OpenNAR(k.Context(), info)
		if err != nil {
			k.Errorf("open %v: %v", p, err)
			continue
		}
		var got bytes.Buffer
		if err := opened.WriteRange(k.Context(), &got, 0, opened.Size()); err != nil || !bytes.Equal(got.Bytes(), nar) {
			k.Errorf("%v has %d bytes, %v, want %d", p, got.Len(), err, len(nar))
		}
		opened.Close()
	}
	k.age()
}

// age makes all files old.
func (k *killing) age() {
	k.Helper()
	old := killedEpoch.AddDate(-1, 0, 0)
	err := filepath.WalkDir(filepath.Join(k.dir, "packs"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			err = os.Chtimes(path, old, old)
		}
		return err
	})
	if err != nil {
		k.Error(err)
	}
}

// sweepAll deletes everything, and checks that nothing is left when the grace is over.
func (k *killing) sweepAll() {
	k.Helper()
	now := killedTime(k.ticks)
	t := k.open(depot.Options{Now: func() time.Time { return now }})
	defer t.close()
	all, err := t.catalog.AllCaches(t.Context())
	if err != nil {
		k.Fatal(err)
	}
	for _, c := range all {
		if err := t.catalog.DeleteCache(t.Context(), c.ID); err != nil {
			k.Fatal(err)
		}
	}
	for range 4 {
		now = now.Add(25 * time.Hour)
		if err := t.depot.Tick(t.Context()); err != nil {
			k.Error(err)
		}
	}
	counts, err := t.catalog.Count(t.Context())
	if err != nil || counts != (index.Counts{}) {
		k.Errorf("the catalog counts %+v, %v", counts, err)
	}
	err = filepath.WalkDir(filepath.Join(k.dir, "packs"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && e.Name() != blobdir.Marker {
			k.Errorf("%s is left", path)
		}
		return err
	})
	if err != nil {
		k.Error(err)
	}
}

// killedNAR is the NAR of a number. Others have a part of it, and most of it nobody has.
func killedNAR(tb testing.TB, number uint64) []byte {
	r := rand.New(rand.NewPCG(number, 3))
	objects := []object{dir(""), file("a", noise(r.IntN(300_000), number))}
	for i := range 1 + r.IntN(3) {
		shared := number/32 + r.Uint64N(8)
		body := slices.Concat([]byte(reference(0, 1)), noise(70_000+5_000*r.IntN(3), shared), []byte(reference(r.IntN(20), int(number))))
		objects = append(objects, file("b"+strconv.Itoa(i), body))
	}
	return archive(tb, objects...)
}

// A childTB is the testing.TB of a process that is to be killed.
type childTB struct{ testing.TB }

func (childTB) Helper()                  {}
func (childTB) Logf(string, ...any)      {}
func (childTB) Cleanup(func())           {}
func (childTB) Context() context.Context { return context.Background() }

func (childTB) Fatal(args ...any) {
	fmt.Println("fault", fmt.Sprintln(args...))
	os.Exit(1)
}

// useUntilKilled uses the depot in a directory in every way, and says what it does.
func useUntilKilled(path string) {
	defer os.Exit(1)
	lines := bufio.NewScanner(os.Stdin)
	lines.Scan()
	var ticks atomic.Int64
	before, err := strconv.ParseInt(lines.Text(), 10, 64)
	if err != nil {
		fmt.Println("fault", err)
		return
	}
	ticks.Store(before)
	workers := make([]killedWorker, killedWorkers)
	highest := uint64(0)
	for lines.Scan() {
		var number uint64
		var is existence
		fmt.Sscan(lines.Text(), &number, &is)
		w := &workers[number%killedWorkers]
		if is == present {
			w.there = append(w.there, number)
		} else {
			w.gone = append(w.gone, number)
		}
		highest = max(highest, number)
	}
	tb := childTB{}
	t, err := openKilled(tb, path, depot.Options{
		Now:         func() time.Time { return killedTime(ticks.Load()) },
		Logger:      slog.New(slog.NewTextHandler(os.Stdout, nil)),
		RewriteRoom: 16 << 20,
	})
	if err != nil {
		fmt.Println("fault", err)
		return
	}
	drawn := seed.Of(tb)
	for i := range workers {
		w := &workers[i]
		w.tester, w.name = t, cache.Main
		w.random = seed.Rand(drawn, uint64(i))
		w.next = highest - highest%killedWorkers + killedWorkers + uint64(i)
		go w.run()
	}
	go useCaches(t, seed.Rand(drawn, killedWorkers))
	for {
		if err := t.depot.Tick(t.Context()); err != nil {
			fmt.Println("fault", "tick:", err)
			return
		}
		ticks.Add(1)
		fmt.Println("tick")
		time.Sleep(time.Millisecond)
	}
}

// A killedWorker pushes and deletes paths that no other one does, so what becomes of each has an order.
type killedWorker struct {
	*tester
	name        string // of the cache
	random      *rand.Rand
	next        uint64   // a number that no path has yet
	there, gone []uint64 // numbers of paths
}

func (w *killedWorker) run() {
	for {
		switch n := w.random.IntN(2 * killedPaths); {
		case n < len(w.there):
			number := take(&w.there, n)
			fmt.Println("delete", w.name, number)
			if err := deletePath(w.tester, infoOf(w, killedNAR(w, number)).Path.Hash()); err != nil {
				w.Fatal("delete", number, err)
			}
			fmt.Println("deleted", w.name, number)
			w.gone = append(w.gone, number)
		case n%4 == 0 && len(w.gone) > 0: // what was there before, or nearly
			w.push(take(&w.gone, w.random.IntN(len(w.gone))))
		default:
			w.push(w.next)
			w.next += killedWorkers
		}
	}
}

// take removes an element and returns it.
func take(from *[]uint64, at int) uint64 {
	s := *from
	n := s[at]
	s[at] = s[len(s)-1]
	*from = s[:len(s)-1]
	return n
}

// push pushes a path. With days so short, something that it needs may be swept before it has it.
func (w *killedWorker) push(number uint64) {
	nar := killedNAR(w, number)
	info := infoOf(w, nar)
	fmt.Println("push", w.name, number)
	_, err := w.Receive(w.Context(), cache.Upload{URL: "nar/" + info.NARHash.Nix32() + ".nar", NAR: bytes.NewReader(nar)})
	if err == nil {
		_, err = w.Publish(w.Context(), info, cachetest.Unchecked())
	}
	switch {
	case err == nil:
		fmt.Println("pushed", w.name, number)
		w.there = append(w.there, number)
	case errors.Is(err, cache.ErrUnavailable), errors.Is(err, cache.ErrNotFound):
		fmt.Println("refused", w.name, number, err)
	default:
		w.Fatal("push", number, err)
	}
}

// useCaches makes caches, pushes to them what others push too, and deletes them.
func useCaches(t *tester, random *rand.Rand) {
	for i := 0; ; i++ {
		own := *t
		name := fmt.Sprintf("team-%d-%d", os.Getpid(), i)
		fmt.Println("make", name)
		own.record, own.View = t.cache(name)
		fmt.Println("made", name)
		w := killedWorker{tester: &own, name: name, random: random}
		for range 1 + w.random.IntN(5) {
			w.push(w.random.Uint64N(200))
		}
		if w.random.IntN(4) == 0 {
			continue
		}
		fmt.Println("drop", name)
		if err := t.catalog.DeleteCache(t.Context(), own.record.ID); err != nil {
			t.Fatal("drop", name, err)
		}
		fmt.Println("dropped", name)
	}
}
