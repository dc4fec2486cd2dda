package transfer

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"firn/internal/cache"
	"firn/internal/decompress"
	"firn/nix"
)

// files imports the build logs, realisations and build traces that the origin lists.
func (i *importer) files(ctx context.Context) error {
	for name, err := range i.names(ctx) {
		if err == nil {
			err = i.file(ctx, name)
		}
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		default:
			if err := i.fail(false, fmt.Errorf("import %s: %w", name, err)); err != nil {
				return err
			}
		}
	}
	return nil
}

// names iterates over the names of the files.
func (i *importer) names(ctx context.Context) func(func(string, error) bool) {
	return func(yield func(string, error) bool) {
		each := func(dir string, more func(name string) bool) bool {
			for base, err := range i.origin.list(ctx, dir) {
				if err != nil && !yield(dir, err) || err == nil && !more(dir+"/"+base) {
					return false
				}
			}
			return true
		}
		file := func(name string) bool { return yield(name, nil) }
		_ = each("log", file) && each("realisations", file) &&
			each("build-trace-v2", func(dir string) bool { return each(dir, file) })
	}
}

// file imports one of these.
func (i *importer) file(ctx context.Context, name string) error {
	dir := i.cache.Info().StoreDir
	switch kind, rest, _ := strings.Cut(name, "/"); kind {
	case "log":
		drv, err := dir.ParseBase(rest)
		if err != nil {
			return fmt.Errorf("%w: %w", cache.ErrInvalid, err)
		}
		return i.log(ctx, drv, true)
	case "realisations":
		id, err := parseRealisationName(name)
		if err != nil {
			return err
		}
		text, err := i.read(ctx, name, nix.MaxRealisationSize)
		if err != nil {
			return err
		}
		r, err := nix.ParseRealisation(dir, text)
		if err != nil {
			return fmt.Errorf("%w: %w", cache.ErrInvalid, err)
		}
		if r.ID != id {
			return fmt.Errorf("%w: it is of %s", cache.ErrInvalid, r.ID)
		}
		r.Signatures = i.cache.Others(r.Signatures, r.AppendFingerprint(nil))
		return i.keep(i.cache.PutRealisation(ctx, r))
	default:
		drv, output, err := parseBuildTraceName(dir, name)
		if err != nil {
			return err
		}
		text, err := i.read(ctx, name, nix.MaxRealisationSize)
		if err != nil {
			return err
		}
		b, err := nix.ParseBuildTrace(drv, output, text)
		if err != nil {
			return fmt.Errorf("%w: %w", cache.ErrInvalid, err)
		}
		b.Signatures = i.cache.Others(b.Signatures, b.AppendFingerprint(nil))
		return i.keep(i.cache.PutBuildTrace(ctx, b))
	}
}

// keep counts a file that was kept.
func (i *importer) keep(err error) error {
	if err == nil {
		i.change(func(p *Progress) { p.Files++ })
	}
	return err
}

// log imports the build log of a derivation, unless there is one. It may be missing if it is not wanted by its name.
func (i *importer) log(ctx context.Context, drv nix.StorePath, wanted bool) error {
	if drv.IsZero() {
		return nil
	}
	there, err := i.cache.OpenLog(ctx, drv)
	if err == nil {
		return there.Close()
	}
	if !errors.Is(err, cache.ErrNotFound) {
		return err
	}
	body, encoding, err := i.origin.open(ctx, "log/"+drv.Base())
	if errors.Is(err, cache.ErrNotFound) && !wanted {
		return nil
	}
	if err != nil {
		return err
	}
	defer body.Close()
	plain, err := decompress.DecodeEncoding(ctx, encoding, body, i.opts.Limits)
	if err != nil {
		return err
	}
	defer plain.Close()
	return i.keep(i.cache.PutLog(ctx, drv, plain))
}
