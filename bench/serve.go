//go:build linux

package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"firn/nix"
)

const (
	// narinfoRepeats is how often a round asks for all narinfos in sequence; its value is the
	// median. One pass is so short that a single interruption would double it.
	narinfoRepeats = 5
	// rateConnections is the number of connections on which requests a second are counted.
	rateConnections = 64
	// missCount is the number of different path hashes that are asked for in vain.
	missCount = 1024
	// flights is the number of NARs that are sent at once when memory is measured, and flightHold
	// how long they are held half sent.
	flights, flightHold = 256, time.Second
)

// narConnections are the numbers of connections on which all NARs are fetched.
var narConnections = []int{1, 4, 16}

// A target is what a server serves, found right, as requests that are ready to be sent.
type target struct {
	narinfos, nars []request // in the order of the closure
	bytes          int64     // of the bodies of all NARs
}

// A contestant is a server that does one thing that others do too.
type contestant struct {
	column Column
	server *server
	*target
}

// A service is NARs of one kind that several servers send, with the limit for firn's ratio to the
// least.
type service struct {
	title       string
	limit       float64
	contestants []contestant
}

// serving measures all that is served.
func (b *bench) serving(ctx context.Context, m *material) error {
	www := filepath.Join(b.work, "www")
	if err := os.MkdirAll(filepath.Join(www, "depot"), 0o755); err != nil {
		return err
	}
	for _, dir := range []string{"plain", "zstd"} {
		if err := os.Symlink(filepath.Join(m.flat, dir), filepath.Join(www, dir)); err != nil {
			return err
		}
	}
	depots := make(map[Column]string)
	for _, p := range b.programs {
		var err error
		if depots[p.column], err = b.fillDepot(ctx, p, m); err != nil {
			return err
		}
	}
	defer func() {
		for _, s := range b.servers {
			s.stop()
		}
	}()
	files, err := b.start(ctx, nginxCommand(www), nil)
	if err != nil {
		return err
	}
	bare, err := b.start(ctx, ownCommand(leastCommand, www, filepath.Join(m.first.Root, string(nix.DefaultStoreDir))), nil)
	if err != nil {
		return err
	}
	live := service{title: "NARs of a live store", limit: 1.15}
	packed := service{title: "NARs of a live store, with zstd", limit: 1.15}
	unpacked := service{title: "NARs of a depot, uncompressed", limit: 1.15}
	depot := service{title: "NARs of a depot, with zstd", limit: 1.15}
	rebuilt := service{title: "NARs of a rebuild in a depot, with zstd", limit: 1.25}
	info := service{title: "Narinfos of a live store"}
	depotInfo := service{title: "Narinfos of a depot"}

	// check has a server prove that all its NARs are right, and has it take part.
	check := func(c Column, s *server, closure []storedPath, url urls, save string, in ...*service) error {
		begin := time.Now()
		t, err := verify(ctx, s, closure, url, save)
		if err != nil {
			return s.explain(fmt.Errorf("%s, %s: %w", in[0].title, c, err))
		}
		for _, v := range in {
			v.contestants = append(v.contestants, contestant{c, s, t})
		}
		b.progress("%s: %s: %d NARs are right (%.1f s)", in[0].title, c, len(t.nars), time.Since(begin).Seconds())
		return nil
	}
	closure := m.first.closure
	err = errors.Join(
		check(nginx, files, closure, narinfo("/plain", nixAgent), "", &live, &info, &unpacked, &depotInfo),
		check(nginx, files, closure, narinfo("/zstd", nixAgent), "", &packed),
		check(least, bare, closure, fixed(func(p storedPath) string { return "/nar/" + p.Base() }), "", &live, &info, &depotInfo),
		check(least, bare, closure, narinfo("/zstd", nixAgent), "", &packed),
	)
	if err != nil {
		return err
	}
	for _, p := range b.programs {
		var servers [3]*server
		for i, c := range []command{
			p.serve("", "--store", m.first.Root, "--key", m.key),
			p.serve("", "--store", m.first.Root, "--key", m.key, "--compression", "zstd"),
			p.serve(depots[p.column], "--store", "off"),
		} {
			if servers[i], err = b.start(ctx, c, nil); err != nil {
				return err
			}
		}
		save := ""
		if p.column == firn {
			save = filepath.Join(www, "depot")
		}
		if err := errors.Join(
			check(p.column, servers[0], closure, narinfo("", nixAgent), "", &live, &info),
			check(p.column, servers[1], closure, narinfo("", nixAgent), "", &packed),
			check(p.column, servers[2], closure, narinfo("", oldAgent), "", &unpacked),
			check(p.column, servers[2], closure, narinfo("", nixAgent), save, &depot, &depotInfo),
			check(p.column, servers[2], m.rebuilt.closure, narinfo("", nixAgent), "", &rebuilt),
		); err != nil {
			return err
		}
	}
	// The bytes of compressed NARs are firn's own: nginx and the least send those that firn has
	// sent.
	saved := fixed(func(p storedPath) string { return "/depot/" + p.Hash().String() + ".nar.zst" })
	if err := errors.Join(
		check(nginx, files, closure, saved, "", &depot, &rebuilt),
		check(least, bare, closure, saved, "", &depot, &rebuilt),
		check(least, bare, closure, fixed(func(p storedPath) string { return fmt.Sprintf("/unpacked/%s/%d", p.Hash(), p.narSize) }), "", &unpacked),
	); err != nil {
		return err
	}
	for round := range b.opts.Runs {
		b.progress("serving: round %d of %d", round+1, b.opts.Runs)
		for _, v := range []*service{&info, &depotInfo} {
			if err := b.narinfos(ctx, round, v); err != nil {
				return err
			}
		}
		for _, v := range []*service{&live, &packed, &unpacked, &depot, &rebuilt} {
			if err := b.nars(ctx, round, v); err != nil {
				return err
			}
		}
	}
	return errors.Join(b.memory(ctx, &live, "a live store"), b.memory(ctx, &depot, "a depot"))
}

