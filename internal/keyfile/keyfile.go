// Package keyfile keeps signing keys in files, one key a file, as Nix does:
// the secret one for its owner only, the public one for everybody, neither ever overwritten.
package keyfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"firn/nix"
)

const (
	// SecretName and PublicName are the files of the key that a server makes for itself, within its state directory.
	SecretName = "signing-key.secret"
	PublicName = "signing-key.public"

	secretMode fs.FileMode = 0o600
	publicMode fs.FileMode = 0o644
	dirMode    fs.FileMode = 0o755 // of a state directory: the public key is for everybody

	// maxSize bounds what is read of a key file, in bytes. A key has 89 and a name; whatever is longer is another file.
	maxSize = 4096

	// maxHostname bounds the part of a key's name that comes from the machine's, in bytes. Linux has no longer ones.
	maxHostname = 64
)

// Load reads a secret key. A file that everybody on the machine can read is a warning in log, not an error:
// the administrator may have no other way.
func Load(path string, log *slog.Logger) (nix.SecretKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return nix.SecretKey{}, fmt.Errorf("read signing key: %w%s", err, readAdvice(err))
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nix.SecretKey{}, fmt.Errorf("read signing key: %w", err)
	}
	key, err := Read(f)
	if err != nil {
		return nix.SecretKey{}, fmt.Errorf("read signing key %s: %w; want the secret half, a file as `firn key generate` makes it", path, err)
	}
	if fi.Mode().IsRegular() && fi.Mode().Perm()&0o004 != 0 {
		log.Warn("everybody on this machine can read the secret key; close it with chmod o-r", "path", path, "mode", fi.Mode().Perm().String())
	}
	return key, nil
}

// Read reads the contents of a secret key file.
func Read(r io.Reader) (nix.SecretKey, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxSize+1))
	if err != nil {
		return nix.SecretKey{}, err
	}
	if len(text) > maxSize {
		return nix.SecretKey{}, errors.New("this is too long for a key")
	}
	return nix.ParseSecretKey(string(text))
}

// Generate makes a key and writes both files, or neither.
// A file that is there already, whatever it is, is an error that wraps fs.ErrExist.
func Generate(name, secretPath, publicPath string) (nix.PublicKey, error) {
	key, err := nix.GenerateKey(name)
	if err != nil {
		return nix.PublicKey{}, err
	}
	if err := create(secretPath, key.Reveal(), secretMode); err != nil {
		return nix.PublicKey{}, fmt.Errorf("write secret key: %w%s", err, writeAdvice(err))
	}
	if err := create(publicPath, key.Public().String(), publicMode); err != nil {
		err = fmt.Errorf("write public key: %w%s", err, writeAdvice(err))
		return nix.PublicKey{}, errors.Join(err, os.Remove(secretPath))
	}
	return key.Public(), nil
}

// Public returns the public half of the key of the state directory dir: from the file that
// everybody may read, or else from the secret one. The error is fs.ErrNotExist if there is neither.
func Public(dir string, log *slog.Logger) (nix.PublicKey, error) {
	f, err := os.Open(filepath.Join(dir, PublicName))
	if err != nil {
		key, err := Load(filepath.Join(dir, SecretName), log)
		if err != nil {
			return nix.PublicKey{}, err
		}
		return key.Public(), nil
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSize))
	if err != nil {
		return nix.PublicKey{}, fmt.Errorf("read public key: %w", err)
	}
	return nix.ParsePublicKey(strings.TrimSpace(string(text)))
}

