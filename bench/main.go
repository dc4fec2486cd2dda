//go:build linux

// Command bench is the shootout: firn beside nginx with the same store paths as flat files, and beside any other binary cache,
// measured in one run, in turns, on one machine.
//
//	go run .
//	go run . --quick
//	go run . --peer harmonia=http://127.0.0.1:5001
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
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"firn/internal/testing/debstore"
)

// Options are the command line.
type Options struct {
	Runs    int           `help:"Measure so many times what is served; what is copied three times, if this is no less." default:"5"`
	Quick   bool          `help:"Measure a small store, twice, in less than a minute. Writes to the results directory only."`
	Whole   bool          `help:"Copy the whole closure where a part of it is copied otherwise: pushes take five times as long then."`
	Limit   time.Duration `help:"Begin no round that would let all end later than this after the start." default:"9m15s"`
	Peer    []string      `help:"A further server that runs already, on the loopback interface, over the same store. With its process id, its CPU time and memory are measured too. Repeatable." placeholder:"NAME=URL[,PID]" sep:"none"`
	Only    []string      `help:"Measure only these servers, and the ones that they are compared with: nginx, bare Go, firn, \"nginx, zstd\", \"firn, zstd\" or a peer's name; push, what is pushed; ssh, what is copied over SSH; or catalog, look-ups in large catalogs. Repeatable." placeholder:"NAME" sep:"none"`
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

    go run .                       everything, in under ten minutes
    go run . --quick               a part of them, in under one
    go run . --only firn           firn and nginx, uncompressed
    go run . --only push           what Nix pushes to firn
    go run . --only ssh --whole    copies of the whole closure over SSH
    go run . --only catalog        look-ups among a million pushed paths
    go run . --peer harmonia=http://127.0.0.1:5001,4711`

func main() {
	// Servers get a signal when the thread that started them ends (see start), and inherit its priority:
	// this thread lasts as long as the process, and is the one that starts servers and sends requests.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch {
	case len(os.Args) == 4 && os.Args[1] == bareCommand:
		exit(serveBare(ctx, os.Args[2], os.Args[3]))
	case len(os.Args) == 3 && os.Args[1] == sinkCommand:
		exit(serveSink(ctx, os.Args[2]))
	case len(os.Args) == 2 && os.Args[1] == sshSinkCommand:
		exit(serveSSHSink(ctx))
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

// complete fills in what depends on the machine.
func (o *Options) complete(root string) error {
	if o.Runs < 1 {
		return fmt.Errorf("--runs %d: want at least one", o.Runs)
	}
	if o.Quick {
		const quickRuns = 2
		o.Runs = min(o.Runs, quickRuns)
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

// copyRounds is how often what is copied is measured.
func (o *Options) copyRounds() int {
	const most = 3
	if o.Quick {
		return 1
	}
	return min(o.Runs, most)
}

// commandLine is how to run this again.
func commandLine(args []string) string {
	words := []string{"go run ."}
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
