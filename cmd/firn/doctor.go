package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/dustin/go-humanize"
	"golang.org/x/term"

	"firn/internal/config"
	"firn/internal/doctor"
	"firn/internal/localstore"
	"firn/internal/remote"
	"firn/nix"
)

type doctorCommand struct {
	URL               string        `arg:"" name:"url" help:"The URL of the cache, as clients have it in substituters."`
	Path              string        `placeholder:"PATH" help:"A store path that the cache should have, or its hash. By default one that this machine has too."`
	TrustedPublicKeys string        `placeholder:"KEYS" complete:"file" help:"The keys that sign the cache, as in nix.conf, or a file that has them. By default those that nix.conf trusts."`
	NetrcFile         string        `placeholder:"FILE" complete:"file" help:"Find user and password for the server in FILE. By default the one that nix.conf names, or /etc/nix/netrc."`
	Push              bool          `help:"Ask also whether the password may push. Nothing is left behind. Only servers of firn can be asked."`
	NoNAR             bool          `name:"no-nar" help:"Read no NAR."`
	MaxSize           string        `default:"1GiB" placeholder:"SIZE" help:"Read no NAR larger than this, compressed or uncompressed. By default 1GiB."`
	Timeout           time.Duration `default:"2m" placeholder:"TIME" help:"Stop after this time. By default 2m."`
	Quiet             bool          `short:"q" xor:"form" help:"Print only what is not as it should be."`
	JSON              bool          `name:"json" xor:"form" help:"Print JSON."`

	maxSize int64
}

func (*doctorCommand) Help() string {
	return `The cache may be any, also of another server than firn. It is asked what clients ask, and nothing is changed.
Each line is a check: ok, warn for what works but not as well as it could, fail, or skip with the reason. What to do is below it.
What failed is printed once more at the end. On a terminal there is colour, unless NO_COLOR is set.

Nix is not run, but its configuration is read: the keys that it trusts, its substituters, its netrc file.
What needs a store path takes one of this machine's that the cache has, too, or the one that --path names.

The exit status is 0 if all is well, 1 if something failed, 2 if the command line was wrong, and 4 if nothing failed, but the main checks
were skipped: where the cache has no store path of this machine, name one that it should have with --path.

Examples:

    firn doctor https://cache.nixos.org
    firn doctor http://127.0.0.1:5000 --path /nix/store/1b9p07z77phvv2hf6gm9f28syp39f1ag-hello-2.12
    firn doctor https://cache.example.org/team --netrc-file ~/netrc --trusted-public-keys keys
    firn doctor https://cache.example.org/team --netrc-file /etc/nix/netrc --push --quiet
    firn doctor https://cache.example.org --json --no-nar`
}

// Validate checks what is typed wrong.
func (c *doctorCommand) Validate() error {
	if c.URL == "" {
		return nil // that it is missing is told without this
	}
	if _, err := doctor.ParseURL(c.URL); err != nil {
		return err
	}
	if c.Path != "" {
		if _, err := pathHashOf(c.Path); err != nil {
			return fmt.Errorf("--path: %w", err)
		}
	}
	size, err := humanize.ParseBytes(c.MaxSize)
	if err != nil || size == 0 || size > 1<<50 {
		return fmt.Errorf("--max-size: %q is no size such as 500MiB", c.MaxSize)
	}
	c.maxSize = int64(size)
	if c.Timeout <= 0 {
		return errors.New("--timeout: it has to be more than nothing")
	}
	return nil
}

// errTimeOver is why an examination ends early.
var errTimeOver = errors.New("the time is over")

// errSick ends firn doctor where something failed. What, is printed before.
var errSick = errors.New("something is wrong with the cache")

// errUnknown ends firn doctor with exitUnknown.
var errUnknown = errors.New("nothing failed, but whether clients will be fine is not known: the main checks were skipped")

