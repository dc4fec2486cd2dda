package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/alecthomas/kong"

	"firn/internal/depot"
	"firn/nix"
)

// errDamaged ends firn verify with exitDamaged.
var errDamaged = errors.New("something is damaged")

type verifyCommand struct {
	stateFlags
	Path   string   `arg:"" optional:"" help:"A store path, or its hash. Without one, everything is verified."`
	Cache  []string `placeholder:"NAME" help:"Verify what is in this cache only. May be given several times."`
	Repair bool     `help:"Serve nothing that is damaged, so that it can be pushed again, and serve again what has become whole."`
	JSON   bool     `name:"json" help:"Print JSON."`
}

func (*verifyCommand) Help() string {
	return `What was pushed is read from disk, decompressed, and compared with its hashes. The server may run meanwhile.

The exit status is 0 if everything is whole, 3 if something is damaged, and 1 if that could not be told.

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
	if c.JSON {
		if err := writeJSON(k.Stdout, shownReportOf(report)); err != nil {
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
		again := ""
		if c.Repair {
			again = fmt.Sprintf(", %d whole again", report.Healed)
		}
		fmt.Fprintf(k.Stdout, "%s verified, %s: %d damaged%s\n", plural(report.NARs, "NAR"), size(report.Bytes), len(report.Damaged), again)
	}
	if len(report.Damaged) == 0 {
		return nil
	}
	if !c.Repair {
		return fmt.Errorf("%w: firn verify --repair withholds it, and %s", errDamaged, pushAgain)
	}
	return fmt.Errorf("%w, and withheld: %s", errDamaged, pushAgain)
}

// pushAgain is what makes whole again what is withheld. Clients remember for a month what a cache has.
const pushAgain = "pushing it again makes it whole, from where it was pushed before with nix copy --option narinfo-cache-positive-ttl 0"

type shownReport struct {
	NARs    int64         `json:"nars"`
	Bytes   int64         `json:"bytes"`
	Healed  int64         `json:"healed"`
	Damaged []shownDamage `json:"damaged"`
}

type shownDamage struct {
	Cache   string `json:"cache,omitempty"`
	Path    string `json:"path,omitempty"`
	NARHash string `json:"narHash"`
	Reason  string `json:"reason"`
}

func shownReportOf(r depot.Report) shownReport {
	s := shownReport{NARs: r.NARs, Bytes: r.Bytes, Healed: r.Healed, Damaged: []shownDamage{}}
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
	if err != nil || hash == (nix.PathHash{}) { // the hash of nothing stands for everything
		return hash, fmt.Errorf("%q is neither a store path nor the hash of one", text)
	}
	return hash, nil
}
