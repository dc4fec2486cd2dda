//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

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
	// Nothing is removed until all is measured: for a while after many files were removed, ext4 looks at each of their inodes
	// before it makes a new one, so that who comes later pays for who came before, several times over.
	defer removeStore(work)
	e, err := enlist(opts)
	if err != nil {
		return err
	}
	client, err := NewClient()
	if err != nil {
		return err
	}
	b := &shootout{
		client: client, discard: opts.Discard, rateTime: rateTime, work: work, progress: progress,
		plan: makePlan(opts, e, begin), remarks: e.remarks, targets: make(map[*Server]*Target), samples: make(Samples),
	}
	if opts.Quick {
		b.rateTime = rateTimeQuick
	}
	progress("it takes %v", b.plan)
	material, err := b.prepare(ctx, opts, e, root)
	if err != nil {
		return err
	}
	raisePriority()
	defer b.leave()
	r := &Report{Command: commandLine(os.Args[1:]), Date: begin, Discard: opts.Discard, NotesDir: filepath.Join(root, "bench"), Metrics: metrics()}
	if r.Machine, err = describeMachine(ctx); err != nil {
		return err
	}
	if r.Closure = material.Closure; opts.Quick {
		r.Closure = part(r.Closure)
	}
	if err := b.serving(ctx, e, material, r.Closure); err != nil {
		return err
	}
	if e.push || e.ssh {
		r.Copied = toCopy(opts, material)
	}
	if e.push {
		if err := b.push(ctx, e.program, source{material.Root, tops(r.Copied)}); err != nil {
			return err
		}
		size, part := int64(uploadSize), int64(uploadPart)
		switch {
		case opts.Quick:
			size, part = uploadSizeQuick, 2*uploadSizeQuick
		case opts.Whole:
			part = 2 * uploadSize
		}
		if err := b.uploadAtOnce(ctx, e.program, size, part); err != nil {
			return err
		}
	}
	if e.ssh {
		var atOnce []source
		for _, g := range []*generation{&material.generation, material.Again} {
			atOnce = append(atOnce, source{g.Root, tops(closedPart(g.Closure, memoryBytes))})
		}
		if err := b.ssh(ctx, e.program, source{material.Root, tops(r.Copied)}, atOnce); err != nil {
			return err
		}
	}
	if e.databases {
		if err := b.scale(ctx, opts.Cache, e.program, material.Key); err != nil {
			return err
		}
	}
	if e.catalog {
		if err := b.catalogs(ctx, opts, e.program); err != nil {
			return err
		}
	}
	progress("removing what was written")
	b.leave()
	removeStore(work)
	r.Took, r.Runs, r.Servers, r.Samples, r.Remarks = time.Since(begin), b.runs, b.servers, b.samples, b.remarks
	return publish(opts, r)
}

