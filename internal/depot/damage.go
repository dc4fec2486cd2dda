package depot

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"syscall"

	"firn/internal/catalog"
	"firn/internal/depot/blob"
	"firn/internal/depot/index"
	"firn/nix/nar"
)

// A verdict is the result of verifying a NAR.
type verdict struct {
	gone   bool  // it was removed
	fault  error // why it is damaged; nil if it is intact
	healed bool  // it is intact, and was withheld
}

// errDamaged says that bytes are certainly lost.
var errDamaged = errors.New("damaged")

// verifyNAR reads a NAR as if to send it. With repair, it withholds a NAR that is damaged and
// forgets its damaged chunks, or serves a withheld NAR again that is intact. It tells read how many
// bytes were read, unless read is nil. It returns an error if it could not tell whether the NAR is
// damaged.
func (d *Depot) verifyNAR(ctx context.Context, sum catalog.Sum, repair bool, read func(int64)) (verdict, error) {
	n, err := d.index.NAR(ctx, sum)
	if errors.Is(err, catalog.ErrNotFound) {
		return verdict{gone: true}, nil
	}
	if err != nil {
		return verdict{}, failure("look up NAR", err)
	}
	r, fault := parseRecipe(n)
	if fault != nil {
		fault = fmt.Errorf("%w: %w", errDamaged, fault)
	} else {
		d.packs.pin(r.packs)
		defer d.packs.unpin(r.packs)
		fault = d.readNAR(ctx, sum, r, read)
	}
	switch {
	case ctx.Err() != nil:
		return verdict{}, context.Cause(ctx)
	case fault == nil && n.Fault != index.Whole:
		if repair {
			_, err = d.index.SetFaults(ctx, []index.NARID{n.ID}, n.Fault, index.Whole)
		}
		return verdict{healed: true}, failure("serve NAR again", err)
	case fault == nil:
		return verdict{}, nil
	}
	if _, err := d.index.NAR(ctx, sum); errors.Is(err, catalog.ErrNotFound) {
		return verdict{gone: true}, nil // removed while it was read
	}
	if !repair || !errors.Is(fault, errDamaged) {
		return verdict{fault: fault}, nil
	}
	if lacks(fault) {
		_, err := d.lose(ctx, sum)
		return verdict{fault: fault}, err
	}
	if _, err := d.index.SetFaults(ctx, []index.NARID{n.ID}, n.Fault, index.Damaged); err != nil {
		return verdict{}, failure("withhold NAR", err)
	}
	if r != nil {
		if err := d.forgetDamaged(ctx, n, r); err != nil {
			return verdict{}, err
		}
	}
	return verdict{fault: fault}, nil
}

// readNAR returns an error if the bytes of a NAR are damaged, or differ from its listing.
func (d *Depot) readNAR(ctx context.Context, sum catalog.Sum, r *recipe, read func(int64)) error {
	fr, err := d.readFrames(ctx, r, 0)
	if err != nil {
		return err
	}
	defer fr.close()
	s := &frameStream{ctx: ctx, r: fr, hash: sha256.New(), read: read}
	err = d.compareListing(ctx, sum, s)
	if s.err != nil {
		return lost(s.err)
	}
	if err != nil && !errors.Is(err, errDamaged) {
		return err
	}
	if got := catalog.Sum(s.hash.Sum(nil)); err == nil && got != sum {
		return fmt.Errorf("%w: %w: its hash is %x", errDamaged, nar.ErrMismatch, got)
	}
	return err
}

// lost marks an error as errDamaged if another attempt would certainly fail too.
func lost(err error) error {
	for _, sure := range []error{blob.ErrNotFound, errShort, nar.ErrMismatch, syscall.EIO} {
		if errors.Is(err, sure) {
			return fmt.Errorf("%w: %w", errDamaged, err)
		}
	}
	return err
}

// frameStream is an io.Reader of a NAR. It hashes the bytes that are read.
type frameStream struct {
	ctx  context.Context
	r    *frameReader
	hash hash.Hash
	read func(int64)
	data []byte // not read yet
	err  error  // other than io.EOF
}

func (s *frameStream) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	if len(s.data) == 0 {
		if !s.r.more() {
			return 0, io.EOF
		}
		if s.err = s.r.next(s.ctx); s.err != nil {
			return 0, s.err
		}
		s.data = s.r.frame
		s.hash.Write(s.data)
		if s.read != nil {
			s.read(int64(len(s.data)))
		}
	}
	n := copy(p, s.data)
	s.data = s.data[n:]
	return n, nil
}

// compareListing parses a NAR and compares it with its listing.
func (d *Depot) compareListing(ctx context.Context, sum catalog.Sum, in io.Reader) error {
	text, err := d.index.Listing(ctx, sum)
	if err != nil {
		return failure("read listing", err)
	}
	entry, stop := iter.Pull2(d.coders.entries(text))
	defer stop()
	r := nar.NewReader(bufio.NewReaderSize(in, 32<<10))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errDamaged, err)
		}
		if kept, err, ok := entry(); !ok || err != nil || *kept != *h {
			return fmt.Errorf("%w: its listing does not have %q as it is", errDamaged, h.Path)
		}
	}
	if err := r.CheckEnd(); err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	if _, _, ok := entry(); ok {
		return fmt.Errorf("%w: its listing has more than the NAR", errDamaged)
	}
	return nil
}

// forgetDamaged forgets the chunks that are frames of a NAR and have other contents than they
// should, so that nothing new refers to them.
func (d *Depot) forgetDamaged(ctx context.Context, n *index.NAR, r *recipe) error {
	fr, err := d.readFrames(ctx, r, 0)
	if err != nil {
		return err
	}
	defer fr.close()
	damaged := make(map[string][]int64) // offsets, by pack
	for _, f := range r.places(n.Recipe) {
		err := fr.next(ctx)
		switch {
		case err == nil && sha256.Sum256(fr.frame) == f.sum:
		case err == nil || errors.Is(lost(err), errDamaged):
			damaged[r.packs[f.pack]] = append(damaged[r.packs[f.pack]], f.off)
		default:
			return err
		}
	}
	for pack, offsets := range damaged {
		if err := d.index.ForgetChunks(ctx, pack, offsets); err != nil {
			return failure("forget chunks", err)
		}
	}
	return nil
}
