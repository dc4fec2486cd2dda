//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strings"

	"firn/nix"
	"firn/nix/protocol"
)

// The SSH sink is a store that keeps nothing, behind Debian's sshd: what Nix takes to push to it is what Nix and OpenSSH take.
// NARs are read and forgotten, and path infos remembered until the conversation ends, for a client asks for them again.

const (
	// sshSinkCommand is the first argument that makes this program the SSH sink. sshd runs it in place of what the client asks for.
	sshSinkCommand = "ssh-sink"
	// commandVariable is where sshd leaves what that was.
	commandVariable = "SSH_ORIGINAL_COMMAND"
)

// forceSink has the key in a file, which is to be an authorized_keys file, reach nothing but the SSH sink.
func forceSink(file string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	public, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return os.WriteFile(file, fmt.Appendf(nil, "restrict,command=\"%s %s\" %s", self, sshSinkCommand, public), 0o600)
}

// serveSSHSink answers the client at standard input and output.
func serveSSHSink(ctx context.Context) error {
	conn := struct {
		io.Reader
		io.Writer
	}{os.Stdin, os.Stdout}
	store := &sinkStore{infos: make(map[nix.StorePath]*nix.PathInfo)}
	switch command := os.Getenv(commandVariable); {
	case strings.Contains(command, "--serve"):
		return protocol.ServeLegacy(ctx, conn, protocol.Store{Paths: store, Pushes: store}, protocol.Options{})
	case strings.Contains(command, "--stdio"):
		return protocol.ServeWorker(ctx, conn, protocol.Store{Paths: store, Pushes: store}, protocol.Options{Version: "2.8.0"})
	default:
		return fmt.Errorf("%s is %q, which is not what Nix asks for", commandVariable, command)
	}
}

// sinkStore is the paths and pushes of a [protocol.Store] of one conversation.
type sinkStore struct {
	infos map[nix.StorePath]*nix.PathInfo
}

var errNothingKept = errors.New("nothing is kept here")

func (*sinkStore) StoreDir() nix.StoreDir { return nix.DefaultStoreDir }

func (s *sinkStore) ValidPaths(_ context.Context, paths []nix.StorePath) (valid []nix.StorePath, err error) {
	for _, p := range paths {
		if s.infos[p] != nil {
			valid = append(valid, p)
		}
	}
	return valid, nil
}

func (s *sinkStore) PathInfo(_ context.Context, path nix.StorePath) (*nix.PathInfo, error) {
	if info := s.infos[path]; info != nil {
		return info, nil
	}
	return nil, protocol.ErrNotFound
}

func (s *sinkStore) ReadNAR(_ context.Context, info *nix.PathInfo, r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	s.infos[info.Path] = info
	return err
}

func (*sinkStore) Settle(context.Context) error { return nil }

func (*sinkStore) AddSignatures(context.Context, nix.StorePath, []nix.Signature) error { return nil }

func (*sinkStore) PathFromHash(context.Context, nix.PathHash) (*nix.PathInfo, error) {
	return nil, protocol.ErrNotFound
}

func (*sinkStore) WriteNAR(context.Context, io.Writer, *nix.PathInfo) error { return errNothingKept }

func (*sinkStore) AllPaths(context.Context) iter.Seq2[nix.StorePath, error] {
	return func(func(nix.StorePath, error) bool) {}
}

func (*sinkStore) Closure(context.Context, []nix.StorePath) ([]nix.StorePath, error) {
	return nil, protocol.ErrNotFound
}

func (*sinkStore) PutRealisation(context.Context, *nix.Realisation) error { return errNothingKept }

func (*sinkStore) PutBuildTrace(context.Context, *nix.BuildTrace) error { return errNothingKept }

func (*sinkStore) PutBuildLog(context.Context, nix.StorePath, io.Reader) error { return errNothingKept }
