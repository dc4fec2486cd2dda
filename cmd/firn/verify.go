package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"firn/internal/config"
	"firn/internal/depot"
	"firn/internal/registry"
	"firn/nix"
)

// errDamaged and errGone end firn verify with exitDamaged.
var (
	errDamaged = errors.New("something is damaged")
	errGone    = errors.New("something is gone")
)

type verifyCommand struct {
	stateFlags
	Path   string   `arg:"" optional:"" help:"A store path, or its hash. Without one, everything is verified."`
	Cache  []string `placeholder:"NAME" complete:"@cache" help:"Verify what is in this cache only. May be given several times."`
	Repair bool     `help:"Serve nothing that is damaged, so that it can be pushed again, and serve again what has become whole."`
	JSON   bool     `name:"json" help:"Print JSON."`
}

func (*verifyCommand) Help() string {
	return `Pushed paths are read from disk, decompressed, and compared with their hashes. The server may go on running.
Paths are named, too, that are not announced, as something is gone that they refer to.

The exit status is 0 if everything is whole, 3 if something is damaged or gone, and 1 if that could not be told.

Examples:

    firn verify
    firn verify --cache main --repair
    firn verify /nix/store/1b9p07z77phvv2hf6gm9f28syp39f1ag-hello-2.12`
}

func (c *verifyCommand) Run(k *kong.Context) error {
	ctx, cancel := untilSignal()
	defer cancel()
	opts := depot.VerifyOptions{Caches: c.Cache, Repair: c.Repair}
	if c.Path != "" {
		var err error
		if opts.Path, err = pathHashOf(c.Path); err != nil {
			return err
		}
	}
	d, err := c.openDepot(ctx)
	if err != nil {
		return err
	}
	defer d.Close()
	p := newProgress("verifying")
	opts.Progress = p.bytes
	report, err := d.Verify(ctx, opts)
	p.end()
	if errors.Is(err, context.Canceled) {
		return errors.New("ended by a signal; what was verified so far is not told")
	}
	if errors.Is(err, depot.ErrNoCache) {
		return fmt.Errorf("%w; firn cache list shows those that there are", err)
	}
	if err != nil {
		return err
	}
	if c.Path != "" && report.NARs == 0 && len(report.Damaged) == 0 {
		return fmt.Errorf("%s was not pushed here", c.Path)
	}
	incomplete, untold := c.incomplete(ctx, d, opts.Path)
	if c.JSON {
		if err := writeJSON(k.Stdout, shownReportOf(report, incomplete)); err != nil {
			return err
		}
	} else {
		for _, damage := range report.Damaged {
			where := "published nowhere"
			if damage.Cache != "" {
				where = fmt.Sprintf("%s in cache %s", damage.Path, damage.Cache)
			}
			fmt.Fprintf(k.Stdout, "%s (NAR %s): %v\n", where, damage.NARHash, damage.Reason)
		}
		for _, i := range incomplete {
			fmt.Fprintf(k.Stdout, "%s in cache %s: not announced, as %s is gone, which it leads to\n", i.Path, i.Cache, i.Missing)
		}
		again := ""
		if c.Repair {
			again = fmt.Sprintf(", %d whole again", report.Healed)
		}
		fmt.Fprintf(k.Stdout, "%s verified, %s: %d damaged%s\n", plural(report.NARs, "NAR"), size(report.Bytes), len(report.Damaged), again)
	}
	var damaged error
	switch {
	case len(report.Damaged) > 0 && !c.Repair:
		damaged = fmt.Errorf("%w. To stop serving it, run firn verify --repair. To restore it, %s", errDamaged, pushAgain)
	case len(report.Damaged) > 0:
		damaged = fmt.Errorf("%w, and is no longer served. To restore it, %s", errDamaged, pushAgain)
	case len(incomplete) > 0:
		damaged = fmt.Errorf("%w: %s not announced. Bring what is gone back to the store of this machine, or %s",
			errGone, plural(int64(len(incomplete)), "path"), pushAgain)
	}
	return errors.Join(damaged, untold)
}

