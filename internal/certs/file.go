package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// maxFile bounds a file, in bytes. A chain of certificates has some 10 KB.
const maxFile = 1 << 20

// A Pair names the files of a certificate, with those between it and its authority, and of its key. They may be the same file.
type Pair struct{ Cert, Key string }

// file is a certificate in files.
type file struct {
	pair   Pair
	seen   [2]stamp // of the files, when they were last read
	cert   *tls.Certificate
	failed string // what was last wrong with them, so that it is said once
}

// stamp is what a file that changes changes.
type stamp struct {
	size     int64
	modified time.Time
	info     os.FileInfo
}

func (s stamp) is(t stamp) bool {
	return s.info != nil && t.info != nil && s.size == t.size && s.modified.Equal(t.modified) && os.SameFile(s.info, t.info)
}

// read reads the files, if they are other ones than when they were last read.
func (f *file) read() (changed bool, err error) {
	var now [2]stamp
	for i, path := range []string{f.pair.Cert, f.pair.Key} {
		info, err := os.Stat(path)
		if err != nil {
			return false, fmt.Errorf("read certificate: %w", err)
		}
		now[i] = stamp{info.Size(), info.ModTime(), info}
	}
	if now[0].is(f.seen[0]) && now[1].is(f.seen[1]) {
		return false, nil
	}
	// One is replaced before the other: then they do not fit, and are read again as long as they do not.
	certPEM, err := readFile(f.pair.Cert)
	keyPEM, err2 := readFile(f.pair.Key)
	if err := errors.Join(err, err2); err != nil {
		return false, fmt.Errorf("read certificate: %w", err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return false, fmt.Errorf("read certificate %s with key %s: %w", f.pair.Cert, f.pair.Key, err)
	}
	f.cert, f.seen = &cert, now
	return true, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("read %s: longer than %d bytes", path, maxFile)
	}
	return text, err
}

// Files are certificates that have been read from files.
type Files struct{ files []*file }

// Read reads all certificates, or none.
func Read(pairs []Pair) (*Files, error) {
	f := &Files{}
	for _, p := range pairs {
		one := &file{pair: p}
		if _, err := one.read(); err != nil {
			return nil, err
		}
		f.files = append(f.files, one)
	}
	return f, nil
}

// Use has these certificates in place of those in files that there were.
func (c *Certs) Use(f *Files) {
	c.reload.Lock()
	defer c.reload.Unlock()
	c.files = f.files
	pairs := make([]*tls.Certificate, len(c.files))
	for i, one := range c.files {
		pairs[i] = one.cert
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pairs = pairs
}

// followInterval is the time between two looks at the files of certificates.
const followInterval = 5 * time.Second

// Follow reads the files that have changed, until ctx ends. It waits for no authority.
func (c *Certs) Follow(ctx context.Context) {
	ticker := time.NewTicker(followInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			c.Reload()
		case <-ctx.Done():
			return
		}
	}
}

// Reload reads the files that have changed. What cannot be read is logged, and leaves what was read before.
func (c *Certs) Reload() {
	c.reload.Lock()
	defer c.reload.Unlock()
	pairs := make([]*tls.Certificate, len(c.files))
	for i, f := range c.files {
		changed, err := f.read()
		switch {
		case changed:
			f.failed = ""
			c.log.Info("read a certificate", "file", f.pair.Cert, "until", f.cert.Leaf.NotAfter)
		case err != nil && err.Error() != f.failed:
			f.failed = err.Error()
			c.log.Error("a certificate could not be read; the last one is used", "error", err)
		}
		pairs[i] = f.cert
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pairs = pairs
}
