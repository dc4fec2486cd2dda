//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Real Nix pushes a part of the closure to firn, to a server that keeps nothing, and writes it as files of its own, in turns.

// pushPart is what --only calls this.
const pushPart = "push"

// What stands for a server in the samples of pushes. Nix's files are nixFiles.
const (
	sinkPlain = "nix copy to nowhere, uncompressed"
	pushPlain = "nix copy to firn, uncompressed"
	sinkZstd  = "nix copy to nowhere, zstd"
	pushZstd  = "nix copy to firn, zstd"
)

var (
	metricPush    = Metric{Key: "push_s", Title: "copy of a part of the closure", Unit: "s", Scale: 1, Digits: 2, Ratio: true}
	metricUploads = Metric{Key: "resident_uploads_bytes", Title: "resident at most, 16 uploads of 1 GB at once", Unit: "MB", Scale: 1e-6, Digits: 1}
)

var pushers = []string{nixFiles, sinkPlain, pushPlain, sinkZstd, pushZstd}

// pushBars are the bars of pushes; none when nothing was pushed.
func pushBars(s Samples) []Bar {
	if len(s.of(nixFiles, metricPush.Key)) == 0 {
		return nil
	}
	ratio := func(pusher string) float64 {
		return medianRatio(s.of(pusher, metricPush.Key), s.of(nixFiles, metricPush.Key))
	}
	return []Bar{
		atMostRatio("copy to the depot, uncompressed, to Nix's to files", ratio(pushPlain), 0.9).near("pushes", ratio(sinkPlain)),
		atMostRatio("copy to the depot, zstd, to Nix's to files", ratio(pushZstd), 1.1).near("pushes", ratio(sinkZstd)),
		under(metricUploads, metricUploads.Title, median(s.of(pushPlain, metricUploads.Key)), 300e6).note("memory"),
	}
}

// pushRows are the table of pushes, nil where none were measured.
func (r *Report) pushRows() [][]string {
	if len(r.Samples.of(nixFiles, metricPush.Key)) == 0 {
		return nil
	}
	specs := make([]Spec, len(pushers))
	for i, pusher := range pushers {
		specs[i].Name = pusher
		if pusher != nixFiles {
			specs[i].Baseline = nixFiles
		}
	}
	return r.table(specs, []Metric{metricPush, metricUploads})
}

// push measures pushes.
func (b *shootout) push(ctx context.Context, program string, from source) error {
	return b.rounds(stagePushes, func(round int) error {
		for i := range pushers {
			pusher := pushers[(round+i)%len(pushers)]
			if err := b.pushOnce(ctx, program, pusher, from); err != nil {
				return fmt.Errorf("%s: %w", pusher, err)
			}
		}
		return nil
	})
}

// pushOnce has Nix copy to somewhere new.
func (b *shootout) pushOnce(ctx context.Context, program, pusher string, from source) error {
	dir, err := os.MkdirTemp(b.work, "push-")
	if err != nil {
		return err
	}
	to, tail := fileStore(filepath.Join(dir, "cache")), func() string { return "" }
	switch pusher {
	case sinkPlain, sinkZstd:
		s, err := start(ctx, b.client, sinkSpec(pusher), b.work)
		if err != nil {
			return err
		}
		defer s.stop()
		to, tail = url.URL{Scheme: "http", Host: s.Addr.String()}, s.logTail
	case pushPlain, pushZstd:
		s, err := b.startDepot(ctx, program, filepath.Join(dir, "cache"))
		if err != nil {
			return err
		}
		defer s.stop()
		to, tail = s.store(), s.logTail
	}
	to.RawQuery = "compression=zstd&parallel-compression=true"
	if pusher == pushPlain || pusher == sinkPlain {
		to.RawQuery = "compression=none"
	}
	unix.Sync() // so that nobody waits for what was written before
	took, err := nixCopy(ctx, from, to, dir)
	if err != nil {
		return fmt.Errorf("%w%s", err, tail())
	}
	b.samples.add(pusher, metricPush.Key, took.Seconds())
	b.progress("%s: %s %s", pusher, metricPush.format(took.Seconds()), metricPush.Unit)
	return nil
}

// source is what is copied.
type source struct {
	root string   // of the store that has it
	what []string // these paths, and all that they refer to
}

func fileStore(dir string) url.URL { return url.URL{Scheme: "file", Path: dir} }

// nixCopy copies, and returns how long that took. Nothing that Nix remembers of other copies counts.
func nixCopy(ctx context.Context, from source, to url.URL, dir string) (time.Duration, error) {
	return timeNix(ctx, dir, nil, append([]string{"copy", "--from", from.root, "--to", to.String()}, from.what...)...)
}

// timeNix returns how long a command of Nix takes, for which dir gets its home.
func timeNix(ctx context.Context, dir string, env []string, args ...string) (time.Duration, error) {
	home, err := os.MkdirTemp(dir, "home-")
	if err != nil {
		return 0, err
	}
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