// incomplete finds the paths that are not announced, as something is gone that they refer to.
func (c *verifyCommand) incomplete(ctx context.Context, d *openedDepot, path nix.PathHash) (found []shownIncomplete, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("whether everything is there that paths refer to could not be told: %w", err)
		}
	}()
	known, err := registry.Records(ctx, d.catalog)
	if err != nil {
		return nil, err
	}
	if leans, err := d.leansOnStore(ctx, known...); err != nil || !leans {
		return nil, err
	}
	cfg, err := c.load()
	if err != nil {
		return nil, err
	}
	log := slog.New(slog.DiscardHandler) // what is found is printed
	opts := registry.Options{Logger: log}
	if cfg.Store != config.StoreOff {
		store, err := existingStore(ctx, cfg, log)
		if err != nil {
			return nil, err
		}
		if store != nil {
			defer store.Close()
			opts.Local = store
		}
	}
	loaded, err := registry.New(ctx, d.catalog, d.Depot, opts)
	if err != nil {
		return nil, err
	}
	all, err := loaded.All(ctx)
	if err != nil {
		return nil, err
	}
	for _, one := range all {
		if c.Cache != nil && !slices.Contains(c.Cache, one.Name()) {
			continue
		}
		for r, err := range one.Incomplete(ctx) {
			if err != nil {
				return nil, err
			}
			if path == (nix.PathHash{}) || path == r.From.Hash() {
				found = append(found, shownIncomplete{one.Name(), r.From.String(), r.To.String()})
			}
		}
	}
	return found, nil
}

// pushAgain restores what is withheld. Clients remember for a month what a cache has.
const pushAgain = "push it again: nix copy --option narinfo-cache-positive-ttl 0 --to URL PATH (without the option, a machine that pushed it before skips it)"

type shownReport struct {
	NARs       int64             `json:"nars"`
	Bytes      int64             `json:"bytes"`
	Healed     int64             `json:"healed"`
	Damaged    []shownDamage     `json:"damaged"`
	Incomplete []shownIncomplete `json:"incomplete"`
}

// shownIncomplete is a path that is not announced, and what is missing of what it leads to.
type shownIncomplete struct {
	Cache   string `json:"cache"`
	Path    string `json:"path"`
	Missing string `json:"missing"`
}

type shownDamage struct {
	Cache   string `json:"cache,omitempty"`
	Path    string `json:"path,omitempty"`
	NARHash string `json:"narHash"`
	Reason  string `json:"reason"`
}

func shownReportOf(r depot.Report, incomplete []shownIncomplete) shownReport {
	s := shownReport{NARs: r.NARs, Bytes: r.Bytes, Healed: r.Healed, Damaged: []shownDamage{}, Incomplete: append([]shownIncomplete{}, incomplete...)}
	for _, d := range r.Damaged {
		shown := shownDamage{Cache: d.Cache, NARHash: d.NARHash.String(), Reason: d.Reason.Error()}
		if !d.Path.IsZero() {
			shown.Path = d.Path.String()
		}
		s.Damaged = append(s.Damaged, shown)
	}
	return s
}

// pathHashOf returns the path hash of a store path of whatever store directory, of its last element, or of itself.
func pathHashOf(text string) (nix.PathHash, error) {
	base := text[strings.LastIndexByte(text, '/')+1:]
	digits, _, _ := strings.Cut(base, "-")
	hash, err := nix.ParsePathHash(digits)
	if err != nil {
		return hash, fmt.Errorf("%q is neither a store path nor the hash of one", text)
	}
	if hash == (nix.PathHash{}) { // which stands for everything
		return hash, fmt.Errorf("%s is the hash of no store path: it has nothing but zeros", digits)
	}
	return hash, nil
}
