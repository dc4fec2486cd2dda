package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"firn/nix"
)

// maxSignatures bounds those that are kept of one path. More are not read either.
const maxSignatures = 64

// errNoSink refuses a push to a cache without a sink.
var errNoSink = Refuse(ErrInvalid, "this cache keeps nothing that is pushed to it")

// Receive keeps a NAR, unpublished, see [Sink].
func (c *Cache) Receive(ctx context.Context, u Upload) (Received, error) {
	if !c.Keeps() {
		return Received{}, errNoSink
	}
	return c.sink.Receive(ctx, u)
}

// Received returns what was uploaded under a URL, or ErrNotFound. Of an upload that is there, and
// cannot be read now, it returns the error and the upload.
func (c *Cache) Received(ctx context.Context, url string) (Received, error) {
	if !c.Keeps() {
		return Received{}, fmt.Errorf("find upload %s: %w", url, ErrNotFound)
	}
	r, err := c.sink.Received(ctx, url)
	if err != nil {
		return r, fmt.Errorf("find upload %s: %w", url, err)
	}
	return r, nil
}

// Renew has what was uploaded under a URL, and now came once more, wait for its narinfo for as long as if it were new.
func (c *Cache) Renew(ctx context.Context, url string) error {
	if !c.Keeps() {
		return errNoSink
	}
	err := c.sink.Renew(ctx, url)
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("renew upload %s: %w: it was swept while it came again", url, ErrUnavailable)
	}
	if err != nil {
		return fmt.Errorf("renew upload %s: %w", url, err)
	}
	return nil
}

// OpenReceived opens what Received returned, uncompressed. The caller closes the NAR.
func (c *Cache) OpenReceived(ctx context.Context, r Received) (NAR, error) {
	n, err := c.sink.OpenReceived(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("open NAR %s: %w", r.NARHash, err)
	}
	return n, nil
}

// OpenReceivedAs opens what Received returned in a compression in which it is kept, and returns a tag
// of its bytes. ok is false if it is not kept so. The caller closes the NAR.
func (c *Cache) OpenReceivedAs(ctx context.Context, r Received, compression nix.Compression) (n NAR, tag string, ok bool, err error) {
	s, able := c.sink.Source.(CompressedReceiver)
	if !able || s.Compression() != compression {
		return nil, "", false, nil
	}
	if n, tag, err = s.OpenReceivedCompressed(ctx, r); err != nil {
		return nil, "", false, fmt.Errorf("open NAR %s: %w", r.NARHash, err)
	}
	return n, r.NARHash.Nix32() + "-" + tag, true, nil
}

// Publish makes a store path visible that a client describes, with the NAR that Receive or Received
// returned, and reports whether the path was not there before. If it is there with the same NAR, new
// signatures are added; with another NAR, which happens when two machines build the same and it is not
// reproducible, what is there stays, and that is no error.
//
// The zero Received stands for the NAR that the path has: only signatures are added. ErrNotFound if
// the path is not there then.
//
// What is wrong is refused with a text for the client, and changes nothing.
func (c *Cache) Publish(ctx context.Context, n *nix.PathInfo, r Received) (added bool, err error) {
	if !c.Keeps() {
		return false, errNoSink
	}
	if err := c.checkInfo(n); err != nil {
		return false, err
	}
	onlySigned := r == (Received{})
	there, same, err := c.look(ctx, n, c.origin)
	if err == nil && there == nil && onlySigned {
		// It was announced, as the client knows of it, and may be again by now.
		if _, _, _, err = c.missingNow(ctx, true); err == nil {
			there, same, err = c.look(ctx, n, c.origin)
		}
	}
	switch {
	case err != nil:
		return false, fmt.Errorf("publish %s: %w", n.Path, err)
	case onlySigned && there == nil:
		return false, fmt.Errorf("publish %s: %w", n.Path, ErrNotFound)
	case onlySigned && (there.NARHash != n.NARHash || there.NARSize != n.NARSize):
		return false, Refuse(ErrConflict, "NarHash: %s is there with NarHash %s and NarSize %d", n.Path, there.NARHash, there.NARSize)
	case !onlySigned && r.NARHash != n.NARHash:
		return false, Refuse(ErrInvalid, "NarHash: it is %s, and the NAR that was uploaded has %s", n.NARHash, r.NARHash)
	case !onlySigned && r.NARSize != n.NARSize:
		return false, Refuse(ErrInvalid, "NarSize: it is %d, and the NAR that was uploaded has %d bytes", n.NARSize, r.NARSize)
	}
	if there != nil {
		if there.NARHash != n.NARHash {
			c.log.Warn("a path was pushed that is there with another NAR, and stays as it is",
				"path", n.Path.String(), "has", there.NARHash.String(), "pushed", n.NARHash.String())
			return false, nil
		}
		if !same {
			return false, Refuse(ErrConflict, "References: %s is there with the same NAR and other references: %s", n.Path, bases(there.References))
		}
	}
	kept, same, err := c.look(ctx, n, func(ctx context.Context, hash nix.PathHash) (*nix.PathInfo, func(), error) {
		return c.heldInfo(ctx, c.sink.Source, hash)
	})
	if err != nil {
		return false, fmt.Errorf("publish %s: %w", n.Path, err)
	}
	if kept != nil && there == nil && c.closures.checked {
		of := *kept
		if same {
			of.References = n.References
		}
		missing, _, err := c.missingReferences(ctx, &of)
		if err != nil {
			return false, err
		}
		if len(missing) > 0 {
			return false, refuseMissing(kept, missing)
		}
	}
	switch {
	case kept != nil && (kept.NARHash != n.NARHash || !same):
		if there == nil {
			return false, nil
		}
		return false, c.endorse(ctx, n, there) // an earlier source has this NAR: what the sink has stays as it is
	case kept != nil:
		// What was checked when it was published needs no second look: only signatures are added.
		info := *kept
		info.References = n.References // which are the same
		info.Signatures = c.newSignatures(kept, n.Signatures)
		if info.Signatures == nil {
			return false, nil
		}
		if err := c.checkSigned(&info, kept.Signatures); err != nil {
			return false, err
		}
		return false, c.publish(ctx, &info, Basis{}) // if it was deleted by now, ErrChanged
	case onlySigned:
		return false, c.endorse(ctx, n, there)
	}
	if err := c.checkContents(ctx, n, r); err != nil {
		return false, err
	}
	info := *n
	return there == nil, c.publishChecked(ctx, &info)
}

