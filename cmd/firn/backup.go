package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/alecthomas/kong"

	"firn/internal/backup"
)

type backupCommand struct {
	stateFlags
	Dir  string `arg:"" complete:"dir" help:"The directory of the backup. It is made if it is not there."`
	JSON bool   `name:"json" help:"Print JSON."`
}

func (*backupCommand) Help() string {
	return `All that a server keeps is copied: pushed paths, caches, tokens and keys. The server may go on running.
The next backup to the same directory copies only what is new, and removes what the server has no more. However it ends, the directory
has the backup that it had before, or the new one. It is a state directory: firn verify --state DIR checks it, and a server can be started on it.

It has secret keys. Who reads it can sign, so keep it as the state directory is kept.

The exit status is 0 if the backup is made, 1 if it is not, and 3 if it is made and the server itself has lost some packs.

Examples:

    firn backup /mnt/backup/firn
    firn backup --config /etc/firn/firn.toml /mnt/backup/firn
    firn backup /mnt/backup/firn && firn verify --state /mnt/backup/firn`
}

func (c *backupCommand) Run(k *kong.Context) error {
	ctx, cancel := untilSignal()
	defer cancel()
	settings, err := c.load()
	if err != nil {
		return err
	}
	if !hasDepot(settings.State) {
		return errNoDepot(ctx, settings.State)
	}
	cat, err := openCatalog(ctx, settings.State)
	if err != nil {
		return err
	}
	p := newProgress("backing up")
	report, err := backup.Run(ctx, cat, backup.Options{
		State: settings.State, Dir: c.Dir,
		Depot: depotDir, Catalog: catalogName, Packs: packsName, Remade: []string{compressedDir},
		Progress: p.bytes,
	})
	p.end()
	if err := errors.Join(err, cat.Close()); err != nil {
		if errors.Is(err, context.Canceled) {
			return errors.New("ended by a signal; the directory has the backup that it had before")
		}
		return err
	}
	if c.JSON {
		if err := writeJSON(k.Stdout, shownBackupOf(report)); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(k.Stdout, "%s of packs and %s of catalog are in %s: %s copied, %s, %d removed\n",
			size(report.PackBytes), size(report.CatalogSize), c.Dir, plural(report.Copied, "pack"), size(report.CopyBytes), report.Removed)
	}
	if n := len(report.Missing); n > 0 {
		return fmt.Errorf("%w: %s of the server cannot be read, and could not be copied, such as %s; run firn verify", errDamaged, plural(int64(n), "pack"), report.Missing[0])
	}
	return nil
}

type shownBackup struct {
	Packs        int64    `json:"packs"`
	PackBytes    int64    `json:"packBytes"`
	CatalogBytes int64    `json:"catalogBytes"`
	Copied       int64    `json:"copiedPacks"`
	CopiedBytes  int64    `json:"copiedBytes"`
	Removed      int64    `json:"removedPacks"`
	Files        int64    `json:"copiedFiles"`
	Missing      []string `json:"missingPacks"`
}

func shownBackupOf(r backup.Report) shownBackup {
	return shownBackup{
		Packs: r.Packs, PackBytes: r.PackBytes, CatalogBytes: r.CatalogSize, Copied: r.Copied, CopiedBytes: r.CopyBytes,
		Removed: r.Removed, Files: r.Files, Missing: append([]string{}, r.Missing...),
	}
}
