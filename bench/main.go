//go:build linux

// Command bench is the shootout: firn beside nginx with the same store paths as flat files, and beside any other binary cache,
// measured in one run, in turns, on one machine.
//
//	go run ./bench
//	go run ./bench --quick
//	go run ./bench --peer harmonia=http://127.0.0.1:5001
//
// For a closure of store paths it measures what the public benchmark of Nix caches does (github.com/Mic92/cache-shootout),
// and what a server costs its machine. docs/benchmarks.md, which it writes, describes the method and has the last results.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"

	"firn/internal/debstore"
)

// lastPhases is the time set aside for what is measured once, after the runs.
const lastPhases = 60 * time.Second

// Options are the command line.
type Options struct {
	Runs    int           `help:"Measure everything so many times." default:"5"`
	Quick   bool          `help:"Measure a part of the closure, three times, in less than a minute. Writes to the results directory only."`
	Limit   time.Duration `help:"Begin no run that would end later than this after the start." default:"9m30s"`
	Peer    []string      `help:"A further server that runs already, on the loopback interface, over the same store. With its process id, its CPU time and memory are measured too. Repeatable." placeholder:"NAME=URL[,PID]" sep:"none"`
	Only    []string      `help:"Measure only these servers, and the ones that they are compared with: nginx, bare Go, firn, \"nginx, zstd\", \"firn, zstd\" or a peer's name; ssh, what is copied over SSH; or catalog, look-ups in large catalogs. Repeatable." placeholder:"NAME" sep:"none"`
	Firn    string        `help:"Measure this program instead of building ./cmd/firn." placeholder:"PROGRAM"`
	Store   string        `help:"Serve all paths of the store in this root, instead of one made of this machine's Debian packages." placeholder:"ROOT"`
	Discard Discard       `help:"What the client does with the bodies of NARs: truncate lets the kernel drop them, copy reads them into memory." enum:"truncate,copy" default:"truncate"`
	Cache   string        `help:"Where stores and flat files are kept from one time to the next (default: firn-e2e in the user's cache directory)." placeholder:"DIR"`
	Results string        `help:"Where the CSV is written, and the page of a quick run (default: bench/results)." placeholder:"DIR"`
	Docs    string        `help:"Where the page and the plot of a run of everything are written (default: docs)." placeholder:"DIR"`
}

const description = `The shootout: firn beside nginx and other binary caches, measured in turns on this machine.

It makes a store of this machine's Debian packages, writes it as flat files with nix copy, starts nginx over these and firn over the store,
checks every byte that they serve, and prints times, requests per second, CPU time and memory. What is missing (Nix, nginx) is installed with apt-get.

Examples:

    go run ./bench                       everything, in under ten minutes
    go run ./bench --quick               a part of them, in under one
    go run ./bench --only firn           firn and nginx, uncompressed
    go run ./bench --only ssh            copies of the whole closure over SSH
    go run ./bench --only catalog        look-ups among a million pushed paths
    go run ./bench --peer harmonia=http://127.0.0.1:5001,4711`

