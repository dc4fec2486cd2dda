//go:build programs

package localstore

import (
	"path/filepath"
	"strings"
	"testing"

	"firn/internal/cache/cachetest"
	"firn/nix"
)

func TestSource(t *testing.T) {
	cachetest.Run(t, func(t *testing.T) cachetest.Fixture {
		n := newNix(t)
		drv := n.path(string(n.storeDir) + "/" + strings.Repeat("1", 32) + "-built.drv")
		s := n.open()
		f := cachetest.Fixture{
			Source: s,
			Logs: map[nix.StorePath][]byte{
				drv: []byte(strings.Repeat("a line of the log\n", 1000)),
			},
			Remove: func(t *testing.T, path nix.StorePath) { n.run("nix-store", "--delete", path.String()) },
		}
		n.write(filepath.Join("log/drvs", drv.Base()[:2], drv.Base()[2:]), string(f.Logs[drv]))
		for _, path := range []nix.StorePath{
			n.addTree("tree", map[string]string{"a": "text", "empty": "", "sub/big": strings.Repeat("0123456789", 1<<16)}),
			n.add("file", "hello\n"),
		} {
			f.Paths = append(f.Paths, n.describe(path))
		}
		return f
	})
}

// describe has Nix tell what it knows of a path.
func (n *nixStore) describe(path nix.StorePath) cachetest.Path {
	n.t.Helper()
	p := cachetest.Path{
		NAR:  []byte(n.run("nix-store", "--dump", path.String())),
		Info: &nix.PathInfo{Path: path},
	}
	var err error
	if p.Info.NARHash, err = nix.ParseHash(n.run("nix-store", "--query", "--hash", path.String())); err != nil {
		n.t.Fatal(err)
	}
	p.Info.NARSize = int64(len(p.NAR))
	for ref := range strings.FieldsSeq(n.run("nix-store", "--query", "--references", path.String())) {
		p.Info.References = append(p.Info.References, n.path(ref))
	}
	// What `nix-store --add` gives as content address is the NAR hash.
	if p.Info.CA, err = nix.ParseContentAddress("fixed:r:" + p.Info.NARHash.String()); err != nil {
		n.t.Fatal(err)
	}
	return p
}