func (c *doctorCommand) Run(k *kong.Context) error {
	ctx, cancel := untilSignal()
	defer cancel()
	ctx, stop := context.WithTimeoutCause(ctx, c.Timeout, fmt.Errorf("%w: --timeout %v", errTimeOver, c.Timeout))
	defer stop()
	opts, err := c.options(ctx)
	if err != nil {
		return err
	}
	shown := findingPrinter{w: k.Stdout, quiet: c.Quiet, colour: hasColour(k.Stdout)}
	if !c.JSON {
		opts.Tell = shown.print
	}
	findings, err := doctor.Examine(ctx, c.URL, opts)
	if err != nil {
		return err
	}
	shown.flush()
	if ctx.Err() != nil {
		why := context.Cause(ctx)
		if !errors.Is(why, errTimeOver) {
			why = errors.New("ended by a signal")
		}
		return fmt.Errorf("not everything was looked at: %w", why)
	}
	report := newDoctorReport(c.URL, findings)
	report.Complete = doctor.Complete(findings, opts)
	if c.JSON {
		err = writeJSON(k.Stdout, report)
	} else if !c.Quiet {
		fmt.Fprintf(k.Stdout, "\n%s: %d ok, %s, %d failed, %d skipped\n",
			plural(int64(len(findings)), "check"), report.OK, plural(int64(report.Warnings), "warning"), report.Failed, report.Skipped)
		shown.again(findings)
	}
	switch {
	case report.Failed > 0:
		return errors.Join(err, errSick)
	case !report.Complete:
		why := "" // what was asked for was skipped
		for _, f := range findings {
			if f.Verdict == doctor.Skip && slices.Contains([]string{"path", "nar", "push"}, f.Check) {
				why = f.Check + ": " + f.Seen
				break
			}
		}
		return errors.Join(err, fmt.Errorf("%w; %s", errUnknown, why))
	}
	return err
}