func main() {
	// Servers get a signal when the thread that started them ends (see start), and inherit its priority:
	// this thread lasts as long as the process, and is the one that starts servers and sends requests.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) == 4 && os.Args[1] == bareCommand {
		exit(serveBare(ctx, os.Args[2], os.Args[3]))
	}
	var opts Options
	kong.Parse(&opts, kong.Name("bench"), kong.Description(description))
	err := shoot(ctx, opts)
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	exit(err)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// shoot does everything.
func shoot(ctx context.Context, opts Options) error {
	begin := time.Now()
	progress := func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
	}
	root, err := moduleRoot(ctx)
	if err != nil {
		return err
	}
	if err := opts.complete(root); err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "firn-shootout-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := needTools(ctx, progress); err != nil {
		return err
	}
	material := &Material{}
	if !slices.Equal(opts.Only, []string{catalogPart}) { // which serves no NARs
		if material, err = prepare(ctx, opts.Cache, opts.Store, opts.Quick, progress); err != nil {
			return err
		}
	}
	if opts.Quick {
		material.Closure = part(material.Closure)
	}
	entrants, err := enlist(ctx, opts, root, work, material, progress)
	if err != nil {
		return err
	}
	client, err := NewClient()
	if err != nil {
		return err
	}
	raisePriority()
	b := &shootout{client: client, discard: opts.Discard, rateTime: rateTime, work: work, progress: progress, targets: make(map[*Server]*Target), samples: make(Samples)}
	if opts.Quick {
		b.rateTime = rateTimeQuick
	}
	defer b.leave()
	if entrants.depot {
		depot, err := b.push(ctx, opts, entrants.firn, material.Generations)
		if err != nil {
			return err
		}
		for i, spec := range entrants.specs {
			switch spec.Name {
			case firnDepot:
				entrants.specs[i] = depotSpec(spec.Name, spec.Baseline, entrants.firn, depot.State)
			case firnAgain:
				entrants.specs[i] = depotSpec(spec.Name, spec.Baseline, entrants.firn, depot.State)
				entrants.specs[i].Closure = depot.Again
			}
		}
	}
	if entrants.ssh {
		if err := b.ssh(ctx, opts, entrants.firn, material.Generations, len(entrants.specs) == 0, begin); err != nil {
			return err
		}
	}
	for _, spec := range entrants.specs {
		closure := material.Closure
		if spec.Closure != nil {
			closure = spec.Closure
		}
		if err := b.enter(ctx, spec, closure); err != nil {
			return err
		}
	}
	for longest := time.Duration(0); b.runs < opts.Runs && len(b.servers) > 0; {
		if b.runs > 0 && time.Since(begin)+longest+lastPhases > opts.Limit {
			progress("%d of %d runs made: another would end after %v", b.runs, opts.Runs, opts.Limit)
			break
		}
		started := time.Now()
		if err := b.run(ctx); err != nil {
			return err
		}
		longest = max(longest, time.Since(started))
	}
	if err := b.inFlight(ctx); err != nil {
		return err
	}
	if entrants.firn != "" && !opts.Quick && len(b.servers) > 0 {
		if err := b.scale(ctx, opts.Cache, entrants.firn, material.Key); ctx.Err() != nil {
			return ctx.Err()
		} else if err != nil { // what was measured so far is kept
			entrants.remarks = append(entrants.remarks, fmt.Sprintf("Generated databases are not measured: %v", err))
		}
	}
	if entrants.catalog {
		if err := b.catalogs(ctx, opts, entrants.firn); err != nil {
			return err
		}
	}
	machine, err := describeMachine(ctx)
	if err != nil {
		return err
	}
	return publish(opts, &Report{
		Machine:  machine,
		Command:  commandLine(os.Args[1:]),
		Date:     begin,
		Took:     time.Since(begin),
		Runs:     b.runs,
		Discard:  opts.Discard,
		Closure:  material.Closure,
		Servers:  b.servers,
		Targets:  b.targets,
		Samples:  b.samples,
		Metrics:  metrics(),
		Remarks:  entrants.remarks,
		NotesDir: filepath.Join(root, "bench"),
	})
}

// raisePriority lets servers and client go before other work of the machine, where that is allowed; elsewhere they share as all do.
// It is for the calling thread, which is the one that sends the requests, and for the processes that it starts.
func raisePriority() {
	const niceness = -10
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, niceness)
}

