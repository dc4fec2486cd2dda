package main

import (
	"cmp"
	"context"
	"fmt"
	"text/tabwriter"

	"github.com/alecthomas/kong"
	"github.com/dustin/go-humanize"

	"firn/internal/catalog"
	"firn/internal/registry"
)

type statsCommand struct {
	stateFlags
	Cache string `placeholder:"NAME" complete:"@cache" help:"Of one cache only."`
	JSON  bool   `name:"json" help:"Print JSON, sizes in bytes."`
}

func (*statsCommand) Help() string {
	return `Sizes are of NARs uncompressed, of NARs as they are served, and of what is kept on disk,
which is less where NARs have parts in common. Several caches may share what is kept.
In JSON, "total" is of all caches, also where --cache names one.
Unused data is deleted after a day, once it makes up more than half of its pack file.
What firn path delete deleted, and what was pushed and not published, counts as a NAR without a path for the first day.

Examples:

    firn stats
    firn stats --cache main --json`
}

// shownCounts are counts as they are shown; of one cache, what is kept is not known.
type shownCounts struct {
	Cache    string   `json:"cache,omitempty"` // empty: the total
	Paths    int64    `json:"paths"`
	NARs     int64    `json:"nars"`
	NARBytes int64    `json:"narBytes"`
	Served   int64    `json:"servedBytes"`
	Damaged  int64    `json:"damaged"`
	Chunks   *int64   `json:"chunks,omitempty"`
	Packs    *int64   `json:"packs,omitempty"`
	Kept     *int64   `json:"keptBytes,omitempty"`
	Pending  *int64   `json:"unpublishedBytes,omitempty"` // as served, of NARs that no path has
	Leaving  *int64   `json:"reclaimableBytes,omitempty"` // of those kept
	Ratio    *float64 `json:"ratio,omitempty"`            // NAR bytes to bytes kept
	Free     *int64   `json:"diskFreeBytes,omitempty"`    // where that can be told
}

// shownStats is the form for scripts.
type shownStats struct {
	Caches []shownCounts `json:"caches"`
	Total  *shownCounts  `json:"total"` // nil: not asked for
}

func (c *statsCommand) Run(k *kong.Context) error {
	ctx := context.Background()
	d, err := c.openDepot(ctx)
	if err != nil {
		return err
	}
	defer d.Close()
	cat := d.catalog
	all, err := registry.Records(ctx, cat)
	if err != nil {
		return err
	}
	if c.Cache != "" {
		r, err := record(ctx, cat, c.Cache)
		if err != nil {
			return err
		}
		all = []*catalog.Cache{r}
	}
	shown := shownStats{Caches: []shownCounts{}}
	for _, r := range all {
		n, err := cat.CountIn(ctx, r.ID)
		if err != nil {
			return err
		}
		shown.Caches = append(shown.Caches, shownCounts{Cache: r.Name, Paths: n.Paths, NARs: n.NARs, NARBytes: n.NARBytes, Served: n.FileBytes, Damaged: n.Withheld})
	}
	if c.JSON || c.Cache == "" {
		if shown.Total, err = total(ctx, d); err != nil {
			return err
		}
	}
	if c.JSON {
		return writeJSON(k.Stdout, shown)
	}
	w := tabwriter.NewWriter(k.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "CACHE\tPATHS\tNARS\tUNCOMPRESSED\tSERVED\tDAMAGED\t")
	rows := shown.Caches
	if shown.Total != nil {
		rows = append(rows, *shown.Total)
	}
	for _, s := range rows {
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%d\t\n", cmp.Or(s.Cache, "everything"), s.Paths, s.NARs, size(s.NARBytes), size(s.Served), s.Damaged)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if last := shown.Total; last != nil {
		fmt.Fprintf(k.Stdout, "\n%s kept in %s, with %s that NARs can share", size(*last.Kept), plural(*last.Packs, "pack"), plural(*last.Chunks, "chunk"))
		if last.Ratio != nil {
			fmt.Fprintf(k.Stdout, ": %.2f bytes of NARs for each byte kept", *last.Ratio)
		}
		fmt.Fprintln(k.Stdout)
		if *last.Pending > 0 {
			fmt.Fprintf(k.Stdout, "up to %s of it belongs to NARs that no path has: deleted, or not published yet; it will be free within two days\n", size(*last.Pending))
		}
		if *last.Leaving > 0 {
			fmt.Fprintf(k.Stdout, "%s of it belongs to no NAR any more; most of it will be free within a day\n", size(*last.Leaving))
		}
		if last.Free != nil {
			fmt.Fprintf(k.Stdout, "%s are free on its disk\n", size(*last.Free))
		}
	}
	return nil
}

// total counts what is in all caches together, and what is kept for it.
func total(ctx context.Context, d *openedDepot) (*shownCounts, error) {
	n, err := d.catalog.Count(ctx)
	if err != nil {
		return nil, err
	}
	t := &shownCounts{Paths: n.Paths, NARs: n.NARs, NARBytes: n.NARBytes, Served: n.FileBytes, Damaged: n.Withheld, Chunks: &n.Chunks, Packs: &n.Packs, Kept: &n.PackBytes, Pending: &n.Unpublished, Leaving: &n.Reclaimable}
	if n.PackBytes > 0 {
		ratio := float64(n.NARBytes) / float64(n.PackBytes)
		t.Ratio = &ratio
	}
	free, room, err := d.Room(ctx)
	if err != nil {
		return nil, err
	}
	if room > 0 {
		t.Free = &free
	}
	return t, nil
}

// plural is a number of things.
func plural(n int64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
