package localstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"firn/internal/cache"
	"firn/nix"
	"firn/nix/protocol"
)

// sent is the connection of a daemon that has already sent all that it will.
type sent struct{ io.Reader }

func (sent) Write(p []byte) (int, error) { return len(p), nil }

// A words is what a daemon sends.
type words struct{ bytes.Buffer }

func (w *words) numbers(all ...uint64) *words {
	for _, n := range all {
		w.Write(binary.LittleEndian.AppendUint64(nil, n))
	}
	return w
}

func (w *words) text(s string) *words {
	w.numbers(uint64(len(s)))
	w.WriteString(s)
	w.Write(make([]byte, -len(s)&7))
	return w
}

// What daemons say, as in worker-protocol.hh of Nix.
const (
	magicServer         = 0x6478696f
	stderrNext          = 0x6f6c6d67
	stderrStartActivity = 0x53545254
	stderrResult        = 0x52534c54
	stderrLast          = 0x616c7473
	stderrError         = 0x63787470
)

// Whatever the daemon sends, a conversation ends, in a path info that is valid or in an error, and within memory.
func FuzzDaemon(f *testing.F) {
	path := "/nix/store/" + strings.Repeat("0", 32) + "-x"
	var w words
	w.numbers(magicServer, 1<<8|37).text("2.18.0").numbers(1, stderrLast)
	w.numbers(stderrNext).text("a message").numbers(stderrStartActivity, 1, 1, 1).text("an activity").numbers(1, 0, 7, 0)
	w.numbers(stderrLast).text(path)
	w.numbers(stderrLast, 1).text("").text(strings.Repeat("0", 64)).numbers(1).text(path).numbers(1700000000, 120, 1, 0).text("")
	f.Add(w.Bytes())
	f.Fuzz(func(t *testing.T, answer []byte) {
		c, err := protocol.DialWorker(sent{bytes.NewReader(answer)}, nix.DefaultStoreDir)
		if err != nil {
			return
		}
		path, err := c.PathFromHash(nix.PathHash{})
		if err != nil {
			return
		}
		info, err := pathInfoOf(c, nix.DefaultStoreDir, path)
		checkInfo(t, info, err)
		_ = c.AddTempRoot(nix.StorePath{})
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
