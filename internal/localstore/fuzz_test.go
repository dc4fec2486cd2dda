package localstore

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"strings"
	"testing"

	"firn/internal/cache"
	"firn/nix"
)

// sink is the connection of a daemon that has already sent all that it will.
type sink struct{ net.Conn }

func (sink) Write(p []byte) (int, error) { return len(p), nil }

// Whatever the daemon sends, a conversation ends, in a path info that is valid or in an error, and within memory.
func FuzzDaemon(f *testing.F) {
	var c daemonConn
	for _, n := range []uint64{magicServer, 1<<8 | 37} {
		c.putUint(n)
	}
	c.putString("2.18.0")
	for _, n := range []uint64{1, stderrLast, stderrNext} {
		c.putUint(n)
	}
	c.putString("a message")
	c.putUint(stderrStartActivity)
	for range 3 {
		c.putUint(1)
	}
	c.putString("an activity")
	for _, n := range []uint64{1, 0, 7, 0} {
		c.putUint(n)
	}
	c.putUint(stderrLast)
	path := "/nix/store/" + strings.Repeat("0", 32) + "-x"
	c.putString(path)
	c.putUint(stderrLast)
	c.putUint(1)
	c.putString("")
	c.putString(strings.Repeat("0", 64))
	c.putUint(1)
	c.putString(path)
	for _, n := range []uint64{1700000000, 120, 1, 0} {
		c.putUint(n)
	}
	c.putString("")
	f.Add(c.out)
	f.Fuzz(func(t *testing.T, answer []byte) {
		c := &daemonConn{Conn: sink{}, r: bufio.NewReader(bytes.NewReader(answer))}
		if err := c.handshake(); err != nil {
			return
		}
		path, err := c.queryPathFromHashPart(nix.PathHash{})
		if err != nil {
			return
		}
		info, err := c.queryPathInfo(nix.DefaultStoreDir, path)
		checkInfo(t, info, err)
		_ = c.addTempRoot(nix.StorePath{})
	})
}

// Whatever is in the columns of a row, it is a path info that is valid, or not found.
func FuzzRow(f *testing.F) {
	path := "/nix/store/" + strings.Repeat("0", 32) + "-x"
	f.Add(path, "sha256:"+strings.Repeat("0", 64), int64(1700000000), path+".drv", int64(120),
		"test-1:"+strings.Repeat("A", 86)+"==", "fixed:r:sha256:"+strings.Repeat("0", 52), path+" "+path)
	f.Fuzz(func(t *testing.T, path, hash string, registered int64, deriver string, size int64, sigs, ca, refs string) {
		r := row{path: path, hash: hash, registered: registered, deriver: deriver, narSize: size,
			signatures: strings.Fields(sigs), ca: ca, references: strings.Fields(refs)}
		info, err := r.pathInfo(nix.DefaultStoreDir)
		checkInfo(t, info, err)
	})
}

func checkInfo(t *testing.T, info *nix.PathInfo, err error) {
	if err != nil {
		var malformed *rowError
		if errors.As(err, &malformed) && !errors.Is(err, cache.ErrNotFound) {
			t.Errorf("%v is not ErrNotFound", err)
		}
		return
	}
	if info == nil {
		return // it has gone meanwhile
	}
	narinfo := nix.NARInfo{PathInfo: *info, URL: "nar/x.nar", Compression: nix.None}
	text := narinfo.AppendText(nil)
	parsed, err := nix.ParseNARInfo(nix.DefaultStoreDir, text)
	if err != nil {
		t.Fatalf("what it says cannot be read as a narinfo: %v\n%s", err, text)
	}
	if again := parsed.AppendText(nil); !bytes.Equal(again, text) {
		t.Errorf("the narinfo\n%s is read as\n%s", text, again)
	}
}
