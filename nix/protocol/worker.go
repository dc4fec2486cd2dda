package protocol

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"firn/nix"
)

// The worker protocol (worker-protocol.hh of Nix). Versions are major<<8 | minor, from Nix 2.3 on.
const (
	workerMagicClient = 0x6e697863
	workerMagicServer = 0x6478696f
	workerVersion     = 1<<8 | 38
	workerOldest      = 1<<8 | 21

	// featureBuildTrace: what derivations were built to goes by their paths, as in Nix from 2.35 on.
	featureBuildTrace = "realisation-with-path-not-hash"

	notTrusted = 2 // told to clients from 1.35 on: signatures are checked here for every client
)

// What the server says before the result.
const (
	stderrNext          = 0x6f6c6d67
	stderrRead          = 0x64617461
	stderrStartActivity = 0x53545254
	stderrStopActivity  = 0x53544f50
	stderrResult        = 0x52534c54
	stderrLast          = 0x616c7473
	stderrError         = 0x63787470
)

const (
	opIsValidPath                 = 1
	opQueryReferrers              = 6
	opAddToStore                  = 7
	opAddTextToStore              = 8
	opBuildPaths                  = 9
	opEnsurePath                  = 10
	opAddTempRoot                 = 11
	opAddIndirectRoot             = 12
	opFindRoots                   = 14
	opSetOptions                  = 19
	opCollectGarbage              = 20
	opQuerySubstitutablePathInfo  = 21
	opQueryDerivationOutputs      = 22
	opQueryAllValidPaths          = 23
	opQueryPathInfo               = 26
	opQueryDerivationOutputNames  = 28
	opQueryPathFromHashPart       = 29
	opQuerySubstitutablePathInfos = 30
	opQueryValidPaths             = 31
	opQuerySubstitutablePaths     = 32
	opQueryValidDerivers          = 33
	opOptimiseStore               = 34
	opVerifyStore                 = 35
	opBuildDerivation             = 36
	opAddSignatures               = 37
	opNarFromPath                 = 38
	opAddToStoreNar               = 39
	opQueryMissing                = 40
	opQueryDerivationOutputMap    = 41
	opRegisterDrvOutput           = 42
	opQueryRealisation            = 43
	opAddMultipleToStore          = 44
	opAddBuildLog                 = 45
	opBuildPathsWithResults       = 46
	opAddPermRoot                 = 47
)

// workerServer is one conversation.
type workerServer struct {
	*wire
	store    Store
	dir      nix.StoreDir
	opts     Options
	version  uint64
	features []string
}

// errHungUp ends a conversation of which the client was told why.
var errHungUp = errors.New("the client asked for what cannot be answered here")

// ServeWorker answers the worker protocol until the client ends it, which is nil. Failures are told to the client;
// after some of them, nothing can follow. These are returned too.
func ServeWorker(ctx context.Context, conn io.ReadWriter, store Store, opts Options) error {
	s := &workerServer{wire: newWire(conn), store: store, dir: store.StoreDir(), opts: opts}
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
		if s.err != nil {
			return s.err
		}
		err := s.answer(ctx, op)
		switch {
		case s.err == nil && err != nil && !errors.Is(err, errHungUp):
			s.sayError(err)
		case errors.As(s.err, new(*malformed)), errors.Is(s.err, errNoMemory): // what comes then cannot be understood
			wrong := s.take()
			s.sayError(wrong)
			s.flush()
			return wrong
		}
		if s.err != nil {
			s.w.Flush()
			return cutOff(s.err)
		}
		if errors.Is(err, errHungUp) {
			s.flush()
			return err
		}
	}
}

func (s *workerServer) handshake() error {
	if magic := s.uint(); s.err == nil && magic != workerMagicClient {
		return &malformed{fmt.Sprintf("this is not the worker protocol: it begins with %#x", magic)}
	}
	s.putUint(workerMagicServer)
	s.putUint(workerVersion)
	s.flush()
	theirs := s.uint()
	if s.err != nil {
		return cutOff(s.err)
	}
	if theirs>>8 != workerVersion>>8 || theirs < workerOldest {
		return fmt.Errorf("version %d.%d of the worker protocol is not understood here: this speaks 1.21 to 1.38", theirs>>8, theirs&0xff)
	}
	s.version = min(theirs, workerVersion)
	if s.has(38) {
		ours := []string{featureBuildTrace}
		for _, f := range s.strings(maxStrings, maxPath) {
			if slices.Contains(ours, f) {
				s.features = append(s.features, f)
			}
		}
		s.putStrings(ours...)
		s.flush()
	}
	if s.bool() { // CPU affinity
		s.skip(1)
	}
	s.skip(1) // reserve space
	if s.has(33) {
		s.putString(s.opts.Version)
	}
	if s.has(35) {
		s.putUint(notTrusted)
	}
	s.last()
	s.flush()
	if s.err != nil {
		return cutOff(s.err)
	}
	return nil
}