// hasColour reports whether what is written there may have colours.
func hasColour(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// A doctorReport is the form for scripts.
type doctorReport struct {
	URL      string           `json:"url"`
	OK       int              `json:"ok"`
	Warnings int              `json:"warnings"`
	Failed   int              `json:"failed"`
	Skipped  int              `json:"skipped"`
	Complete bool             `json:"complete"` // no main check was skipped
	Findings []doctor.Finding `json:"findings"`
}

func newDoctorReport(at string, findings []doctor.Finding) doctorReport {
	r := doctorReport{Findings: findings}
	if u, err := doctor.ParseURL(at); err == nil {
		u.User = nil // which may be a password
		r.URL = u.String()
	}
	for _, f := range findings {
		switch f.Verdict {
		case doctor.OK:
			r.OK++
		case doctor.Warn:
			r.Warnings++
		case doctor.Fail:
			r.Failed++
		case doctor.Skip:
			r.Skipped++
		}
	}
	return r
}

// A findingPrinter prints findings, one a line. What was skipped one after the other for the same reason shares one.
type findingPrinter struct {
	w       io.Writer
	quiet   bool // nothing of what is as it should be, nor of what was skipped
	colour  bool
	skipped []doctor.Finding
}

func (p *findingPrinter) print(f doctor.Finding) {
	if len(p.skipped) > 0 && (f.Verdict != doctor.Skip || f.Seen != p.skipped[0].Seen) {
		p.flush()
	}
	if f.Verdict == doctor.Skip {
		p.skipped = append(p.skipped, f)
		return
	}
	p.line(f)
}

func (p *findingPrinter) flush() {
	if n := len(p.skipped); n > 0 {
		f := p.skipped[0]
		if n > 1 {
			f.Seen += " (so too with the " + plural(int64(n-1), "check") + " that would follow)"
		}
		p.line(f)
	}
	p.skipped = nil
}

// again prints what failed once more, where other lines came after it.
func (p *findingPrinter) again(findings []doctor.Finding) {
	failed := slices.DeleteFunc(slices.Clone(findings), func(f doctor.Finding) bool { return f.Verdict != doctor.Fail })
	if len(failed) > 0 {
		fmt.Fprintln(p.w)
	}
	for _, f := range failed {
		p.line(f)
	}
}

// colours are the ones of verdicts, as terminals know them: green, yellow, bold red and grey.
var colours = map[doctor.Verdict]string{doctor.OK: "\x1b[32m", doctor.Warn: "\x1b[33m", doctor.Fail: "\x1b[1;31m", doctor.Skip: "\x1b[90m"}

func (p *findingPrinter) line(f doctor.Finding) {
	if p.quiet && (f.Verdict == doctor.OK || f.Verdict == doctor.Skip) {
		return
	}
	verdict := fmt.Sprintf("%-4s", f.Verdict)
	if p.colour {
		verdict = colours[f.Verdict] + verdict + "\x1b[0m"
	}
	fmt.Fprintf(p.w, "%s  %-12s  %s\n", verdict, f.Check, f.Seen)
	if f.Advice != "" {
		fmt.Fprintf(p.w, "%20s-> %s\n", "", f.Advice)
	}
}

// options finds out what this machine knows.
func (c *doctorCommand) options(ctx context.Context) (doctor.Options, error) {
	env, err := config.NixEnvironment(os.LookupEnv)
	if err != nil {
		return doctor.Options{}, err
	}
	opts := doctor.Options{StoreDir: env.StoreDir, MaxSize: c.maxSize, Push: c.Push, UserAgent: "firn/" + version()}
	if c.NoNAR {
		opts.MaxSize = -1
	}
	conf, err := remote.LoadNixConf(os.LookupEnv)
	if err != nil {
		return opts, fmt.Errorf("read the configuration of Nix: %w", err)
	}
	if err := c.keys(conf, &opts); err != nil {
		return opts, err
	}
	if len(conf.Files) > 0 {
		opts.Substituters = append([]string{}, conf.List("substituters", "https://cache.nixos.org/")...)
	}
	opts.Netrc = c.NetrcFile
	if opts.Netrc == "" {
		opts.Netrc = conf.Get("netrc-file", remote.NixConfDir(os.LookupEnv)+"/netrc")
		if f, err := os.Open(opts.Netrc); err == nil {
			f.Close()
		} else {
			opts.Netrc = "" // as Nix does
		}
	}
	ca, _ := os.LookupEnv("NIX_SSL_CERT_FILE")
	if ca = cmp.Or(ca, conf.Get("ssl-cert-file", "")); ca != "" {
		text, err := os.ReadFile(ca)
		if err != nil {
			return opts, fmt.Errorf("read the authorities of Nix: %w", err)
		}
		opts.Roots = x509.NewCertPool()
		if !opts.Roots.AppendCertsFromPEM(text) {
			return opts, fmt.Errorf("read the authorities of Nix: there is no certificate in %s", ca)
		}
	}
	if c.Path != "" {
		opts.Path, err = pathHashOf(c.Path)
		return opts, err
	}
	local := localstore.Options{StoreDir: env.StoreDir, StateDir: env.StateDir, LogDir: env.LogDir, DaemonSocket: env.DaemonSocket}
	remote, _ := os.LookupEnv("NIX_REMOTE")
	if remote = cmp.Or(remote, conf.Get("store", "")); filepath.IsAbs(remote) {
		local = localstore.Options{StoreDir: env.StoreDir, Root: remote}
	}
	opts.Candidates, err = candidates(ctx, local)
	if err != nil {
		opts.NoCandidates = fmt.Sprintf("no store of this machine can be read: %v", err)
	} else if len(opts.Candidates) == 0 {
		opts.NoCandidates = "the store of this machine is empty"
	}
	return opts, nil
}

// keys finds the keys that are trusted.
func (c *doctorCommand) keys(conf *remote.NixConf, opts *doctor.Options) (err error) {
	if c.TrustedPublicKeys != "" {
		opts.TrustedBy = "--trusted-public-keys"
		if opts.TrustedKeys, err = parsePublicKeys(c.TrustedPublicKeys); err == nil {
			return nil
		}
		noKeys := err
		opts.TrustedKeys, err = readPublicKeys(c.TrustedPublicKeys)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("--trusted-public-keys: that is neither a file nor keys: %w", noKeys)
		}
		return err
	}
	opts.TrustedBy = "the default of Nix"
	if len(conf.Files) > 0 {
		opts.TrustedBy = strings.Join(conf.Files, ", ")
	}
	opts.TrustedKeys, err = parsePublicKeys(strings.Join(conf.List("trusted-public-keys", defaultPublicKey), " "))
	if err != nil {
		return fmt.Errorf("trusted-public-keys of %s: %w", opts.TrustedBy, err)
	}
	return nil
}

// defaultPublicKey is the key that Nix trusts where nothing is configured: that of cache.nixos.org.
const defaultPublicKey = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="

// candidateCount is how many paths of each kind are asked for in search of one that the cache has.
const candidateCount = 32

// candidates are paths of this machine that a cache may have.
func candidates(ctx context.Context, opts localstore.Options) ([]nix.StorePath, error) {
	store, err := localstore.Open(ctx, opts)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	return store.Newest(ctx, candidateCount)
}
