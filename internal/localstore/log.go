package localstore

import (
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"firn/internal/cache"
	"firn/nix"
)

// maxBzip2 bounds the compressed logs that are open: each takes up to 4 MB of memory for as long as its client takes to read it.
const maxBzip2 = 16

// OpenLog opens the build log of a derivation. A log of a build that is still running
// is given as far as it has got.
//
// Nix has it in one of two layouts, each plain or compressed (getBuildLogExact in its local-fs-store.cc):
//
//	<log>/drvs/<first two characters of hash-name.drv>/<the others>[.bz2]
//	<log>/drvs/<hash-name.drv>[.bz2]
func (s *Store) OpenLog(_ context.Context, drv nix.StorePath) (cache.Log, error) {
	if drv.IsDerivation() && drv.Dir() == s.storeDir {
		base := drv.Base()
		dir := filepath.Join(s.logDir, "drvs")
		for _, path := range []string{filepath.Join(dir, base[:2], base[2:]), filepath.Join(dir, base)} {
			for _, open := range []func(string) (cache.Log, error){openPlainLog, s.openBzip2Log} {
				log, err := open(path)
				if err == nil {
					return log, nil
				}
				if !errors.Is(err, fs.ErrNotExist) {
					return nil, fmt.Errorf("open log of %v: %w: %w", drv, cache.ErrUnavailable, err)
				}
			}
		}
	}
	return nil, fmt.Errorf("open log of %v: %w", drv, cache.ErrNotFound)
}

// openFile opens a regular file.
func openFile(path string) (*os.File, int64, error) {
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	if err != nil {
		return nil, 0, err
	}
	f, err := os.Open(path)
	return f, info.Size(), err
}

// plainLog is the part of a log that there was when it was opened.
type plainLog struct {
	io.LimitedReader
	file *os.File
	size int64
}

func openPlainLog(path string) (cache.Log, error) {
	f, size, err := openFile(path)
	if err != nil {
		return nil, err
	}
	return &plainLog{io.LimitedReader{R: f, N: size}, f, size}, nil
}

func (l *plainLog) Size() (int64, bool) { return l.size, true }
func (l *plainLog) Close() error        { return l.file.Close() }

// bzip2Log is what can be decompressed of a log.
type bzip2Log struct {
	r     io.Reader
	file  *os.File
	place <-chan struct{} // of maxBzip2
}

func (s *Store) openBzip2Log(path string) (cache.Log, error) {
	f, _, err := openFile(path + ".bz2")
	if err != nil {
		return nil, err
	}
	select {
	case s.bzip2 <- struct{}{}:
		return &bzip2Log{bzip2.NewReader(f), f, s.bzip2}, nil
	default:
		f.Close()
		return nil, fmt.Errorf("%d compressed logs are being read", maxBzip2)
	}
}

// Read ends the log where the rest cannot be decompressed, as of a log that is still being written.
func (l *bzip2Log) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	var broken bzip2.StructuralError
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &broken) {
		err = io.EOF
	}
	return n, err
}

func (l *bzip2Log) Size() (int64, bool) { return 0, false }
func (l *bzip2Log) Close() error {
	<-l.place
	return l.file.Close()
}