// has reports whether a minor version is spoken.
func (s *workerServer) has(minor uint64) bool { return s.version >= 1<<8|minor }

func (s *workerServer) hasFeature(f string) bool { return slices.Contains(s.features, f) }

// last says that the result follows.
func (s *workerServer) last() { s.putUint(stderrLast) }

// sayError says that there is no result.
func (s *workerServer) sayError(err error) {
	s.putUint(stderrError)
	if !s.has(26) {
		s.putString(err.Error())
		s.putUint(1)
		return
	}
	s.putString("Error")
	s.putUint(0) // level
	s.putString("Error")
	s.putString(err.Error())
	s.putUint(0) // position
	s.putUint(0) // traces
}

// answer answers one question: it reads what belongs to it, and writes the result after last.
// The error is for the client, and s.err what is wrong with the connection.
func (s *workerServer) answer(ctx context.Context, op uint64) error {
	switch op {
	case opIsValidPath:
		return s.isValidPath(ctx)
	case opQueryValidPaths:
		return s.queryValidPaths(ctx)
	case opQueryAllValidPaths:
		return s.queryAllValidPaths(ctx)
	case opQueryPathInfo:
		return s.queryPathInfo(ctx)
	case opQueryPathFromHashPart:
		return s.queryPathFromHashPart(ctx)
	case opQuerySubstitutablePaths:
		s.paths(s.dir)
		return s.result(nil, func() { s.putUint(0) })
	case opQuerySubstitutablePathInfo:
		s.path(s.dir)
		return s.result(nil, func() { s.putUint(0) })
	case opQuerySubstitutablePathInfos:
		for range s.count(maxPaths, "paths") {
			if s.err != nil {
				break
			}
			s.path(s.dir)
			if s.has(22) {
				s.skipString(maxPath) // content address
			}
		}
		return s.result(nil, func() { s.putUint(0) })
	case opSetOptions:
		s.skip(12)
		if n := s.count(maxStrings, "settings"); s.err == nil {
			for range 2 * n {
				if s.skipString(maxText); s.err != nil {
					break
				}
			}
		}
		return s.result(nil, nothing)
	case opAddTempRoot: // nothing is collected that was just found
		s.path(s.dir)
		return s.result(nil, s.yes)
	case opEnsurePath:
		p := s.path(s.dir)
		return s.result(s.ask(func() error { return isBuilt(ctx, s.store, p.String()) }), s.yes)
	case opBuildPaths:
		wanted := s.derivedPaths()
		s.skip(1) // mode
		return s.result(s.ask(func() error {
			for _, text := range wanted {
				if err := isBuilt(ctx, s.store, text); err != nil {
					return err
				}
			}
			return nil
		}), s.yes)
	case opBuildPathsWithResults:
		return s.buildPathsWithResults(ctx)
	case opQueryDerivationOutputs, opQueryDerivationOutputNames, opQueryDerivationOutputMap:
		return s.queryOutputs(ctx, op)
	case opQueryMissing:
		return s.queryMissing(ctx)
	case opNarFromPath:
		return s.narFromPath(ctx)
	case opAddToStoreNar:
		return s.addToStoreNar(ctx)
	case opAddMultipleToStore:
		return s.addMultipleToStore(ctx)
	case opAddSignatures:
		p := s.path(s.dir)
		sigs := s.signatures()
		return s.result(s.write(func() error { return about(p, s.store.AddSignatures(ctx, p, sigs)) }), s.yes)
	case opAddBuildLog:
		return s.addBuildLog(ctx)
	case opRegisterDrvOutput:
		return s.registerDrvOutput(ctx)
	case opQueryRealisation:
		return s.queryRealisation(ctx)
	case opBuildDerivation:
		return s.buildDerivation()
	}
	return s.refuse(op)
}

func (s *workerServer) yes() { s.putUint(1) }

// ask runs f unless the question could not be read.
func (s *workerServer) ask(f func() error) error {
	if s.err != nil {
		return s.err
	}
	return f()
}

// write runs f unless nothing may be written, or the question could not be read.
func (s *workerServer) write(f func() error) error {
	if s.err == nil && s.opts.ReadOnly {
		return errReadOnly
	}
	return s.ask(f)
}

