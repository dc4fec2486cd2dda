package localstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"firn/internal/cache"
	"firn/nix"
	"firn/nix/nar"
)

// OpenNAR opens the NAR of a path and keeps the path from being collected until the NAR is closed.
// cache.ErrNotFound if it is not valid any more, was registered again, or is withheld.
func (s *Store) OpenNAR(ctx context.Context, info *nix.PathInfo) (cache.NAR, error) {
	n, err := s.openNAR(ctx, info)
	if err != nil {
		return nil, fmt.Errorf("open NAR of %v: %w", info.Path, err)
	}
	return n, nil
}

func (s *Store) openNAR(ctx context.Context, info *nix.PathInfo) (_ *narFile, err error) {
	n := &narFile{store: s, info: info, realPath: s.realPath(info.Path)}
	n.release = s.roots.protect(ctx, info.Path)
	defer func() {
		if err != nil {
			n.release()
		}
	}()
	if n.plan, err = s.layout(ctx, info); err != nil {
		return nil, err
	}
	// The path may have gone before it was protected.
	version := s.Version(ctx)
	if _, at, ok := s.layouts.known.Get(n.plan.key); ok && at.Hit(version) {
		return n, nil
	}
	now, err := s.PathInfo(ctx, info.Path.Hash())
	if err != nil {
		return nil, err
	}
	if registrationOf(now) != registrationOf(info) || now.Path != info.Path {
		return nil, fmt.Errorf("%w: it was registered again", cache.ErrNotFound)
	}
	// It is valid, so that its files are not just being deleted.
	if n.Size() != info.NARSize {
		err := fmt.Errorf("its NAR has %d bytes, not %d", n.Size(), info.NARSize)
		s.withhold(info, err)
		return nil, notFoundBecause(err)
	}
	s.layouts.put(n.plan, version)
	return n, nil
}

// WriteListing lists the files of a path.
func (s *Store) WriteListing(ctx context.Context, info *nix.PathInfo, w io.Writer) error {
	n, err := s.openNAR(ctx, info)
	if err != nil {
		return fmt.Errorf("list %v: %w", info.Path, err)
	}
	defer n.Close()
	return nar.WriteListing(w, n.plan.Listing().All())
}

// errFilesGone is why a path is withheld whose files something other than Nix removed.
var errFilesGone = errors.New("its files are gone")

// layout returns the layout of a path, and withholds the path if its files are gone
// or its NAR has not the size that it should have.
func (s *Store) layout(ctx context.Context, info *nix.PathInfo) (*plan, error) {
	p, err := s.layouts.get(ctx, keyOf(info), s.realPath(info.Path))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// Nix takes a path out of its database before it removes the files, so one that is still in it was not collected.
		if _, err := s.PathInfo(ctx, info.Path.Hash()); err == nil {
			s.withhold(info, errFilesGone)
		}
		return nil, notFoundBecause(err)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", cache.ErrUnavailable, err)
	}
	if p.Size() != info.NARSize {
		s.layouts.remove(p.key) // it is of no use, whatever the reason
	}
	return p, nil
}

// withhold serves a path no more.
func (s *Store) withhold(info *nix.PathInfo, cause error) {
	s.layouts.remove(keyOf(info))
	if s.verdicts.setWithheld(info, s.realPath(info.Path)) {
		s.stats.mismatches.Add(1)
		s.log.Error("a store path is withheld: its files are not what the database says (`nix-store --verify-path` tells the same, `nix-store --repair-path` may help)",
			"path", info.Path.String(), "error", cause)
	}
}

// narFile is the NAR of the files of a store path.
type narFile struct {
	store    *Store
	info     *nix.PathInfo
	realPath string
	plan     *plan
	release  func() // ends the protection from being collected
}

func (n *narFile) Size() int64 { return n.plan.Size() }

func (n *narFile) Close() error {
	n.release()
	return nil
}

// WriteRange writes a part of the NAR. The first time that it is the whole, the bytes are hashed on the way,
// and the last ones not written unless all are right; a part of a path that was never verified has that done in the background.
func (n *narFile) WriteRange(ctx context.Context, w io.Writer, off, length int64) error {
	s := n.store
	if s.verdicts.isVerified(n.info) {
		return n.record(ctx, n.plan.WriteRange(ctx, w, n.realPath, off, length))
	}
	if s.verdicts.withholds(n.info, n.realPath) {
		return fmt.Errorf("write NAR of %v: %w", n.info.Path, nar.ErrMismatch)
	}
	if off == 0 && length == n.Size() {
		err := n.plan.WriteVerified(ctx, w, n.realPath, [32]byte(n.info.NARHash.Sum()))
		if err == nil {
			n.verified()
		}
		return n.record(ctx, err)
	}
	if length > 0 {
		s.verify.add(n.info)
	}
	return n.record(ctx, n.plan.WriteRange(ctx, w, n.realPath, off, length))
}

// verified records that all bytes are right.
func (n *narFile) verified() {
	n.store.verdicts.setVerified(n.info)
	n.store.stats.verified.Add(1)
}

// record draws the conclusions from how writing ended, so that a client that was sent nothing is
// told what has become of the path.
func (n *narFile) record(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, nar.ErrMismatch):
		n.store.withhold(n.info, err)
	case errors.Is(err, nar.ErrChanged):
		n.store.layouts.remove(n.plan.key)
		again, failed := n.store.openNAR(ctx, n.info) // which withholds it, or finds it gone
		if failed != nil {
			return fmt.Errorf("%w: %w", failed, err)
		}
		again.Close()
		return fmt.Errorf("%w: %w", cache.ErrUnavailable, err) // it is whole by now
	}
	return err
}