// takes is the title of the section about memory.
const takes = "Memory"

// turns calls f for each of all, in each round beginning with another, so that what else happens on
// the machine happens to all of them.
func turns[T any](round int, all []T, f func(T) error) error {
	for i := range all {
		if err := f(all[(round+i)%len(all)]); err != nil {
			return err
		}
	}
	return nil
}

// measure has each server of a service do something, and returns for each how long that took of the
// server's processors.
func (b *bench) measure(round int, v *service, what string, do func(contestant) error) (map[Column]float64, error) {
	cpu := make(map[Column]float64)
	return cpu, turns(round, v.contestants, func(c contestant) error {
		begun, err := cpuTime(c.server.pid)
		if err == nil {
			err = do(c)
		}
		if err != nil {
			return c.server.explain(fmt.Errorf("%s: %s, %s: %w", v.title, c.column, what, err))
		}
		ended, err := cpuTime(c.server.pid)
		cpu[c.column] = (ended - begun).Seconds()
		return err
	})
}

// narinfos measures requests for narinfos.
func (b *bench) narinfos(ctx context.Context, round int, v *service) error {
	one := b.results.row(v.title, "all narinfos in sequence", milliseconds, atMost(1.15, nginx))
	_, err := b.measure(round, v, one.What, func(c contestant) error {
		var all []float64
		for range narinfoRepeats {
			_, took, err := run(ctx, c.server.addr, 1, c.narinfos, 0)
			if err != nil {
				return err
			}
			all = append(all, took.Seconds())
		}
		one.add(c.column, median(all))
		return nil
	})
	for _, kind := range []struct {
		rate, cpu string
		misses    bool
	}{
		{"narinfos, 64 connections", "CPU of the server for a narinfo", false},
		{"narinfos that are not there, 64 connections", "CPU of the server for a narinfo that is not there", true},
	} {
		if err != nil {
			return err
		}
		rate := b.results.row(v.title, kind.rate, perSecond, atLeast(0.9, nginx))
		count := make(map[Column]int)
		var cpu map[Column]float64
		cpu, err = b.measure(round, v, kind.rate, func(c contestant) error {
			requests := c.narinfos
			if kind.misses {
				requests = misses(c.server.addr)
			}
			n, took, err := run(ctx, c.server.addr, rateConnections, requests, b.rateTime)
			rate.add(c.column, float64(n)/took.Seconds())
			count[c.column] = n
			return err
		})
		for c, took := range cpu {
			b.results.row(v.title, kind.cpu, microseconds, Bar{}).add(c, took/float64(count[c]))
		}
	}
	return err
}