// Ensure returns the key of the state directory dir, and makes both when they are not there.
// made tells whether this call made the key; of several that start at once one does, and all return its key.
func Ensure(dir, name string, log *slog.Logger) (key nix.SecretKey, made bool, err error) {
	secretPath, publicPath := filepath.Join(dir, SecretName), filepath.Join(dir, PublicName)
	key, err = Load(secretPath, log)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		if made, err = first(dir, secretPath, name); err != nil {
			return nix.SecretKey{}, false, fmt.Errorf("make a signing key: %w; choose a state directory that can be written with --state, or give a key with --key", err)
		}
		key, err = Load(secretPath, log)
	}
	if err != nil {
		return nix.SecretKey{}, false, err
	}
	// Every process that finds no public key writes it, and all write the same. A key that cannot be written still signs.
	if _, err := os.Lstat(publicPath); errors.Is(err, fs.ErrNotExist) {
		if err := create(publicPath, key.Public().String(), publicMode); err != nil && !errors.Is(err, fs.ErrExist) {
			log.Warn("the public key could not be written beside the secret one", "error", err)
		}
	}
	return key, made, nil
}

// first makes the secret key of a state directory, unless another process was faster.
func first(dir, secretPath, name string) (made bool, err error) {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return false, err
	}
	key, err := nix.GenerateKey(name)
	if err != nil {
		return false, err
	}
	err = create(secretPath, key.Reveal(), secretMode)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	return err == nil, err
}

// NameFor returns the name of the first key of a machine: "<hostname>-1", or "<hostname>-<cache>-1"
// for a cache other than main, so that no two servers have keys of one name, which clients could
// not tell apart. What has no place in a key's name is replaced by "-".
func NameFor(hostname, cache string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '_', r == '-':
			return r
		}
		return '-'
	}, hostname)
	name = strings.Trim(name[:min(len(name), maxHostname)], "-.")
	if name == "" {
		name = "firn"
	}
	if cache != "" {
		name += "-" + cache
	}
	return name + "-1"
}

// create makes the file at path with all of its contents, durably, or not at all.
// It is written beside its place and then linked there: a link, unlike a rename, never replaces what is there,
// and no process ever sees half a key.
func create(path, contents string, mode fs.FileMode) error {
	dir := filepath.Dir(path)
	temp, err := stage(dir, contents, mode)
	if err == nil {
		err = errors.Join(os.Link(temp, path), os.Remove(temp), syncDir(dir))
	}
	if err != nil {
		return &fs.PathError{Op: "create", Path: path, Err: reason(err)}
	}
	return nil
}

// stage writes a temporary file in dir, durably, and returns its path.
func stage(dir, contents string, mode fs.FileMode) (path string, err error) {
	f, err := os.CreateTemp(dir, ".firn-key-")
	if err != nil {
		return "", err
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if err := f.Chmod(mode); err != nil {
		return "", err
	}
	if _, err := f.WriteString(contents); err != nil {
		return "", err
	}
	return f.Name(), f.Sync()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// errNoLinks: the file system cannot do what never overwrites.
var errNoLinks = errors.New("the file system has no hard links")

// reason drops the operation and the name of the temporary file, which tell a person nothing.
func reason(err error) error {
	var link *os.LinkError
	var path *fs.PathError
	switch {
	case errors.As(err, &link) && (errors.Is(err, syscall.EPERM) || errors.Is(err, errors.ErrUnsupported)):
		return errNoLinks // link(2), EPERM: a file was made in this directory just now, so it is not forbidden
	case errors.As(err, &link):
		return link.Err
	case errors.As(err, &path):
		return path.Err
	}
	return err
}

// readAdvice and writeAdvice are what a person can do about err.
func readAdvice(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "; make one with `firn key generate NAME SECRET PUBLIC`"
	case errors.Is(err, fs.ErrPermission):
		return "; give the file to the user that firn runs as"
	}
	return ""
}

func writeAdvice(err error) string {
	switch {
	case errors.Is(err, fs.ErrExist):
		return "; a key is never overwritten: choose another path, or move that file away"
	case errors.Is(err, fs.ErrNotExist):
		return "; make its directory first"
	case errors.Is(err, fs.ErrPermission):
		return "; choose a directory that you may write to"
	case errors.Is(err, errNoLinks):
		return "; choose a directory on another one"
	}
	return ""
}
