package zstdcache

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"firn/nix"
)

// making is a file of a dir that is not whole yet. One goroutine writes it, others may read what is written at the same time.
// After keep or drop it is written no more, and can be read until it is closed.
type making struct {
	dir  *dir
	name string
	file *os.File
	size int64
}

// errFull is errNotKept without having tried.
var errFull = fmt.Errorf("%w: the file system was full a moment ago", errNotKept)

// begin makes a new file. errNotKept if that cannot be.
func (d *dir) begin() (*making, error) {
	d.mu.Lock()
	full := d.now().Before(d.full)
	d.made++
	m := &making{dir: d, name: makingName + strconv.Itoa(d.made)}
	d.mu.Unlock()
	if full {
		return nil, errFull
	}
	var err error
	if m.file, err = d.root.OpenFile(m.name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644); err != nil {
		return nil, fmt.Errorf("%w: %w", errNotKept, err)
	}
	return m, nil
}

// write adds p, all of it or none. Older files go to make room. errNotKept if it cannot be written.
func (m *making) write(p []byte) error {
	d := m.dir
	n := onDisk(m.size+int64(len(p))) - onDisk(m.size)
	d.mu.Lock()
	if d.making+n > d.limit/2 { // the files being made are not to push out all the others
		d.mu.Unlock()
		return fmt.Errorf("%w: it is too large", errNotKept)
	}
	d.making += n
	d.mu.Unlock()

	err := d.evict(func() bool { return d.files.Cost()+d.making > d.limit })
	if err == nil {
		_, err = m.file.WriteAt(p, m.size)
	}
	for errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		if !d.makeRoom(n) {
			break
		}
		_, err = m.file.WriteAt(p, m.size)
	}
	if err != nil {
		d.mu.Lock()
		d.making -= n
		d.mu.Unlock()
		return fmt.Errorf("%w: %w", errNotKept, err)
	}
	m.size += int64(len(p))
	return nil
}

// makeRoom removes files that take n bytes on the disk, which is full. False if there are none.
func (d *dir) makeRoom(n int64) bool {
	d.mu.Lock()
	had := d.files.Cost()
	if had == 0 {
		d.full = d.now().Add(fullFor)
	}
	d.mu.Unlock()
	return had > 0 && d.evict(func() bool { return d.files.Cost() > had-n }) == nil
}

// keep makes it the kept file of a NAR. If that fails, it is dropped.
func (m *making) keep(hash nix.Hash) error {
	d := m.dir
	now := d.now()
	f := &file{hash: hash, size: m.size, used: now, touched: now}

	d.moving.Lock()
	defer d.moving.Unlock()
	if err := d.root.Rename(m.name, d.name(f)); err != nil {
		m.drop()
		return fmt.Errorf("%w: %w", errNotKept, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.making -= onDisk(m.size)
	if old, ok := d.files.Peek(hash); ok { // of a stream that was given up, but already at its end
		d.forget(old)
	}
	d.files.Put(hash, f, f.cost())
	return nil
}

// drop removes it.
func (m *making) drop() {
	d := m.dir
	d.mu.Lock()
	d.making -= onDisk(m.size)
	d.mu.Unlock()
	_ = d.root.Remove(m.name) // else it is removed when the directory is opened again
}
