package main

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// repository is the root of the repository, from the directory of this program.
const repository = ".."

// A release is what goes into packages.
type release struct {
	dir        string    // of what is below
	version    string    // as `firn version` has it
	commit     string    // "" where there is no git
	date       time.Time // of the commit
	maintainer string    // who made the commit, "NAME <ADDRESS>"
}

// newRelease builds the programs, and has one of them write its manual, completions and configuration.
//
//	ARCH/firn                          the program
//	man/man1/*.1.gz, man/man5/*.5.gz   the manual
//	completion/bash, zsh, fish
//	firn.toml                          every setting, commented out but for listen and state
//	licenses.gz                        of everything that is linked into the program
//	changelog.gz
func newRelease(ctx context.Context, dir string, arches []string) (*release, error) {
	r := &release{dir: dir}
	if err := r.readCommit(ctx); err != nil {
		return nil, err
	}
	for _, arch := range arches {
		if err := build(ctx, r.program(arch), "linux", arch); err != nil {
			return nil, err
		}
	}
	// The program that runs here tells the same about itself as all others.
	firn := r.program(runtime.GOARCH)
	if runtime.GOOS != "linux" || !slices.Contains(arches, runtime.GOARCH) {
		firn = r.path("firn")
		if err := build(ctx, firn, runtime.GOOS, runtime.GOARCH); err != nil {
			return nil, err
		}
	}
	info, err := buildinfo.ReadFile(firn)
	if err != nil {
		return nil, err
	}
	r.version = info.Main.Version
	if r.version == "" || r.version == "(devel)" {
		r.version = "devel"
	}

	if _, err := output(ctx, firn, "manual", r.path("man")); err != nil {
		return nil, err
	}
	pages, err := filepath.Glob(r.path("man", "man?", "*"))
	if err != nil {
		return nil, err
	}
	for _, page := range append(pages, filepath.Join(repository, "CHANGELOG.md")) {
		text, err := os.ReadFile(page)
		if err != nil {
			return nil, err
		}
		name := page + ".gz"
		if filepath.Base(page) == "CHANGELOG.md" {
			name = r.path("changelog.gz")
		}
		if err := writeGzip(name, text); err != nil {
			return nil, err
		}
	}
	if err := os.Mkdir(r.path("completion"), 0o755); err != nil {
		return nil, err
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if err := r.keep(ctx, r.path("completion", shell), firn, "completion", shell); err != nil {
			return nil, err
		}
	}
	example, err := output(ctx, firn, "config", "example", "--state", stateDir, "--listen", localAddress)
	if err != nil {
		return nil, err
	}
	if example, err = everywhere(example); err != nil {
		return nil, err
	}
	if err := os.WriteFile(r.path("firn.toml"), example, 0o644); err != nil {
		return nil, err
	}
	return r, r.writeLicenses(ctx, info)
}

// stateDir is the state directory of a server from a package.
const stateDir = "/var/lib/firn"

// localAddress is where a server from a package listens: it starts when it is installed, before an
// administrator can say who may read the store. It is IPv4, which every machine has.
const localAddress = "127.0.0.1:5000"

// everywhere adds the line that serves other machines to a configuration that serves this one only.
// It is a comment.
func everywhere(example []byte) ([]byte, error) {
	local := []byte("\nlisten = [\"" + localAddress + "\"]\n")
	if bytes.Count(example, local) != 1 {
		return nil, fmt.Errorf("the configuration has no line %q", bytes.TrimSpace(local))
	}
	both := "\n# This serves this machine only. To serve others, put the second line in place of the first." +
		string(local) + "#listen = [\"[::]:5000\"]\n"
	return bytes.Replace(example, local, []byte(both), 1), nil
}

// path returns the path of a file of the release.
func (r *release) path(names ...string) string {
	return filepath.Join(append([]string{r.dir}, names...)...)
}

// program returns the path of the program for an architecture.
func (r *release) program(arch string) string { return r.path(arch, "firn") }

// keep writes what a command prints to a file.
func (r *release) keep(ctx context.Context, path, name string, args ...string) error {
	text, err := output(ctx, name, args...)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}

// readCommit asks git for the commit, and takes the time of SOURCE_DATE_EPOCH if that is set.
func (r *release) readCommit(ctx context.Context) error {
	out, err := output(ctx, "git", "-C", repository, "log", "-1", "--format=%H%n%ct%n%an <%ae>")
	seconds := ""
	if fields := strings.Split(strings.TrimSpace(string(out)), "\n"); err == nil && len(fields) == 3 {
		r.commit, seconds, r.maintainer = fields[0], fields[1], fields[2]
	}
	seconds = cmp.Or(os.Getenv("SOURCE_DATE_EPOCH"), seconds)
	if seconds == "" {
		return fmt.Errorf("find the time for all files: %w; set SOURCE_DATE_EPOCH to a time in seconds", err)
	}
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	r.date = time.Unix(n, 0).UTC()
	return nil
}

// build builds firn as `make build` does, without what only debuggers need.
func build(ctx context.Context, path, system, arch string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=true", "-ldflags=-s -w", "-o", path, "./cmd/firn")
	var err error
	if cmd.Args[len(cmd.Args)-2], err = filepath.Abs(path); err != nil {
		return err
	}
	cmd.Dir = repository
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+system, "GOARCH="+arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build firn for %s on %s: %w\n%s", system, arch, err, out)
	}
	return nil
}

// output returns what a command prints. FIRN_ variables would be settings of the example.
func output(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "FIRN_") && !strings.HasPrefix(v, "NIX_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", filepath.Base(name), strings.Join(args, " "), err)
	}
	return out, nil
}

// writeGzip writes text as gzip -9n does.
func writeGzip(path string, text []byte) error {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err == nil {
		_, err = z.Write(text)
	}
	if err = errors.Join(err, z.Close()); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}
