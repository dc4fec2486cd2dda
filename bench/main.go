//go:build linux

// Command bench measures firn against nginx with the same files, against OpenSSH with Nix behind
// it, and against the least that a program in Go can do, in one run and in turns, on one machine:
//
//	go run .
//	go run . --quick
//	go run . --before v0.1.0
//
// It writes docs/benchmarks.md, which describes the method and has the last results.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/prometheus/procfs"

	"firn/internal/testing/debstore"
)

// Options are the command line.
type Options struct {
	Before  string   `help:"Measure another build of firn too: a program, or a commit of this repository, which is built." placeholder:"COMMIT|PROGRAM"`
	Firn    string   `help:"Measure this program instead of building firn from this repository." placeholder:"PROGRAM"`
	Only    []string `help:"Measure only what is named: serve, push, ssh or scale." enum:"serve,push,ssh,scale" default:"serve,push,ssh,scale"`
	Runs    int      `help:"Rounds of what is served and looked up." default:"5"`
	Copies  int      `help:"Rounds of what is pushed and copied." default:"3"`
	Quick   bool     `help:"Measure a small store in one round, to see whether everything works. The numbers say little."`
	Cache   string   `help:"Where stores and files are kept from one run to the next. (default: $FIRN_E2E_CACHE, or firn-e2e in the user's cache directory)" placeholder:"DIR"`
	Results string   `help:"Where results.json, benchmarks.md and benchmarks.svg are written. (default: for the page of a full run docs, else bench/results)" placeholder:"DIR"`
	Page    string   `help:"Measure nothing, and write the page from the results.json of an earlier run." placeholder:"FILE" type:"existingfile"`
}

const description = `Measure firn against nginx, OpenSSH with Nix, and the least that a program in Go can do.

It makes stores of this machine's Debian packages, which takes root, and keeps them for the next run. It needs Nix, nginx and OpenSSH (make nix).
With --before, each row has another build of firn beside this one, measured in the same rounds.`

// bench is a run.
type bench struct {
	opts     Options
	root     string // of the repository
	work     string // for everything that is not kept
	programs []program
	servers  []*server // all that were started
	rateTime time.Duration
	results  Results
	begin    time.Time
}

func main() {
	// Servers get a signal when the thread ends that started them: this thread lasts as long as the
	// process.
	runtime.LockOSThread()
	var err error
	switch {
	case len(os.Args) == 5 && os.Args[1] == leastCommand:
		err = serveLeast(os.Args[2], os.Args[3], os.Args[4])
	case len(os.Args) == 3 && os.Args[1] == sinkCommand:
		err = http.ListenAndServe(os.Args[2], &sink{})
	default:
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		if err = start(ctx); ctx.Err() != nil {
			err = errors.New("interrupted")
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// start does what the command line says.
func start(ctx context.Context) error {
	b := &bench{begin: time.Now(), rateTime: 700 * time.Millisecond}
	kong.Parse(&b.opts, kong.Name("bench"), kong.Description(description))
	text, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "firn").Output()
	if err != nil {
		return fmt.Errorf("find the source of firn: run this in the directory bench: %w", err)
	}
	b.root = strings.TrimSpace(string(text))
	if b.opts.Page != "" {
		text, err := os.ReadFile(b.opts.Page)
		if err == nil {
			err = json.Unmarshal(text, &b.results)
		}
		if err == nil {
			err = b.write("docs")
		}
		return err
	}
	return b.all(ctx)
}

func (b *bench) progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(b.begin).Seconds(), fmt.Sprintf(format, args...))
}

