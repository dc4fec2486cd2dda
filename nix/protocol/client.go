package protocol

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"firn/nix"
)

// clientVersion is what the client end speaks: without features, of which none is of use to it.
const clientVersion = 1<<8 | 37

// An AnswerError is what the other end says against a question.
type AnswerError struct{ Message string }

func (e *AnswerError) Error() string { return e.Message }

// A WorkerClient asks a Nix daemon, for one goroutine at a time. After an error that is no [AnswerError] it is of no more use.
type WorkerClient struct {
	*wire
	dir     nix.StoreDir
	version uint64
}

// DialWorker begins a conversation on a connection, which the caller closes.
func DialWorker(conn io.ReadWriter, dir nix.StoreDir) (*WorkerClient, error) {
	c := &WorkerClient{wire: newWire(conn), dir: dir}
	if err := c.handshake(); err != nil {
		return nil, fmt.Errorf("greet Nix daemon: %w", err)
	}
	return c, nil
}

func (c *WorkerClient) handshake() error {
	c.putUint(workerMagicClient)
	c.flush()
	if magic := c.uint(); c.err == nil && magic != workerMagicServer {
		return fmt.Errorf("it does not speak the worker protocol: it answers with %#x", magic)
	}
	theirs := c.uint()
	if c.err == nil && (theirs>>8 != clientVersion>>8 || theirs < workerOldest) {
		return fmt.Errorf("it speaks version %d.%d of the worker protocol, not 1.21 or later", theirs>>8, theirs&0xff)
	}
	c.version = min(theirs, clientVersion)
	c.putUint(clientVersion)
	c.putUint(0) // no CPU affinity
	c.putUint(0) // reserve no space
	if c.has(33) {
		c.string(maxPath) // the version of Nix
	}
	if c.has(35) {
		c.skip(1) // whether it trusts us
	}
	return c.finish()
}

func (c *WorkerClient) has(minor uint64) bool { return c.version >= 1<<8|minor }

// finish reads what the daemon has to say until its result follows, and drops it unless it is an error.
func (c *WorkerClient) finish() error {
	c.flush()
	for c.err == nil {
		switch tag := c.uint(); {
		case c.err != nil:
		case tag == stderrLast:
			return nil
		case tag == stderrError:
			return c.readError()
		case tag == stderrNext:
			c.string(maxText)
		case tag == stderrStartActivity:
			c.skip(3) // ID, level, type
			c.string(maxText)
			c.skipFields()
			c.skip(1) // parent
		case tag == stderrStopActivity:
			c.skip(1)
		case tag == stderrResult:
			c.skip(2)
			c.skipFields()
		default:
			c.malformed("the daemon says %#x", tag)
		}
	}
	return cutOff(c.err)
}

// skipFields reads the fields of an activity: integers and strings.
func (c *WorkerClient) skipFields() {
	for range c.count(maxStrings, "fields") {
		switch kind := c.uint(); {
		case c.err != nil:
			return
		case kind == 0:
			c.skip(1)
		case kind == 1:
			c.string(maxText)
		default:
			c.malformed("a field of the kind %d", kind)
		}
	}
}

func (c *WorkerClient) readError() error {
	var message string
	if c.has(26) {
		c.string(maxPath)
		c.skip(1)
		c.string(maxPath)
		message = c.string(maxText)
		c.skip(1) // position
		for range c.count(maxStrings, "traces") {
			c.skip(1)
			if c.string(maxText); c.err != nil {
				break
			}
		}
	} else {
		message = c.string(maxText)
		c.skip(1)
	}
	if c.err != nil {
		return cutOff(c.err)
	}
	return &AnswerError{strings.TrimSpace(message)}
}

// ValidPaths returns which of the paths are there.
func (c *WorkerClient) ValidPaths(paths []nix.StorePath) ([]nix.StorePath, error) {
	c.putUint(opQueryValidPaths)
	c.putPaths(paths)
	if c.has(27) {
		c.putBool(false) // substitute nothing
	}
	if err := c.finish(); err != nil {
		return nil, fmt.Errorf("ask Nix daemon for paths: %w", err)
	}
	valid := c.paths(c.dir)
	return valid, c.err
}

// PathFromHash returns the path with a path hash. ErrNotFound if there is none.
func (c *WorkerClient) PathFromHash(hash nix.PathHash) (nix.StorePath, error) {
	c.putUint(opQueryPathFromHashPart)
	c.putString(hash.String())
	if err := c.finish(); err != nil {
		return nix.StorePath{}, fmt.Errorf("ask Nix daemon for %s: %w", hash, err)
	}
	path := c.optionalPath(c.dir)
	if c.err == nil && path.IsZero() {
		return path, ErrNotFound
	}
	return path, cutOff(c.err)
}

