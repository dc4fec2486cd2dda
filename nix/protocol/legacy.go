package protocol

import (
	"context"
	"errors"
	"fmt"
	"io"

	"firn/nix"
)

// The serve protocol (serve-protocol.hh of Nix). Versions are major<<8 | minor.
const (
	legacyMagicClient = 0x390c9deb
	legacyMagicServer = 0x5452eecb
	legacyVersion     = 2<<8 | 7
	legacyOldest      = 2<<8 | 4 // Nix 2.0

	legacyQueryValidPaths = 1
	legacyQueryPathInfos  = 2
	legacyDumpStorePath   = 3
	legacyImportPaths     = 4
	legacyBuildPaths      = 6
	legacyQueryClosure    = 7
	legacyBuildDerivation = 8
	legacyAddToStoreNar   = 9
)

// What came of a build.
const (
	builtAlready        = 2
	buildFailed         = 9 // for a reason that does not matter: the numbers below have meanings to old clients
	buildNoSubstituters = 14
)

// legacyServer is one conversation.
type legacyServer struct {
	*wire
	store   Store
	dir     nix.StoreDir
	opts    Options
	version uint64
}

// ServeLegacy answers the serve protocol until the client ends it, which is nil. There is no way to tell the client of a failure
// in this protocol: it is for the caller to show the error on standard error, and to end the connection.
func ServeLegacy(ctx context.Context, conn io.ReadWriter, store Store, opts Options) error {
	s := &legacyServer{wire: newWire(conn), store: store, dir: store.StoreDir(), opts: opts}
	s.budget = newBudget(opts.Memory)
	defer s.budget.clear()
	if err := s.handshake(); err != nil {
		return err
	}
	for {
		s.budget.clear()
		op := s.uint()
		if errors.Is(s.err, io.EOF) {
			return nil
		}
		if err := s.answer(ctx, op); err != nil {
			s.w.Flush() // what was answered before
			return err
		}
	}
}

func (s *legacyServer) handshake() error {
	if magic := s.uint(); s.err == nil && magic != legacyMagicClient {
		return &malformed{fmt.Sprintf("this is not the serve protocol: it begins with %#x", magic)}
	}
	s.putUint(legacyMagicServer)
	s.putUint(legacyVersion)
	s.flush()
	theirs := s.uint()
	if s.err == nil && (theirs>>8 != legacyVersion>>8 || theirs < legacyOldest) {
		return fmt.Errorf("version %d.%d of the serve protocol is not understood here: this speaks 2.4 to 2.7", theirs>>8, theirs&0xff)
	}
	s.version = min(theirs, legacyVersion)
	return s.err
}

// answer answers one question.
func (s *legacyServer) answer(ctx context.Context, op uint64) error {
	if s.err != nil {
		return s.err
	}
	var err error
	switch op {
	case legacyQueryValidPaths:
		err = s.queryValidPaths(ctx)
	case legacyQueryPathInfos:
		err = s.queryPathInfos(ctx)
	case legacyDumpStorePath:
		err = s.dumpStorePath(ctx)
	case legacyBuildPaths:
		err = s.buildPaths(ctx)
	case legacyQueryClosure:
		err = s.queryClosure(ctx)
	case legacyBuildDerivation:
		err = s.buildDerivation()
	case legacyAddToStoreNar:
		err = s.addToStoreNar(ctx)
	default:
		err = fmt.Errorf("operation %d of the serve protocol is not for a cache", op)
	}
	if err == nil {
		err = s.err
	}
	if err != nil {
		return cutOff(err)
	}
	return nil
}

func (s *legacyServer) queryValidPaths(ctx context.Context) error {
	s.bool() // lock: whether to keep them from being collected
	s.bool() // substitute: whether to get those that are not there
	paths := s.paths(s.dir)
	if s.err != nil {
		return s.err
	}
	valid, err := s.store.ValidPaths(ctx, paths)
	if err != nil {
		return err
	}
	s.putPaths(valid)
	return nil
}