// endorse keeps the signatures of a path that only another source has, to be served with it.
func (c *Cache) endorse(ctx context.Context, n *nix.PathInfo, there *nix.PathInfo) error {
	kept, _, err := c.sink.Endorsements(ctx, there)
	if err != nil {
		return fmt.Errorf("publish %s: %w", n.Path, err)
	}
	all := *n
	all.Signatures = slices.Concat(there.Signatures, kept)
	more := c.newSignatures(&all, n.Signatures)
	if more == nil {
		return nil
	}
	added := all
	added.Signatures = more
	if err := c.checkSigned(&added, all.Signatures); err != nil {
		return err
	}
	err = c.sink.Endorse(ctx, there, more)
	c.pushes.Add(1)
	if err != nil {
		return fmt.Errorf("publish %s: %w", n.Path, err)
	}
	return nil
}

// look looks a path up that is pushed. It returns nil if it is not there, and whether it is there
// with the same references. Of many only the first few are left in the result.
func (c *Cache) look(ctx context.Context, n *nix.PathInfo, find func(context.Context, nix.PathHash) (*nix.PathInfo, func(), error)) (there *nix.PathInfo, same bool, err error) {
	info, done, err := find(ctx, n.Path.Hash())
	if errors.Is(err, ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	defer done()
	if there = info; infoSize(info) > LargeInfo {
		there = withoutReferences(info)
		there.References = slices.Clone(info.References[:min(maxBases, len(info.References))])
	}
	return there, slices.Equal(info.References, n.References), nil
}

// checkSigned checks that a path with signatures that are there, and those that it brings, is not
// too large.
func (c *Cache) checkSigned(info *nix.PathInfo, there []nix.Signature) error {
	all := *info
	all.Signatures = slices.Concat(there, info.Signatures)
	if len(all.Signatures) > maxSignatures {
		return Refuse(ErrInvalid, "Sig: with these, %s would have more than %d signatures", info.Path, maxSignatures)
	}
	return c.checkSize(&all)
}

// checkSize checks that a narinfo is not longer than clients read, signed by our own keys. Over SSH
// a path comes without one.
func (c *Cache) checkSize(n *nix.PathInfo) error {
	const url, signature = 256, 700 // our own
	if size := int(infoSize(n)) + url + signature*len(c.keys); size > nix.MaxNARInfoSize {
		return Refuse(ErrTooLarge, "References: with %d of them and %d signatures, the narinfo of %s has %d bytes, more than %d", len(n.References), len(n.Signatures), n.Path, size, nix.MaxNARInfoSize)
	}
	return nil
}

// checkInfo checks what a narinfo shows by itself.
func (c *Cache) checkInfo(n *nix.PathInfo) error {
	switch dir := c.info.StoreDir; {
	case n.Path.Dir() != dir:
		return Refuse(ErrInvalid, "StorePath: %s is not in %s, the store directory of this cache", n.Path, dir)
	case !n.Deriver.IsZero() && n.Deriver.Dir() != dir:
		return Refuse(ErrInvalid, "Deriver: %s is not in %s, the store directory of this cache", n.Deriver, dir)
	case n.NARHash.Algorithm() != nix.SHA256 || n.NARSize <= 0:
		return Refuse(ErrInvalid, "NarHash and NarSize: they have to be there, and the hash a SHA-256")
	}
	if err := c.checkSize(n); err != nil {
		return err
	}
	for _, ref := range n.References {
		if ref.Dir() != c.info.StoreDir {
			return Refuse(ErrInvalid, "References: %s is not in %s, the store directory of this cache", ref, c.info.StoreDir)
		}
	}
	if err := n.CheckContentAddress(); err != nil {
		return Refuse(ErrInvalid, "CA: %s", err)
	}
	return c.checkSignatures(n.Signatures, n.AppendFingerprint(nil))
}

// checkSignatures refuses signatures under the names of our own keys that these have not made,
// and those that would harm clients.
func (c *Cache) checkSignatures(sigs []nix.Signature, fingerprint []byte) error {
	for _, s := range sigs {
		for _, k := range c.keys {
			if k.Name() == s.Name && !k.Public().Verify(fingerprint, s) {
				return Refuse(ErrInvalid, "Sig: the signature by %s is wrong: that is a key of this cache, and it has not made it", s.Name)
			}
		}
		if c.misleads(s, nil) {
			return Refuse(ErrInvalid, "Sig: %s is the name of an Ed25519 key, and the signature under it is of another algorithm: clients that trust that key would fail at it; give the other key a name of its own", s.Name)
		}
	}
	return nil
}

// Others leaves out the signatures that this cache would refuse: those under the names of its own
// keys that these have not made, and those that would harm clients. They are never served.
func (c *Cache) Others(sigs []nix.Signature, fingerprint []byte) []nix.Signature {
	return slices.DeleteFunc(slices.Clone(sigs), func(s nix.Signature) bool {
		return c.checkSignatures([]nix.Signature{s}, fingerprint) != nil
	})
}

// PutLog keeps a build log, in the place of an older one.
func (c *Cache) PutLog(ctx context.Context, drv nix.StorePath, log io.Reader) error {
	if !c.Keeps() {
		return errNoSink
	}
	if err := c.sink.PutLog(ctx, drv, log); err != nil {
		return fmt.Errorf("keep log of %s: %w", drv, err)
	}
	return nil
}

// PutRealisation keeps what a derivation output was built to, which must be in the cache. An older one stays,
// and gets new signatures if it says the same.
func (c *Cache) PutRealisation(ctx context.Context, r *nix.Realisation) error {
	if err := c.putOutput(ctx, r.OutPath, r.Signatures, r.AppendFingerprint(nil), func(b Basis) error { return c.sink.PutRealisation(ctx, r, b) }); err != nil {
		return fmt.Errorf("keep realisation %s: %w", r.ID, err)
	}
	return nil
}

// PutBuildTrace is PutRealisation for how Nix from 2.35 on says it.
func (c *Cache) PutBuildTrace(ctx context.Context, t *nix.BuildTrace) error {
	if err := c.putOutput(ctx, t.OutPath, t.Signatures, t.AppendFingerprint(nil), func(b Basis) error { return c.sink.PutBuildTrace(ctx, t, b) }); err != nil {
		return fmt.Errorf("keep build trace of %s!%s: %w", t.Drv, t.Output, err)
	}
	return nil
}

// putOutput checks what is said of the output of a derivation, and has put keep it.
func (c *Cache) putOutput(ctx context.Context, out nix.StorePath, sigs []nix.Signature, fingerprint []byte, put func(Basis) error) error {
	if !c.Keeps() {
		return errNoSink
	}
	if err := c.checkSignatures(sigs, fingerprint); err != nil {
		return err
	}
	return c.onBasis(ctx, out, func(b *Basis) error {
		has, err := c.Has(ctx, out)
		switch {
		case err != nil:
			return fmt.Errorf("look up output %s: %w", out, err)
		case !has && !c.partial:
			return Refuse(ErrInvalid, "outPath: %s is not in this cache; push that first", out.Base())
		}
		return put(*b)
	})
}

// newSignatures returns those that a path does not have, and that we do not make ourselves.
func (c *Cache) newSignatures(there *nix.PathInfo, sigs []nix.Signature) (more []nix.Signature) {
	for _, s := range sigs {
		if !c.isOurs(s.Name) && !slices.Contains(there.Signatures, s) {
			more = append(more, s)
		}
	}
	return more
}

// maxBases is how many paths a message names.
const maxBases = 5

// bases names the first few of some paths.
func bases(paths []nix.StorePath) string {
	const most = maxBases
	var names []string
	for _, p := range paths[:min(most, len(paths))] {
		names = append(names, p.Base())
	}
	if more := len(paths) - most; more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	if names == nil {
		return "none"
	}
	return strings.Join(names, ", ")
}