// prepare makes what is measured, as far as it is not there: the program, stores, flat files, the depot, large databases and catalogs.
// Nothing is timed meanwhile, so all of it is made at the same time.
func (b *shootout) prepare(ctx context.Context, opts Options, e *entrants, root string) (m *Material, err error) {
	if err := needTools(ctx, b.progress); err != nil {
		return nil, err
	}
	group, ctx := errgroup.WithContext(ctx)
	m = &Material{}
	built := make(chan struct{})
	group.Go(func() error {
		if e.firn && e.program == "" {
			b.progress("building firn")
			var err error
			if e.program, err = buildFirn(ctx, root, b.work); err != nil {
				return err
			}
		}
		close(built)
		if e.catalog {
			return fillCatalogs(ctx, opts.Cache, e.program, b.work, b.progress)
		}
		return nil
	})
	if len(e.specs) > 0 || e.push || e.ssh {
		group.Go(func() (err error) {
			if m, err = prepare(ctx, opts.Cache, opts.Store, opts.Quick, b.progress); err != nil || !e.depot {
				return err
			}
			select {
			case <-built:
				e.state, err = b.fillDepot(ctx, e.program, m)
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}
	if e.databases {
		group.Go(func() error {
			for _, n := range scalePaths {
				if _, err := generateStore(ctx, opts.Cache, n, b.progress); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err = group.Wait()
	b.progress("everything is prepared")
	return m, err
}

// serving measures what is served, by servers that leave afterwards.
func (b *shootout) serving(ctx context.Context, e *entrants, m *Material, served []Path) error {
	if len(e.specs) == 0 {
		return nil
	}
	for _, spec := range e.choose(competitors(e.program, m, e.state), e.peers) {
		closure := served
		if spec.Closure != nil {
			closure = spec.Closure
		}
		if err := b.enter(ctx, spec, closure); err != nil {
			return err
		}
	}
	unix.Sync() // so that nothing is written meanwhile
	if err := b.rounds(stageServing, func(int) error { return b.run(ctx) }); err != nil {
		return err
	}
	err := b.inFlight(ctx)
	b.leave()
	return err
}

// toCopy is what is copied to caches and over SSH.
func toCopy(opts Options, m *Material) []Path {
	switch {
	case opts.Whole:
		return m.Closure
	case opts.Quick:
		return closedPart(m.Closure, copiedBytesQuick)
	default:
		return closedPart(m.Closure, copiedBytes)
	}
}

// raisePriority lets servers and client go before other work of the machine, where that is allowed; elsewhere they share as all do.
// It is for the calling thread, which is the one that sends the requests, and for the processes that it starts.
func raisePriority() {
	const niceness = -10
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, niceness)
}

// entrants are the servers that take part, and what else is measured.
type entrants struct {
	specs     []Spec // by name; how they are started is known when all is prepared
	peers     []Spec
	firn      bool   // it takes part
	program   string // firn
	depot     bool   // firn serves from a depot, too
	state     string // the depot
	databases bool   // firn serves over large databases
	push      bool   // what is pushed is measured
	ssh       bool   // firn is compared with OpenSSH
	catalog   bool   // large catalogs are looked up in
	remarks   []string
}

// enlist says what takes part.
func enlist(opts Options) (*entrants, error) {
	wanted := func(name string) bool { return len(opts.Only) == 0 || slices.Contains(opts.Only, name) }
	made := opts.Store == "" // of two generations
	e := &entrants{
		program: opts.Firn,
		depot:   made && (wanted(firnDepot) || wanted(firnAgain)),
		push:    made && wanted(pushPart),
		ssh:     made && wanted(sshPart),
		catalog: made && wanted(catalogPart),
	}
	for _, p := range []struct {
		on   *bool
		what string
		name string
	}{{&e.ssh, "What is copied over SSH was", sshPart}, {&e.catalog, "Large catalogs were", catalogPart}} {
		if *p.on && opts.Quick && len(opts.Only) == 0 {
			*p.on = false
			e.remarks = append(e.remarks, fmt.Sprintf("%s not measured: in a quick run it takes --only %s.", p.what, p.name))
		}
	}
	for _, text := range opts.Peer {
		peer, err := parsePeer(text)
		if err != nil {
			return nil, err
		}
		e.peers = append(e.peers, peer)
	}
	needed := make(map[string]bool)
	for _, spec := range append(competitors("", &Material{}, ""), e.peers...) {
		if !wanted(spec.Name) || !made && (spec.Name == firnDepot || spec.Name == firnAgain) {
			continue
		}
		needed[spec.Name], needed[spec.Baseline] = true, true // a baseline takes part where one that is compared with it does
		if spec.URL != nil {                                  // its baseline is known when it has been asked
			needed[nginxPlain], needed[nginxZstd] = true, true
		}
	}
	for _, spec := range append(competitors("", &Material{}, ""), e.peers...) {
		if needed[spec.Name] {
			e.specs = append(e.specs, spec)
		}
	}
	e.databases = !opts.Quick && needed[firnPlain]
	e.firn = e.depot || e.push || e.ssh || e.catalog || needed[firnPlain] || needed[firnZstd]
	if len(e.specs) == 0 && !e.push && !e.ssh && !e.catalog {
		return nil, fmt.Errorf("--only %q: no such server", opts.Only)
	}
	return e, nil
}

// competitors are all servers that are started here. state is the depot.
func competitors(program string, m *Material, state string) []Spec {
	again := depotSpec(firnAgain, nginxZstd, program, state)
	if m.Again != nil {
		again.Closure = m.Again.Closure
	}
	bare := bareSpec(bareZstd, nginxZstd, m.Zstd)
	zstd := firnSpec(firnZstd, nginxZstd, program, m.Root, m.Key, "--compression", "zstd")
	bare.Twin, zstd.Twin, again.Twin = true, true, true
	return []Spec{
		nginxSpec(nginxPlain, "", m.Plain),
		bareSpec(bareGo, nginxPlain, m.Plain),
		firnSpec(firnPlain, nginxPlain, program, m.Root, m.Key),
		nginxSpec(nginxZstd, "", m.Zstd),
		bare,
		zstd,
		depotSpec(firnDepot, nginxZstd, program, state),
		again,
	}
}

// choose leaves those that take part.
func (e *entrants) choose(all, peers []Spec) []Spec {
	return slices.DeleteFunc(append(all, peers...), func(spec Spec) bool {
		return !slices.ContainsFunc(e.specs, func(s Spec) bool { return s.Name == spec.Name })
	})
}
