//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"firn/internal/debstore"
	"firn/nix"
)

// Real Nix pushes the closure to firn, and writes it as files of its own, in turns.
// Then a second generation is pushed, whose files differ in their store paths only, as after a mass rebuild.

const (
	// pushRuns is how often each is done; pushRunsQuick in a quick run.
	pushRuns, pushRunsQuick = 2, 1
	// uploads is how many NARs are uploaded at once when memory is measured, and uploadSize the contents of each, in bytes;
	// uploadSizeQuick in a quick run.
	uploads                     = 16
	uploadSize, uploadSizeQuick = 1 << 30, 32 << 20
	// pushedCache is the cache that is pushed to.
	pushedCache = "main"
)

// What stands for a server in the samples of pushes.
const (
	nixFiles  = "nix copy to files, zstd"
	pushPlain = "nix copy to firn, uncompressed"
	pushZstd  = "nix copy to firn, zstd"
	firnDepot = "firn, depot"
	firnAgain = "firn, depot, rebuilt"
)

var (
	metricPush    = Metric{Key: "push_s", Title: "copy of the closure", Unit: "s", Scale: 1, Digits: 2, Ratio: true}
	metricKept    = Metric{Key: "kept_bytes", Title: "kept of one generation", Unit: "MB", Scale: 1e-6, Digits: 1, Ratio: true}
	metricAdded   = Metric{Key: "added_bytes", Title: "added by a rebuild of everything", Unit: "MB", Scale: 1e-6, Digits: 1}
	metricUploads = Metric{Key: "resident_uploads_bytes", Title: "resident at most, 16 uploads of 1 GB at once", Unit: "MB", Scale: 1e-6, Digits: 1}
)

// pushMetrics are the rows of the table of pushes, pushers its columns.
func pushMetrics() []Metric { return []Metric{metricPush, metricKept, metricAdded, metricUploads} }

var pushers = []string{nixFiles, pushPlain, pushZstd}

// A generation is a store that is pushed.
type generation struct {
	root string
	what string // whose closure is pushed
}

// Depot is a state directory with two generations in it.
type Depot struct {
	State string
	Again []Path // the second generation; the first is the Material's closure
}

// push measures pushes to firn, and leaves a depot behind to serve from.
func (b *shootout) push(ctx context.Context, opts Options, program string, generations []generation) (*Depot, error) {
	runs, size := pushRuns, int64(uploadSize)
	if opts.Quick {
		runs, size = pushRunsQuick, uploadSizeQuick
	}
	for run := range runs {
		for i := range pushers {
			pusher := pushers[(run+i)%len(pushers)]
			if err := b.pushOnce(ctx, program, pusher, generations[0]); err != nil {
				return nil, fmt.Errorf("%s: %w", pusher, err)
			}
		}
	}
	d, err := b.pushAgain(ctx, program, generations)
	if err != nil {
		return nil, err
	}
	return d, b.uploadAtOnce(ctx, program, size)
}

// generations makes, or finds, two generations of a store. Both are made anew if they are not of the same packages,
// as when some were upgraded between the first and the second.
func generations(ctx context.Context, cache string, quick bool, progress func(string, ...any)) (made []generation, err error) {
	var of debstore.Options
	if quick {
		of = debstore.Options{Packages: quickPackages, LargeFile: 1 << 20}
	}
	for again := false; ; again = true {
		var stores [2]*debstore.Store
		for i := range stores {
			of.Generation = i
			progress("making generation %d of a store of this machine's Debian packages, or finding it in %s", i+1, cache)
			if stores[i], err = debstore.Make(ctx, cache, of); err != nil {
				return made, err
			}
		}
		if slices.Equal(packageNames(stores[0]), packageNames(stores[1])) {
			for _, s := range stores {
				made = append(made, generation{s.Root, s.Everything.String()})
			}
			return made, nil
		}
		if again {
			return made, errors.New("packages of this machine change while stores are made of them")
		}
		for _, s := range stores {
			if err := os.RemoveAll(s.Root); err != nil {
				return made, err
			}
		}
	}
}

func packageNames(s *debstore.Store) []string {
	var names []string
	for _, p := range s.Packages {
		names = append(names, p.Name())
	}
	slices.Sort(names)
	return names
}