// all measures everything that is asked for.
func (b *bench) all(ctx context.Context) (err error) {
	if b.opts.Quick {
		b.opts.Runs, b.opts.Copies, b.rateTime = 1, 1, 50*time.Millisecond
	}
	if b.opts.Cache == "" {
		if b.opts.Cache, err = debstore.DefaultDir(); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(b.opts.Cache, 0o755); err != nil {
		return err
	}
	if b.work, err = os.MkdirTemp("", "firn-bench-"); err != nil {
		return err
	}
	// Nothing is removed until all is measured: for a while after many files were removed, ext4
	// looks at each of their inodes before it makes a new one, so that later measurements pay for
	// earlier ones, several times over.
	defer os.RemoveAll(b.work)
	if err := b.describe(ctx); err != nil {
		return err
	}
	b.progress("building firn")
	if b.programs, err = b.builds(ctx); err != nil {
		return err
	}
	var m *material
	if !slices.Equal(b.opts.Only, []string{"scale"}) {
		if m, err = b.prepare(ctx); err != nil {
			return err
		}
		b.results.Closure, b.results.Copied = m.first.describe(), m.pushed.describe()
	}
	for _, part := range []struct {
		name    string
		measure func(context.Context, *material) error
	}{{"serve", b.serving}, {"push", b.pushes}, {"ssh", b.ssh}, {"scale", b.scale}} {
		if !slices.Contains(b.opts.Only, part.name) {
			continue
		}
		if err := part.measure(ctx, m); err != nil {
			return err
		}
	}
	b.results.Took = time.Since(b.begin).Round(time.Second).String()
	dir := filepath.Join("bench", "results")
	if len(b.opts.Only) == 4 && !b.opts.Quick && b.opts.Before == "" {
		dir = "docs"
	}
	return b.write(dir)
}

// write writes the results and the page, and prints the tables. dir is below the root of the
// repository.
func (b *bench) write(dir string) error {
	results := filepath.Join(b.root, "bench", "results")
	dir = filepath.Join(b.root, dir)
	if b.opts.Results != "" {
		results, dir = b.opts.Results, b.opts.Results
	}
	slices.SortFunc(b.results.Sections, func(x, y *Section) int { return slices.Index(titles, x.Title) - slices.Index(titles, y.Title) })
	text, err := json.MarshalIndent(b.results, "", "\t")
	if err != nil {
		return err
	}
	page, err := b.results.page()
	if err != nil {
		return err
	}
	plot, err := b.results.plot()
	if err != nil {
		return err
	}
	for file, text := range map[string][]byte{
		filepath.Join(results, "results.json"): text,
		filepath.Join(dir, "benchmarks.md"):    page,
		filepath.Join(dir, "benchmarks.svg"):   plot,
	} {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, text, 0o644); err != nil {
			return err
		}
		b.progress("wrote %s", file)
	}
	for _, s := range b.results.Sections {
		fmt.Printf("\n## %s\n\n%s", s.Title, markdown(s.table()))
	}
	return nil
}

// describe says where, when and how numbers are measured, without saying whose machine it is.
func (b *bench) describe(ctx context.Context) error {
	r := &b.results
	r.Date = b.begin.UTC().Format(time.DateOnly)
	r.Command = strings.Join(append([]string{"cd bench && go run ."}, os.Args[1:]...), " ")
	r.Before = b.opts.Before
	proc, err := procfs.NewDefaultFS()
	if err != nil {
		return err
	}
	cpus, err := proc.CPUInfo()
	if err != nil {
		return err
	}
	memory, err := proc.Meminfo()
	if err != nil {
		return err
	}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	r.Machine = fmt.Sprintf("%s, %d cores, %d GiB, Linux %s, %s", cpus[0].ModelName, len(cpus), (*memory.MemTotalBytes+1<<29)>>30, bytes.TrimSpace(kernel), runtime.Version())
	for _, program := range [][]string{{daemon("nginx"), "-v"}, {"nix", "--version"}} {
		text, err := exec.CommandContext(ctx, program[0], program[1]).CombinedOutput()
		words := strings.Fields(string(text))
		if err != nil || len(words) == 0 {
			return fmt.Errorf("ask %s for its version (make nix installs it): %w", program[0], err)
		}
		r.Machine += fmt.Sprintf(", %s %s", filepath.Base(program[0]), strings.TrimPrefix(words[len(words)-1], "nginx/"))
	}
	return nil
}
