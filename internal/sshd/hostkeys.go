package sshd

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"
)

const (
	hostDirMode fs.FileMode = 0o700
	secretMode  fs.FileMode = 0o600
	publicMode  fs.FileMode = 0o644

	rsaBits = 3072

	// maxKeyFile bounds what is read of a key file, in bytes. RSA keys of 16384 bits fit.
	maxKeyFile = 64 << 10
)

// hostKeyTypes are the host keys that a server has, the one that clients should know first.
var hostKeyTypes = []struct {
	name     string
	generate func() (crypto.PrivateKey, error)
}{
	{"ed25519", func() (crypto.PrivateKey, error) { _, k, err := ed25519.GenerateKey(rand.Reader); return k, err }},
	{"ecdsa", func() (crypto.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }},
	{"rsa", func() (crypto.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, rsaBits) }},
}

// HostKeys returns the host keys in dir, files as ssh-keygen makes them, one of each type. It makes those that are missing.
// Of several servers that start at once, one makes them, and all return the same.
func HostKeys(dir string, log *slog.Logger) ([]ssh.Signer, error) {
	if err := os.MkdirAll(dir, hostDirMode); err != nil {
		return nil, fmt.Errorf("make SSH host keys: %w", err)
	}
	var keys []ssh.Signer
	for _, t := range hostKeyTypes {
		path := filepath.Join(dir, "ssh_host_"+t.name+"_key")
		key, err := readHostKey(path, log)
		if errors.Is(err, fs.ErrNotExist) {
			if err = makeHostKey(path, t.generate); err != nil {
				return nil, fmt.Errorf("make SSH host key %s: %w", path, err)
			}
			key, err = readHostKey(path, log)
		}
		if err != nil {
			return nil, fmt.Errorf("read SSH host key: %w", err)
		}
		// Every server that finds no public half writes it, for people and for known_hosts. The server works without it.
		public := path + ".pub"
		if _, err := os.Lstat(public); errors.Is(err, fs.ErrNotExist) {
			if err := create(public, ssh.MarshalAuthorizedKey(key.PublicKey()), publicMode); err != nil && !errors.Is(err, fs.ErrExist) {
				log.Warn("the public host key could not be written beside the secret one", "error", err)
			}
		}
		keys = append(keys, key)
	}
	return keys, nil
}

func readHostKey(path string, log *slog.Logger) (ssh.Signer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, err
	}
	key, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		log.Warn("others on this machine can read the host key; close it with chmod 600", "path", path, "mode", mode.String())
	}
	if key.PublicKey().Type() != ssh.KeyAlgoRSA {
		return key, nil
	}
	signer, ok := key.(ssh.AlgorithmSigner)
	if !ok {
		return nil, fmt.Errorf("%s: it cannot sign with SHA-2", path)
	}
	return ssh.NewSignerWithAlgorithms(signer, []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256})
}

// makeHostKey makes a key file, unless another process was faster.
func makeHostKey(path string, generate func() (crypto.PrivateKey, error)) error {
	key, err := generate()
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(key, "firn")
	if err != nil {
		return err
	}
	err = create(path, pem.EncodeToMemory(block), secretMode)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// create makes a file with all of its contents, durably, or not at all: it is written beside its place and linked there,
// and a link never replaces what is there.
func create(path string, contents []byte, mode fs.FileMode) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	f, err := os.CreateTemp(dir.Name(), ".firn-key-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(contents)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Link(f.Name(), path)
	}
	return errors.Join(err, dir.Sync())
}