// PathInfo returns what is known of a path. ErrNotFound if it is not there.
func (c *WorkerClient) PathInfo(path nix.StorePath) (*nix.PathInfo, error) {
	r, err := c.Registration(path)
	if err != nil {
		return nil, err
	}
	info, err := r.parse(c.dir, path)
	if err != nil {
		return nil, fmt.Errorf("the Nix daemon says of %s: %w", path, err)
	}
	return info, nil
}

// Registration returns what is known of a path, as the daemon says it. ErrNotFound if it is not there.
func (c *WorkerClient) Registration(path nix.StorePath) (*Registration, error) {
	c.putUint(opQueryPathInfo)
	c.putPath(path)
	if err := c.finish(); err != nil {
		return nil, fmt.Errorf("ask Nix daemon for %s: %w", path, err)
	}
	if valid := c.bool(); c.err == nil && !valid {
		return nil, ErrNotFound
	}
	r := c.registration()
	return r, cutOff(c.err)
}

// AddTempRoot keeps a path from being collected as garbage for as long as the connection is open.
func (c *WorkerClient) AddTempRoot(path nix.StorePath) error {
	c.putUint(opAddTempRoot)
	c.putPath(path)
	if err := c.finish(); err != nil {
		return fmt.Errorf("have Nix daemon keep %s: %w", path, err)
	}
	c.skip(1)
	return cutOff(c.err)
}

// AddIndirectRoot has the daemon take a symbolic link, wherever it lies, for a root of the garbage
// collector: what it leads to is kept for as long as the link is there. link is an absolute path.
func (c *WorkerClient) AddIndirectRoot(link string) error {
	c.putUint(opAddIndirectRoot)
	c.putString(link)
	if err := c.finish(); err != nil {
		return fmt.Errorf("have Nix daemon take %s for a root: %w", link, err)
	}
	c.skip(1)
	return cutOff(c.err)
}

// FindsRoot reports whether the garbage collector of the daemon finds a root that is a symbolic
// link at this path. The daemon looks for all roots, also those of running processes, so it may
// take a second.
func (c *WorkerClient) FindsRoot(link string) (found bool, err error) {
	c.putUint(opFindRoots)
	if err := c.finish(); err != nil {
		return false, fmt.Errorf("ask Nix daemon for roots: %w", err)
	}
	for range c.count(maxRoots, "roots") {
		root := c.string(maxPath)
		c.skipString(maxPath) // what it keeps
		if c.err != nil {
			return false, cutOff(c.err)
		}
		found = found || root == link
	}
	return found, cutOff(c.err)
}

// WriteNAR copies the NAR of a path to w.
func (c *WorkerClient) WriteNAR(w io.Writer, info *nix.PathInfo) error {
	c.putUint(opNarFromPath)
	c.putPath(info.Path)
	err := c.finish()
	if err == nil {
		_, err = io.Copy(w, exactly(c.r, info.NARSize))
	}
	if err != nil {
		return fmt.Errorf("get NAR of %s from Nix daemon: %w", info.Path, err)
	}
	return nil
}

// errTooOld is for daemons that take NARs in another way.
var errTooOld = errors.New("this takes Nix 2.4 or later")

// AddNAR adds a path. The daemon checks its signatures by its own settings. NAR is read to its end, unless the daemon objects before.
func (c *WorkerClient) AddNAR(info *nix.PathInfo, nar io.Reader) error {
	if err := c.addNAR(info, nar); err != nil {
		return fmt.Errorf("add %s to Nix daemon: %w", info.Path, err)
	}
	return nil
}

func (c *WorkerClient) addNAR(info *nix.PathInfo, nar io.Reader) error {
	if !c.has(23) {
		return errTooOld
	}
	c.putUint(opAddToStoreNar)
	c.putPath(info.Path)
	c.putInfo(info)
	c.putBool(false) // do not repair
	c.putBool(false) // check signatures
	buf := make([]byte, bufferSize)
	for c.err == nil {
		n, err := nar.Read(buf)
		if n > 0 {
			c.putUint(uint64(n))
			if c.err == nil {
				_, c.err = c.w.Write(buf[:n])
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			c.fail(err) // half of a NAR cannot be taken back
			return err
		}
	}
	c.putUint(0)
	return c.finish()
}

// AddSignatures adds signatures to a path.
func (c *WorkerClient) AddSignatures(path nix.StorePath, sigs []nix.Signature) error {
	c.putUint(opAddSignatures)
	c.putPath(path)
	c.putSignatures(sigs)
	if err := c.finish(); err != nil {
		return fmt.Errorf("add signatures of %s to Nix daemon: %w", path, err)
	}
	c.skip(1)
	return c.err
}