// result writes a result, unless there is an error.
func (s *workerServer) result(err error, put func()) error {
	if err != nil || s.err != nil {
		return err
	}
	s.last()
	put()
	return nil
}

func (s *workerServer) isValidPath(ctx context.Context) error {
	p := s.path(s.dir)
	var valid []nix.StorePath
	err := s.ask(func() (err error) {
		valid, err = s.store.ValidPaths(ctx, []nix.StorePath{p})
		return err
	})
	return s.result(err, func() { s.putBool(len(valid) > 0) })
}

func (s *workerServer) queryValidPaths(ctx context.Context) error {
	paths := s.paths(s.dir)
	if s.has(27) {
		s.bool() // substitute: whether to get those that are not there
	}
	var valid []nix.StorePath
	err := s.ask(func() (err error) {
		valid, err = s.store.ValidPaths(ctx, paths)
		return err
	})
	return s.result(err, func() { s.putPaths(valid) })
}

func (s *workerServer) queryAllValidPaths(ctx context.Context) error {
	var all []nix.StorePath // how many there are comes first
	for p, err := range s.store.AllPaths(ctx) {
		if err != nil {
			return err
		}
		if len(all) == maxPaths {
			return fmt.Errorf("there are more than %d paths", maxPaths)
		}
		if !s.budget.take(len(p.String())) {
			return errNoMemory
		}
		all = append(all, p)
	}
	return s.result(nil, func() { s.putPaths(nix.SortPaths(all)) })
}

func (s *workerServer) queryPathInfo(ctx context.Context) error {
	p := s.path(s.dir)
	if s.err != nil {
		return s.err
	}
	info, err := s.store.PathInfo(ctx, p)
	if errors.Is(err, ErrNotFound) {
		return s.result(nil, func() { s.putBool(false) })
	}
	if err == nil {
		err = s.budget.hold(info)
	}
	return s.result(err, func() {
		s.putBool(true)
		s.putInfo(info)
	})
}

func (s *workerServer) queryPathFromHashPart(ctx context.Context) error {
	text := s.string(maxPath)
	if s.err != nil {
		return s.err
	}
	hash, err := nix.ParsePathHash(text)
	if err != nil {
		return err
	}
	info, err := s.store.PathFromHash(ctx, hash)
	if errors.Is(err, ErrNotFound) {
		return s.result(nil, func() { s.putString("") })
	}
	return s.result(err, func() { s.putPath(info.Path) })
}

// derivedPaths reads store paths, and outputs of derivations as DRV!OUTPUT.
func (s *workerServer) derivedPaths() []string { return s.strings(maxPaths, maxPath) }

// buildPathsWithResults answers with a result for each path. What would have to be built is an
// error of the whole question instead: a client that has it for a builder asks so, and does not
// look at results.
func (s *workerServer) buildPathsWithResults(ctx context.Context) error {
	wanted := s.derivedPaths()
	s.skip(1) // mode
	if s.err != nil {
		return s.err
	}
	var results []buildResult
	for _, text := range wanted {
		r := buildResult{status: builtAlready}
		b, err := findBuilt(ctx, s.store, text)
		if err == nil && b.isDerivation() && !s.hasFeature(featureBuildTrace) {
			r.outputs, err = b.realisations(ctx, s.store)
		}
		switch {
		case errors.As(err, new(*buildError)):
			return err
		case errors.Is(err, ErrNotFound):
			r = buildResult{status: buildNoSubstituters, message: err.Error()}
		case err != nil:
			r = buildResult{status: buildFailed, message: err.Error()}
		}
		results = append(results, r)
	}
	return s.result(nil, func() {
		s.putUint(uint64(len(results)))
		for i, r := range results {
			s.putString(wanted[i])
			s.putBuildResult(r)
		}
	})
}

// buildDerivation is how a builder is asked.
func (s *workerServer) buildDerivation() error {
	drv := s.path(s.dir)
	s.skipDerivation()
	s.skip(1) // mode
	return s.result(nil, func() { s.putBuildResult(buildResult{status: buildFailed, message: errBuild(drv.String()).Error()}) })
}

// buildResult is what became of something that was to be built.
type buildResult struct {
	status  uint64
	message string
	outputs []*nix.Realisation
}

func (s *workerServer) putBuildResult(r buildResult) {
	s.putUint(r.status)
	s.putString(r.message)
	if s.has(29) {
		for range 4 { // how often it was built, whether that differed, from, to
			s.putUint(0)
		}
	}
	if s.has(37) {
		s.putUint(0) // no CPU times
		s.putUint(0)
	}
	if s.has(28) {
		s.putUint(uint64(len(r.outputs)))
		for _, o := range r.outputs {
			text, err := o.MarshalJSON()
			if err != nil && s.err == nil {
				s.err = err
			}
			s.putString(o.ID.String())
			s.putString(string(text))
		}
	}
}

