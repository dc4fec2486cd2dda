package server

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/nix"
)

// forgetful is a sink that forgets what is published, and has a path with many references under
// every hash that ends in 0xff.
type forgetful struct {
	*cachetest.Memory
	refs []nix.StorePath
}

func (f *forgetful) Publish(_ context.Context, info *nix.PathInfo, _ cache.Basis, _ ...nix.StorePath) (*nix.PathInfo, error) {
	return info, nil
}

func (f *forgetful) PathInfo(ctx context.Context, hash nix.PathHash) (*nix.PathInfo, error) {
	if hash[19] != 0xff { // as no reference begins
		return f.Memory.PathInfo(ctx, hash)
	}
	path, err := nix.DefaultStoreDir.ParseBase(hash.String() + "-large")
	if err != nil {
		return nil, err
	}
	return &nix.PathInfo{Path: path, NARHash: nix.SHA256Sum([32]byte{}), NARSize: 96, References: f.refs}, nil
}

// newForgetful makes a server with a forgetful sink, with large narinfos of some size.
func newForgetful(t *testing.T, size int) *pushTester {
	t.Helper()
	p := &pushTester{tester: &tester{T: t, path: cachetest.NewPath(t, nix.DefaultStoreDir, "hello.txt", "hello\n")}}
	p.source = cachetest.NewMemory()
	sink := &forgetful{p.source, cachetest.LongReferences(size / cachetest.ReferenceSize)}
	var err error
	if p.cache, err = cache.New([]cache.Source{sink}, cache.Options{Sink: cache.SinkOf(sink), AllowMissingReferences: true}); err != nil {
		t.Fatal(err)
	}
	owners := guard{}
	for i := range 16 {
		owners[fmt.Sprint("token-", i)] = holder{fmt.Sprint("owner-", i), map[string]cache.Rights{"main": cache.Read | cache.Push}}
	}
	owners["push-main"] = tokens["push-main"]
	p.server = newServer(shelf{map[string]*cache.Cache{"main": p.cache}, nil}, Options{Access: owners})
	p.listen("127.0.0.1:0")
	return p
}

// Many large narinfos that are pushed at once, by one and by many, take bounded memory in all, and
// small ones pass them.
func TestLargeNARInfosArePushed(t *testing.T) {
	const size, many = 8 << 20, 12
	p := newForgetful(t, size)
	n := narinfo(p.path, p.path.NAR, nix.None, "")
	n.CA = nix.ContentAddress{}
	p.wantPut(201, "/"+n.URL, string(p.path.NAR))
	small := text(n)
	n.References = cachetest.LongReferences(size / cachetest.ReferenceSize)
	large := text(n)
	for _, owners := range []int{1, 16} {
		t.Run(fmt.Sprint(owners, " owners"), func(t *testing.T) {
			put := func(body, token string) {
				t.Helper()
				r, err := http.NewRequest("PUT", p.url+"/"+helloHash+".narinfo", struct{ io.Reader }{strings.NewReader(body)})
				if err != nil {
					t.Error(err)
					return
				}
				r.ContentLength = int64(len(body))
				_, value, _ := strings.Cut(as(token), ": ")
				r.Header.Set("Authorization", value)
				resp, err := p.client.Do(r)
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if said, _ := io.ReadAll(resp.Body); resp.StatusCode != 201 {
					t.Errorf("PUT of %d bytes: %s: %s", len(body), resp.Status, said)
				}
			}
			live := cachetest.HeapWhile(func() {
				var group sync.WaitGroup
				for i := range many {
					group.Go(func() { put(large, fmt.Sprint("token-", i%owners)) })
				}
				for range 5 {
					put(small, "token-0")
				}
				group.Wait()
			})
			t.Logf("%d MiB were in memory", live>>20)
			if most := int64(250 << 20); live > most {
				t.Errorf("%d MiB were in memory, more than %d", live>>20, most>>20)
			}
		})
	}
}

// Clients that read large narinfos slowly hold bounded memory in all, and others are served at the
// same time: small ones, and large ones too.
func TestLargeNARInfosAreReadSlowly(t *testing.T) {
	const size, many = 8 << 20, 32
	p := newForgetful(t, size)
	p.wantPut(201, "/"+cachetest.URL(p.path.NAR, ""), string(p.path.NAR))
	address := strings.TrimPrefix(p.url, "http://")
	name := func(i int) string { return "/" + nix.PathHash{2: byte(i), 19: 0xff}.String() + ".narinfo" }
	get := func(from, target, header string) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		conn, err := d.Dial("tcp", address)
		if err == nil {
			_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n%sConnection: close\r\n\r\n", target, header)
		}
		if err != nil {
			t.Error(err)
			return nil
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	live := cachetest.HeapWhile(func() {
		var slow sync.WaitGroup
		defer slow.Wait()
		for i := range many {
			header := "" // the short way
			if i%2 == 1 {
				header = "X-Long: way\r\n"
			}
			if i%4 == 3 {
				header += "Accept: application/json\r\n"
			}
			slow.Go(func() {
				if conn := get("127.0.0.1", name(i), header); conn != nil {
					conn.Read(make([]byte, 1)) // begun, or refused
				}
			})
		}
		begun := time.Now()
		conn := get("127.0.0.2", name(100), "")
		if got, err := io.ReadAll(conn); err != nil || len(got) < size-1000 {
			t.Errorf("a good client gets %d bytes, %v: %.100q", len(got), err, got)
		}
		p.wantGet(404, "/"+helloHash+".narinfo")
		t.Logf("the good client was served in %v", time.Since(begun))
	})
	t.Logf("%d MiB were in memory", live>>20)
	if most := int64(250 << 20); live > most {
		t.Errorf("%d MiB were in memory, more than %d", live>>20, most>>20)
	}
}
