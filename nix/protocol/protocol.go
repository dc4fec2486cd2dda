// Package protocol has the two protocols that Nix speaks with another machine, or with the daemon of its own:
// the serve protocol, of ssh:// and `nix-store --serve`, and the worker protocol, of ssh-ng:// and the daemon's socket.
//
//	store := protocol.Store{Paths: s, Pushes: s, Derivations: s}
//	err := protocol.ServeLegacy(ctx, conn, store, protocol.Options{})
//	err = protocol.ServeWorker(ctx, conn, store, protocol.Options{Version: "firn 1.0"})
//
//	c, err := protocol.DialWorker(conn, nix.DefaultStoreDir)
//	err = c.AddNAR(info, nar)
//
// Both are questions and answers, one after the other. What a store can be asked is [Store];
// what only a store with a builder could answer is refused in a way that clients understand.
// There is no policy here. Memory is bounded, whatever is sent, and NARs are passed on while they come.
package protocol

import (
	"context"
	"errors"
	"io"
	"iter"

	"firn/nix"
)

// ErrNotFound says that a store does not have something.
var ErrNotFound = errors.New("not found")

// A Store is what the server ends answer from, by its ports. Methods are called by one goroutine for
// each connection. The text of an error goes to the client. An error that is ErrNotFound says that
// what was asked for is surely not there.
type Store struct {
	Paths
	Pushes
	Derivations
}

// Paths are the store paths that are there.
type Paths interface {
	// StoreDir is the store directory of all paths.
	StoreDir() nix.StoreDir
	// ValidPaths returns which of the paths are there, in their order.
	ValidPaths(ctx context.Context, paths []nix.StorePath) ([]nix.StorePath, error)
	// PathInfo returns what is known of a path, ErrNotFound if it is not there.
	PathInfo(ctx context.Context, path nix.StorePath) (*nix.PathInfo, error)
	// PathFromHash returns what is known of the path with a path hash, ErrNotFound if there is none.
	PathFromHash(ctx context.Context, hash nix.PathHash) (*nix.PathInfo, error)
	// WriteNAR writes the NAR of a path info that the store gave.
	WriteNAR(ctx context.Context, w io.Writer, info *nix.PathInfo) error
	// AllPaths iterates over all paths. One may come twice.
	AllPaths(ctx context.Context) iter.Seq2[nix.StorePath, error]
	// Closure returns the paths with all that they refer to, however indirectly, as far as it is
	// there, each once. ErrNotFound if one of the paths is not there.
	Closure(ctx context.Context, paths []nix.StorePath) ([]nix.StorePath, error)
}

// Pushes is what changes a store.
type Pushes interface {
	// ReadNAR reads a NAR from r to io.EOF, or fails. The path is verified and published later, in an
	// order that leaves no reference missing that was read before. What r fails with, it fails with.
	ReadNAR(ctx context.Context, info *nix.PathInfo, r io.Reader) error
	// Settle waits until all that ReadNAR has read is published, and returns the first failure since it was last called.
	Settle(ctx context.Context) error
	// AddSignatures adds signatures to a path that is there.
	AddSignatures(ctx context.Context, path nix.StorePath, sigs []nix.Signature) error
	// PutRealisation and PutBuildTrace keep what a derivation output was built to.
	PutRealisation(ctx context.Context, r *nix.Realisation) error
	PutBuildTrace(ctx context.Context, t *nix.BuildTrace) error
	// PutBuildLog reads the build log of a derivation to io.EOF and keeps it.
	PutBuildLog(ctx context.Context, drv nix.StorePath, r io.Reader) error
}

// Derivations is what is known of derivations.
type Derivations interface {
	// ClosureWithOutputs returns what Closure does, and what derivations among these were built to.
	ClosureWithOutputs(ctx context.Context, paths []nix.StorePath) ([]nix.StorePath, error)
	// Outputs returns the outputs of a derivation by their names, whether they are there or not; a zero path stands for one that is not known.
	// ErrNotFound if the derivation is not there.
	Outputs(ctx context.Context, drv nix.StorePath) (map[string]nix.StorePath, error)
	// DerivationHash returns the hash that names the realisations of a derivation. ErrNotFound if it, or one that it needs, is not there.
	DerivationHash(ctx context.Context, drv nix.StorePath) (nix.Hash, error)
	// Realisation and BuildTrace return what a derivation output was built to, ErrNotFound if that is not known.
	Realisation(ctx context.Context, id nix.RealisationID) (*nix.Realisation, error)
	BuildTrace(ctx context.Context, drv nix.StorePath, output string) (*nix.BuildTrace, error)
}

// Options of a server end.
type Options struct {
	// ReadOnly refuses everything that would change the store.
	ReadOnly bool
	// Version is told to clients of the worker protocol as that of Nix, such as "firn 1.0".
	Version string
	// Memory takes memory for another megabyte of a question, of which the first is free. ok is false if there is none, and then the question
	// is refused; done gives it back. Nil: there always is.
	Memory func() (done func(), ok bool)
}

// errReadOnly refuses writes to what is read-only.
var errReadOnly = errors.New("this session may only read: the command that began it has no --write, or says --read-only")