func (s *legacyServer) queryPathInfos(ctx context.Context) error {
	for _, p := range s.paths(s.dir) {
		info, err := s.store.PathInfo(ctx, p)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if err := s.budget.hold(info); err != nil {
			return err
		}
		s.putPath(info.Path)
		s.putPath(info.Deriver)
		s.putPaths(info.References)
		s.putUint(0) // to download: nothing but the NAR
		s.putUint(uint64(info.NARSize))
		s.putString(info.NARHash.String())
		s.putString(contentAddress(info))
		s.putSignatures(info.Signatures)
	}
	s.putString("")
	return nil
}

func (s *legacyServer) dumpStorePath(ctx context.Context) error {
	p := s.path(s.dir)
	if s.err != nil {
		return s.err
	}
	info, err := s.store.PathInfo(ctx, p)
	if err != nil {
		return about(p, err)
	}
	return s.store.WriteNAR(ctx, s.w, withoutReferences(info))
}

// about says which path an error is about, where it does not say itself.
func about(p nix.StorePath, err error) error {
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("path %s is not there: %w", p, ErrNotFound)
	}
	return err
}

func (s *legacyServer) buildPaths(ctx context.Context) error {
	wanted := s.strings(maxPaths, maxPath)
	s.skipBuildOptions()
	if s.err != nil {
		return s.err
	}
	for _, text := range wanted {
		if err := isBuilt(ctx, s.store, text); err != nil {
			s.putUint(buildFailed)
			s.putString(err.Error())
			return nil
		}
	}
	s.putUint(0)
	return nil
}

func (s *legacyServer) skipBuildOptions() {
	s.skip(3) // maxSilentTime, buildTimeout, maxLogSize
	s.skip(2) // nrRepeats, enforceDeterminism
	if s.version >= 2<<8|7 {
		s.skip(1) // keepFailed
	}
}

func (s *legacyServer) queryClosure(ctx context.Context) error {
	outputs := s.bool() // of derivations, too
	paths := s.paths(s.dir)
	if s.err != nil {
		return s.err
	}
	find := s.store.Closure
	if outputs {
		find = s.store.ClosureWithOutputs
	}
	closure, err := find(ctx, paths)
	if err != nil {
		return err
	}
	s.putPaths(closure)
	return nil
}

func (s *legacyServer) buildDerivation() error {
	drv := s.path(s.dir)
	s.skipDerivation()
	s.skipBuildOptions()
	if s.err != nil {
		return s.err
	}
	s.putUint(buildFailed)
	s.putString(errBuild(drv.String()).Error())
	s.putUint(0) // how often it was built
	s.putBool(false)
	s.putUint(0) // from
	s.putUint(0) // to
	if s.version >= 2<<8|6 {
		s.putUint(0) // outputs
	}
	return nil
}

// skipDerivation reads a derivation as it is without its inputs.
func (c *wire) skipDerivation() {
	for range c.count(maxStrings, "outputs") {
		for range 4 { // name, path, algorithm, hash
			c.skipString(maxPath)
		}
	}
	c.skipStrings(maxPaths, "input paths", maxPath)
	c.skipString(maxPath) // platform
	c.skipString(maxPath) // builder
	c.skipStrings(maxStrings, "arguments", maxText)
	for range c.count(maxStrings, "variables") {
		c.skipString(maxText)
		c.skipString(maxText)
	}
}

// skipStrings skips a list of strings.
func (c *wire) skipStrings(most int, what string, longest int) {
	for range c.count(most, what) {
		if c.err != nil {
			return
		}
		c.skipString(longest)
	}
}

func (s *legacyServer) addToStoreNar(ctx context.Context) error {
	if s.opts.ReadOnly {
		return errReadOnly
	}
	info := s.info(s.dir, s.path(s.dir))
	if s.err != nil {
		return s.err
	}
	if err := s.store.ReadNAR(ctx, info, exactly(s.r, info.NARSize)); err != nil {
		return err
	}
	// The answer promises that the path is published: the protocol has no later moment to report a failure.
	if err := s.store.Settle(ctx); err != nil {
		return err
	}
	s.putUint(1)
	return nil
}

// exactly is a reader of n bytes of r, which fails where r has fewer.
func exactly(r io.Reader, n int64) io.Reader { return &exact{r, n} }

type exact struct {
	r    io.Reader
	left int64
}

func (e *exact) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n, err := e.r.Read(p[:min(int64(len(p)), e.left)])
	e.left -= int64(n)
	if e.left > 0 {
		err = cutOff(err)
	} else if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}