// queryOutputs answers the three questions about the outputs of a derivation: their paths, their names, or both.
func (s *workerServer) queryOutputs(ctx context.Context, op uint64) error {
	drv := s.path(s.dir)
	if s.err != nil {
		return s.err
	}
	outputs, err := s.store.Outputs(ctx, drv)
	if err != nil {
		return about(drv, err)
	}
	names := slices.Sorted(maps.Keys(outputs))
	return s.result(nil, func() {
		switch op {
		case opQueryDerivationOutputNames:
			s.putStrings(names...)
		case opQueryDerivationOutputs:
			var known []nix.StorePath
			for _, name := range names {
				if p := outputs[name]; !p.IsZero() {
					known = append(known, p)
				}
			}
			s.putPaths(nix.SortPaths(known))
		default:
			s.putUint(uint64(len(names)))
			for _, name := range names {
				s.putString(name)
				s.putPath(outputs[name])
			}
		}
	})
}

func (s *workerServer) queryMissing(ctx context.Context) error {
	var paths, missing []nix.StorePath
	for _, text := range s.derivedPaths() {
		if p, err := s.dir.ParsePath(text); err == nil { // else an output of a derivation, which is not known here
			paths = append(paths, p)
		}
	}
	err := s.ask(func() error {
		valid, err := s.store.ValidPaths(ctx, paths)
		missing = slices.DeleteFunc(paths, func(p nix.StorePath) bool {
			there := len(valid) > 0 && valid[0] == p // they are in the order of paths
			if there {
				valid = valid[1:]
			}
			return there
		})
		return err
	})
	return s.result(err, func() {
		s.putUint(0) // to build
		s.putUint(0) // to substitute
		s.putPaths(nix.SortPaths(missing))
		s.putUint(0) // to download
		s.putUint(0) // to unpack
	})
}

func (s *workerServer) narFromPath(ctx context.Context) error {
	p := s.path(s.dir)
	if s.err != nil {
		return s.err
	}
	info, err := s.store.PathInfo(ctx, p)
	if err != nil {
		return about(p, err)
	}
	s.last()
	if s.err == nil {
		s.err = s.store.WriteNAR(ctx, s.w, withoutReferences(info)) // half of a NAR cannot be taken back
	}
	return nil
}

func (s *workerServer) registerDrvOutput(ctx context.Context) error {
	if s.hasFeature(featureBuildTrace) {
		t := &nix.BuildTrace{Drv: s.path(s.dir), Output: s.string(maxPath), OutPath: s.path(s.dir), Signatures: s.signatures()}
		return s.result(s.write(func() error {
			if err := nix.CheckOutputName(t.Output); err != nil {
				return err
			}
			return s.store.PutBuildTrace(ctx, t)
		}), nothing)
	}
	if !s.has(31) {
		id, out := s.string(maxPath), s.path(s.dir)
		return s.result(s.write(func() error {
			parsed, err := nix.ParseRealisationID(id)
			if err != nil {
				return err
			}
			return s.store.PutRealisation(ctx, &nix.Realisation{ID: parsed, OutPath: out})
		}), nothing)
	}
	text := s.string(maxText)
	return s.result(s.write(func() error {
		r, err := nix.ParseRealisation(s.dir, []byte(text))
		if err != nil {
			return err
		}
		return s.store.PutRealisation(ctx, r)
	}), nothing)
}

func (s *workerServer) queryRealisation(ctx context.Context) error {
	if s.hasFeature(featureBuildTrace) {
		drv, output := s.path(s.dir), s.string(maxPath)
		if s.err != nil {
			return s.err
		}
		t, err := s.store.BuildTrace(ctx, drv, output)
		if errors.Is(err, ErrNotFound) {
			return s.result(nil, func() { s.putUint(0) })
		}
		return s.result(err, func() {
			s.putUint(1)
			s.putPath(t.OutPath)
			s.putSignatures(t.Signatures)
		})
	}
	text := s.string(maxPath)
	if s.err != nil {
		return s.err
	}
	id, err := nix.ParseRealisationID(text)
	if err != nil {
		return err
	}
	r, err := s.store.Realisation(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return s.result(nil, func() { s.putUint(0) })
	}
	if err != nil {
		return err
	}
	if !s.has(31) {
		return s.result(nil, func() { s.putPaths([]nix.StorePath{r.OutPath}) })
	}
	json, err := r.MarshalJSON()
	return s.result(err, func() { s.putStrings(string(json)) })
}
