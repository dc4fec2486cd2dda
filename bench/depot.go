//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// The depot that firn serves from has two generations of the whole closure in it. It is filled with `firn import`, which verifies and keeps
// what a push would, but needs no client of Nix, and so takes a part of its time.

// pushedCache is the cache that is pushed to.
const pushedCache = "main"

// What stands for a server in the samples.
const (
	firnDepot = "firn, depot"
	firnAgain = "firn, depot, rebuilt"
	nixFiles  = "nix copy to files, zstd"
)

var (
	metricKept  = Metric{Key: "kept_bytes", Title: "kept of one generation", Unit: "MB", Scale: 1e-6, Digits: 1, Ratio: true}
	metricAdded = Metric{Key: "added_bytes", Title: "added by a rebuild of everything", Unit: "MB", Scale: 1e-6, Digits: 1}
)

// keptBars are the bars of what is kept; none when nothing was.
func keptBars(s Samples) []Bar {
	if len(s.of(firnDepot, metricKept.Key)) == 0 {
		return nil
	}
	return []Bar{
		atMostRatio(metricKept.Title+", to Nix's files", medianRatio(s.of(firnDepot, metricKept.Key), s.of(nixFiles, metricKept.Key)), 1.0),
		atMostPercent(metricAdded.Title+", of the first generation", 100*median(s.of(firnDepot, metricAdded.Key))/median(s.of(firnDepot, metricKept.Key)), 1),
	}
}

// keptRows are the table of what is kept, nil where nothing was.
func (r *Report) keptRows() [][]string {
	if len(r.Samples.of(firnDepot, metricKept.Key)) == 0 {
		return nil
	}
	return r.table([]Spec{{Name: nixFiles}, {Name: firnDepot, Baseline: nixFiles}}, []Metric{metricKept, metricAdded})
}

// fillDepot fills a depot with both generations, measures what it keeps of the first and what the second adds, and returns its state directory.
func (b *shootout) fillDepot(ctx context.Context, program string, m *Material) (string, error) {
	state := filepath.Join(b.work, "depot")
	s, err := b.startDepot(ctx, program, state) // which makes the cache
	if err != nil {
		return "", err
	}
	s.stop()
	var sizes [2]int64
	for i, flat := range []string{m.Plain, m.Again.Plain} {
		begin := time.Now()
		if err := output(ctx, program, "import", "--state", state, "--cache", pushedCache, flat); err != nil {
			return "", fmt.Errorf("import generation %d: %w", i+1, err)
		}
		if sizes[i], err = sizeOf(state); err != nil {
			return "", err
		}
		b.progress("generation %d imported in %.1f s", i+1, time.Since(begin).Seconds())
	}
	files, err := sizeOf(m.Zstd)
	if err != nil {
		return "", err
	}
	b.samples.add(nixFiles, metricKept.Key, float64(files))
	b.samples.add(firnDepot, metricKept.Key, float64(sizes[0]))
	b.samples.add(firnDepot, metricAdded.Key, float64(sizes[1]-sizes[0]))
	b.progress("%s: %s %s, of Nix's files %s; %s: %s", metricKept.Title, metricKept.format(float64(sizes[0])), metricKept.Unit, metricKept.format(float64(files)),
		metricAdded.Title, metricAdded.format(float64(sizes[1]-sizes[0])))
	return state, nil
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
func (s *depotServer) store() url.URL {
	return url.URL{Scheme: "http", Host: s.Addr.String(), User: url.UserPassword("bench", s.token)}
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