// misses are requests for narinfos that no server has.
func misses(addr string) []request {
	var all []request
	for i := range missCount {
		sum := sha256.Sum256(fmt.Appendf(nil, "a path that no server has: %d", i))
		all = append(all, get(addr, narinfoPath(nix.PathHash(sum[:])), "", http.StatusNotFound, -1))
	}
	return all
}

// nars measures how long all NARs take.
func (b *bench) nars(ctx context.Context, round int, v *service) error {
	sum := make(map[Column]float64)
	for _, n := range narConnections {
		what := fmt.Sprintf("all NARs, %d connections", n)
		if n == 1 {
			what = "all NARs, 1 connection"
		}
		row := b.results.row(v.title, what, seconds, atMost(v.limit, least))
		cpu, err := b.measure(round, v, row.What, func(c contestant) error {
			_, took, err := run(ctx, c.server.addr, n, c.nars, 0)
			row.add(c.column, took.Seconds())
			return err
		})
		if err != nil {
			return err
		}
		for c, took := range cpu {
			sum[c] += took
		}
	}
	for _, c := range v.contestants {
		b.results.row(v.title, "CPU of the server for all NARs once", seconds, Bar{}).add(c.column, sum[c.column]/float64(len(narConnections)))
		if round == 0 {
			b.results.row(v.title, "sent", megabytes, Bar{}).add(c.column, float64(c.bytes))
		}
	}
	return nil
}

// memory measures what servers keep resident after everything else, and with many NARs in flight:
// first held half sent, then sent as fast as it goes.
func (b *bench) memory(ctx context.Context, v *service, what string) error {
	after := b.results.row(takes, "resident after all was served from "+what, megabytes, atMost(64e6, ""))
	peak := b.results.row(takes, "resident at most, with 256 NARs of "+what+" in flight", megabytes, atMost(128e6, ""))
	_, err := b.measure(0, v, peak.What, func(c contestant) error {
		if c.column == least {
			return nil
		}
		now, _, err := memoryOf(c.server.pid)
		if err != nil {
			return err
		}
		after.add(c.column, now)
		if err := hold(ctx, c.server.addr, flights, large(c.nars), func() { time.Sleep(flightHold) }); err != nil {
			return err
		}
		if _, _, err := run(ctx, c.server.addr, flights, c.nars, 0); err != nil {
			return err
		}
		_, most, err := memoryOf(c.server.pid)
		peak.add(c.column, most)
		return err
	})
	return err
}

// large picks the requests whose bodies do not fit into socket buffers, which Linux lets grow to 4
// MiB at the sender; if there is none, the largest.
func large(nars []request) []request {
	const tooLarge = 8 << 20
	all := slices.DeleteFunc(slices.Clone(nars), func(r request) bool { return r.size < tooLarge })
	if len(all) == 0 {
		all = append(all, slices.MaxFunc(nars, func(x, y request) int { return int(x.size - y.size) }))
	}
	return all
}

func narinfoPath(h nix.PathHash) string { return "/" + h.String() + ".narinfo" }

// User agents of clients: firn sends uncompressed NARs to those that know no zstd.
const (
	nixAgent = "curl/8.4.0 Nix/2.26.3"
	oldAgent = "curl/7.68.0 Nix/2.3.16"
)