// complete fills in what depends on the machine.
func (o *Options) complete(root string) error {
	if o.Runs < 1 {
		return fmt.Errorf("--runs %d: want at least one", o.Runs)
	}
	if o.Quick {
		o.Runs = min(o.Runs, 3)
	}
	if o.Results == "" {
		o.Results = filepath.Join(root, "bench", "results")
	}
	if o.Docs == "" {
		o.Docs = filepath.Join(root, "docs")
		if len(o.Only) > 0 {
			o.Docs = o.Results // which has a page of its own, beside that of everything
		}
	}
	if o.Quick {
		o.Docs = o.Results
	}
	if o.Cache == "" {
		dir, err := debstore.DefaultDir()
		if err != nil {
			return err
		}
		o.Cache = dir
	}
	for _, dir := range []string{o.Results, o.Docs, o.Cache} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// entrants are the servers that take part.
type entrants struct {
	specs   []Spec
	firn    string   // the program; "": firn takes no part
	depot   bool     // firn serves from a depot, too
	ssh     bool     // firn is compared with OpenSSH
	catalog bool     // large catalogs are looked up in
	remarks []string // what is not measured, and why
}

// enlist says which servers take part. A baseline always does when one that is compared with it does.
func enlist(ctx context.Context, opts Options, root, work string, m *Material, progress func(string, ...any)) (*entrants, error) {
	wanted := func(name string) bool { return len(opts.Only) == 0 || slices.Contains(opts.Only, name) }
	e := &entrants{}
	all := []Spec{nginxSpec(nginxPlain, "", m.Plain), bareSpec(m.Plain)}
	zstd := false
	e.depot = opts.Store == "" && (wanted(firnDepot) || wanted(firnAgain))
	e.ssh = opts.Store == "" && wanted(sshPart)
	if e.ssh && opts.Quick && len(opts.Only) == 0 {
		e.ssh = false
		e.remarks = append(e.remarks, "What is copied over SSH was not measured: in a quick run it takes --only ssh.")
	}
	e.catalog = opts.Store == "" && wanted(catalogPart)
	if e.catalog && opts.Quick && len(opts.Only) == 0 {
		e.catalog = false
		e.remarks = append(e.remarks, "Large catalogs were not measured: in a quick run it takes --only catalog.")
	}
	if wanted(firnPlain) || wanted(firnZstd) || e.depot || e.ssh || e.catalog {
		var err error
		if e.firn = opts.Firn; e.firn == "" {
			progress("building firn")
			if e.firn, err = buildFirn(ctx, root, work); err != nil {
				return nil, err
			}
		}
		all = append(all, firnSpec(firnPlain, nginxPlain, e.firn, m.Root, m.Key))
		if zstd, err = hasFlag(ctx, e.firn, "--compression"); err != nil {
			return nil, err
		}
		if !zstd {
			e.remarks = append(e.remarks, "firn has no --compression flag yet, so its zstd is not measured.")
		}
	}
	all = append(all, nginxSpec(nginxZstd, "", m.Zstd))
	if zstd {
		all = append(all, firnSpec(firnZstd, nginxZstd, e.firn, m.Root, m.Key, "--compression", "zstd"))
	}
	if e.depot { // where it is, is known when it has been filled
		all = append(all, depotSpec(firnDepot, nginxZstd, e.firn, ""), depotSpec(firnAgain, nginxZstd, e.firn, ""))
	}
	for _, text := range opts.Peer {
		peer, err := parsePeer(text)
		if err != nil {
			return nil, err
		}
		all = append(all, peer)
	}
	needed := make(map[string]bool)
	for _, spec := range all {
		if !wanted(spec.Name) {
			continue
		}
		needed[spec.Name], needed[spec.Baseline] = true, true
		if spec.URL != nil { // its baseline is known when it has been asked
			needed[nginxPlain], needed[nginxZstd] = true, true
		}
	}
	for _, spec := range all {
		if needed[spec.Name] {
			e.specs = append(e.specs, spec)
		}
	}
	if len(e.specs) == 0 && !e.ssh && !e.catalog {
		return nil, fmt.Errorf("--only %q: no such server", opts.Only)
	}
	return e, nil
}

// commandLine is how to run this again.
func commandLine(args []string) string {
	words := []string{"go run ./bench"}
	for _, arg := range args {
		if strings.ContainsAny(arg, " ,") {
			arg = strconv.Quote(arg)
		}
		words = append(words, arg)
	}
	return strings.Join(words, " ")
}

// moduleRoot is the directory of this module, which the program is run in.
func moduleRoot(ctx context.Context) (string, error) {
	text, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "firn").Output()
	if err != nil {
		return "", fmt.Errorf("find the module firn: run this in its directory: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}
