package localstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"firn/nix"
)

// The way in which Nix from 2.5 on keeps a path from being collected (addTempRoot in its gc.cc):
//
//   - A process has a file in <state>/temproots, and holds a flock on it for its life. The collector reads the
//     files that it cannot lock exclusively: full paths, each followed by a zero byte. One that it can is of a dead process;
//     it removes the file and writes "d" into it, for a process that was about to lock it. Nix's own lock is exclusive;
//     a shared one does the same, and does not block the collectors of Nix before 2.5, which lock the file as readers.
//   - Before a path is appended, a shared flock on <state>/gc.lock is tried. If it is had, no collection is running, and
//     none begins before the path is in the file. If not, the collector is told over <state>/gc-socket/socket: the path
//     and a newline; it answers "1" when it will not delete the path any more, or has deleted it.
const (
	// Nix names the files by process ids and parses the names as 32-bit integers, so ours are above all process ids:
	// Linux has up to 2^22 (PID_MAX_LIMIT), others far fewer.
	rootsNameFirst = 1<<22 + 1
	rootsNameLast  = 1<<31 - 1

	// collectorPause is how long to wait for a collector that has the lock but does not listen yet, or has just
	// ended; Nix waits as long.
	collectorPause = 100 * time.Millisecond

	// collectorTimeout bounds that, and the wait for an answer: the collector gives it after each
	// path that it is deleting.
	collectorTimeout = 30 * time.Second
)

// rootsFile is a file of temporary roots. Its methods are for one goroutine at a time.
type rootsFile struct {
	stateDir  string
	file      *os.File
	lock      *os.File // gc.lock
	collector net.Conn // nil: none is running that we know of
}

// newRootsFile makes and locks a file of temporary roots.
func newRootsFile(stateDir string) (*rootsFile, error) {
	lock, err := os.OpenFile(filepath.Join(stateDir, "gc.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the garbage collector's lock: %w", err)
	}
	for {
		name := rootsNameFirst + rand.IntN(rootsNameLast-rootsNameFirst)
		path := filepath.Join(stateDir, "temproots", strconv.Itoa(name))
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			lock.Close()
			return nil, fmt.Errorf("make a file of temporary roots: %w", err)
		}
		// The collector may lock the file before we do; then it has removed it and left a byte.
		err = flock(file, syscall.LOCK_SH)
		info, serr := file.Stat()
		if err := errors.Join(err, serr); err != nil {
			file.Close()
			lock.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if info.Size() == 0 {
			return &rootsFile{stateDir: stateDir, file: file, lock: lock}, nil
		}
		file.Close()
	}
}

// add records a root. When it returns nil, the path is not collected any more; it may have been just before.
func (r *rootsFile) add(ctx context.Context, path nix.StorePath) error {
	ctx, cancel := context.WithTimeout(ctx, collectorTimeout)
	defer cancel()
	for {
		err := flock(r.lock, syscall.LOCK_SH|syscall.LOCK_NB)
		if err == nil {
			err = r.append(path)
			return errors.Join(err, flock(r.lock, syscall.LOCK_UN))
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("lock %s: %w", r.lock.Name(), err)
		}
		if err = r.tellCollector(ctx, path); err == nil {
			return r.append(path)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("tell the garbage collector of %v: %w", path, err)
		case <-time.After(collectorPause):
		}
	}
}

// tellCollector tells the collector that is running of a root. After an error it may be tried again.
func (r *rootsFile) tellCollector(ctx context.Context, path nix.StorePath) (err error) {
	if r.collector == nil {
		var dialer net.Dialer
		if r.collector, err = dialer.DialContext(ctx, "unix", filepath.Join(r.stateDir, "gc-socket/socket")); err != nil {
			r.collector = nil
			return err
		}
	}
	conn := r.collector
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() || err != nil {
			conn.Close()
			r.collector = nil
		}
	}()
	if _, err := io.WriteString(conn, path.String()+"\n"); err != nil {
		return err
	}
	answer, err := bufio.NewReaderSize(conn, 16).ReadByte()
	if err == nil && answer != '1' {
		err = fmt.Errorf("it answered %q", answer)
	}
	return err
}

func (r *rootsFile) append(path nix.StorePath) error {
	_, err := r.file.WriteString(path.String() + "\x00")
	return err
}

// clear forgets all roots.
func (r *rootsFile) clear() error { return r.file.Truncate(0) }

// close forgets all roots and removes the file.
func (r *rootsFile) close() {
	os.Remove(r.file.Name())
	r.file.Close()
	r.lock.Close()
	if r.collector != nil {
		r.collector.Close()
	}
}

// sweepRoots removes files of temporary roots of processes of ours that have died.
func sweepRoots(stateDir string) error {
	dir := filepath.Join(stateDir, "temproots")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name, err := strconv.ParseInt(entry.Name(), 10, 32)
		if err != nil || name < rootsNameFirst {
			continue // of Nix, which looks after its own
		}
		file, err := os.OpenFile(filepath.Join(dir, entry.Name()), os.O_RDWR, 0)
		if err != nil {
			continue
		}
		if flock(file, syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			os.Remove(file.Name())
			io.WriteString(file, "d")
		}
		file.Close()
	}
	return nil
}

// flock locks or unlocks a file; it does so again when a signal came in between.
func flock(f *os.File, how int) error {
	for {
		err := syscall.Flock(int(f.Fd()), how)
		if err != syscall.EINTR {
			return err
		}
	}
}