// urls says where a server has the NAR of a path. If it has a narinfo too, it returns where that is
// and how long.
type urls func(ctx context.Context, base string, p storedPath) (nar, narinfo string, size int64, err error)

// fixed is for servers whose narinfos are not asked for, or that have those of nginx.
func fixed(path func(storedPath) string) urls {
	return func(ctx context.Context, base string, p storedPath) (string, string, int64, error) {
		return path(p), "/plain" + narinfoPath(p.Hash()), -1, nil
	}
}

// narinfo finds NARs by the narinfos below prefix. Each must say what Nix says of the path.
func narinfo(prefix, userAgent string) urls {
	return func(ctx context.Context, base string, p storedPath) (nar, path string, size int64, err error) {
		path = prefix + narinfoPath(p.Hash())
		resp, err := fetch(ctx, base+path, userAgent)
		if err != nil {
			return "", "", 0, err
		}
		defer resp.Body.Close()
		const most = 1 << 20
		text, err := io.ReadAll(io.LimitReader(resp.Body, most))
		if err != nil {
			return "", "", 0, err
		}
		info, err := nix.ParseNARInfo(nix.DefaultStoreDir, text)
		if err != nil {
			return "", "", 0, fmt.Errorf("GET %s: %w", path, err)
		}
		if info.NARHash != p.narHash || info.NARSize != p.narSize {
			return "", "", 0, fmt.Errorf("GET %s: NAR %s of %d bytes instead of %s of %d", path, info.NARHash, info.NARSize, p.narHash, p.narSize)
		}
		return prefix + "/" + info.URL, path, int64(len(text)), nil
	}
}

// verify asks a server for everything that will be measured, and checks each NAR, decompressed,
// against the hash that Nix knows. It is the warm-up too. Bodies are saved to a directory, if there
// is one, by path hash.
func verify(ctx context.Context, s *server, closure []storedPath, url urls, save string) (*target, error) {
	t := &target{narinfos: make([]request, len(closure)), nars: make([]request, len(closure))}
	base := "http://" + s.addr
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	for i, p := range closure {
		group.Go(func() error {
			path, _, _, err := url(groupCtx, base, p)
			if err != nil {
				return err
			}
			size, err := verifyNAR(groupCtx, base+path, p, save)
			if err != nil {
				return fmt.Errorf("GET %s: %w", path, err)
			}
			t.nars[i] = get(s.addr, path, "", http.StatusOK, size)
			// The narinfo is read again: a NAR that is compressed when it is first asked for has
			// got its file size now.
			_, info, size, err := url(groupCtx, base, p)
			t.narinfos[i] = get(s.addr, info, "User-Agent: "+nixAgent+"\r\n", http.StatusOK, size)
			return err
		})
	}
	err := group.Wait()
	for _, r := range t.nars {
		t.bytes += r.size
	}
	return t, err
}

// verifyNAR reads a NAR to its end, and returns the size of the body.
func verifyNAR(ctx context.Context, url string, p storedPath, save string) (int64, error) {
	resp, err := fetch(ctx, url, nixAgent)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var size counter // a NAR that is compressed while it is sent has no Content-Length
	file := io.TeeReader(resp.Body, &size)
	if save != "" {
		f, err := os.Create(filepath.Join(save, p.Hash().String()+".nar.zst"))
		if err != nil {
			return 0, err
		}
		defer f.Close()
		file = io.TeeReader(file, f)
	}
	nar := file
	if strings.HasSuffix(url, ".zst") {
		d, err := zstd.NewReader(file, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return 0, err
		}
		defer d.Close()
		nar = d
	}
	sum := sha256.New()
	n, err := io.Copy(sum, nar)
	if err != nil {
		return 0, err
	}
	if got := nix.SHA256Sum([32]byte(sum.Sum(nil))); got != p.narHash || n != p.narSize {
		return 0, fmt.Errorf("the bytes are those of NAR %s of %d bytes, not of %s of %d", got, n, p.narHash, p.narSize)
	}
	return int64(size), nil
}

// A counter counts what is written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