// pushOnce has Nix copy a generation to somewhere new.
func (b *shootout) pushOnce(ctx context.Context, program, pusher string, from generation) error {
	dir, err := os.MkdirTemp(b.work, "push-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	kept := filepath.Join(dir, "cache")
	if pusher == nixFiles {
		took, err := nixCopy(ctx, from, fileStore(kept), dir)
		if err != nil {
			return err
		}
		return b.pushed(pusher, took, kept)
	}
	s, err := b.startDepot(ctx, program, kept)
	if err != nil {
		return err
	}
	defer s.stop()
	compression := "none"
	if pusher == pushZstd {
		compression = "zstd"
	}
	took, err := nixCopy(ctx, from, s.store(compression), dir)
	if err != nil {
		return fmt.Errorf("%w%s", err, s.logTail())
	}
	s.stop()
	return b.pushed(pusher, took, kept)
}

func (b *shootout) pushed(pusher string, took time.Duration, kept string) error {
	size, err := sizeOf(kept)
	if err != nil {
		return err
	}
	b.samples.add(pusher, metricPush.Key, took.Seconds())
	b.samples.add(pusher, metricKept.Key, float64(size))
	b.progress("%s: %s %s, %s %s kept", pusher, metricPush.format(took.Seconds()), metricPush.Unit, metricKept.format(float64(size)), metricKept.Unit)
	return nil
}

// pushAgain pushes both generations to one depot, measures what the second adds, and returns the depot.
func (b *shootout) pushAgain(ctx context.Context, program string, generations []generation) (*Depot, error) {
	d := &Depot{State: filepath.Join(b.work, "depot")}
	var sizes [2]int64
	for i, g := range generations {
		s, err := b.startDepot(ctx, program, d.State)
		if err != nil {
			return nil, err
		}
		took, err := nixCopy(ctx, g, s.store("none"), b.work)
		s.stop()
		if err != nil {
			return nil, fmt.Errorf("push generation %d: %w%s", i+1, err, s.logTail())
		}
		if sizes[i], err = sizeOf(d.State); err != nil {
			return nil, err
		}
		b.progress("generation %d pushed in %s %s", i+1, metricPush.format(took.Seconds()), metricPush.Unit)
	}
	added := float64(sizes[1] - sizes[0])
	b.samples.add(pushPlain, metricAdded.Key, added)
	b.progress("%s: %s %s of %s", metricAdded.Title, metricAdded.format(added), metricAdded.Unit, metricKept.format(float64(sizes[0])))

	flat := filepath.Join(b.work, "again")
	defer os.RemoveAll(flat)
	if _, err := nixCopy(ctx, generations[1], fileStore(flat), b.work); err != nil {
		return nil, err
	}
	var err error
	d.Again, err = readClosure(flat)
	return d, err
}

// depotSpec is firn over a depot and nothing else.
func depotSpec(name, baseline, program, state string, flags ...string) Spec {
	return Spec{Name: name, Baseline: baseline, Command: func(addr netip.AddrPort, dir string) (*exec.Cmd, error) {
		args := []string{"serve", "--listen", addr.String(), "--store", "off", "--state", state}
		cmd := exec.Command(program, append(args, flags...)...)
		cmd.Env = cleanEnvironment()
		return cmd, nil
	}}
}

// depotServer is firn with a token to push to it.
type depotServer struct {
	*Server
	token string
}

func (b *shootout) startDepot(ctx context.Context, program, state string) (*depotServer, error) {
	s, err := start(ctx, b.client, depotSpec(firnDepot, "", program, state), b.work)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("bench-%d", time.Now().UnixNano())
	cmd := exec.CommandContext(ctx, program, "token", "create", "--state", state, "--push", pushedCache, name)
	cmd.Env = cleanEnvironment()
	token, err := cmd.Output()
	if err != nil {
		s.stop()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w\n%s", err, bytes.TrimSpace(exit.Stderr))
		}
		return nil, fmt.Errorf("make a token: %w", err)
	}
	return &depotServer{s, strings.TrimSpace(string(token))}, nil
}

// store is the URL of the cache for Nix.
func (s *depotServer) store(compression string) url.URL {
	return url.URL{Scheme: "http", Host: s.Addr.String(), User: url.UserPassword("bench", s.token), RawQuery: "compression=" + compression}
}

func fileStore(dir string) url.URL {
	return url.URL{Scheme: "file", Path: dir, RawQuery: "compression=zstd&parallel-compression=true"}
}

// nixCopy copies a generation, and returns how long that took. Nothing that Nix remembers of other copies counts.
func nixCopy(ctx context.Context, from generation, to url.URL, dir string) (time.Duration, error) {
	return timeNix(ctx, dir, nil, "copy", "--from", from.root, "--to", to.String(), from.what)
}

// timeNix returns how long a command of Nix takes, for which dir has its home.
func timeNix(ctx context.Context, dir string, env []string, args ...string) (time.Duration, error) {
	home, err := os.MkdirTemp(dir, "home-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(home)
	cmd := exec.CommandContext(ctx, "nix", append([]string{"--extra-experimental-features", "nix-command"}, args...)...)
	cmd.Env = append(append(cleanEnvironment(), "HOME="+home, "XDG_CACHE_HOME="+home), env...)
	begin := time.Now()
	if text, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("nix %s: %w\n%s", args[0], err, bytes.TrimSpace(text))
	}
	return time.Since(begin), nil
}

func cleanEnvironment() []string {
	var env []string
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "FIRN_") && !strings.HasPrefix(entry, "NIX_") {
			env = append(env, entry)
		}
	}
	return env
}

// sizeOf is the sum of the sizes of all files below dir, in bytes.
func sizeOf(dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		sum += info.Size()
		return nil
	})
	return sum, err
}

// uploadAtOnce measures the memory of firn while it receives many large NARs.
func (b *shootout) uploadAtOnce(ctx context.Context, program string, size int64) error {
	state := filepath.Join(b.work, "uploads")
	defer os.RemoveAll(state)
	s, err := b.startDepot(ctx, program, state)
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
		group.Go(func() error { return s.upload(groupCtx, name, size, i) })
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

// upload sends the i-th NAR.
func (s *depotServer) upload(ctx context.Context, name string, size int64, i int) error {
	r, w := io.Pipe()
	go func() {
		err := writeUpload(w, size)
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
