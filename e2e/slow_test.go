package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"firn/nix"
)

// TestSlowUploads: clients that send at 5 KB a second what takes 128 MiB to decompress do not hold
// up `nix copy`, whether they have one token, one address, or ten of both.
func TestSlowUploads(t *testing.T) {
	t.Parallel()
	root := debianPath(t, smallClosure).String()
	client := debianMachine(t)
	copying := func(t *testing.T, s *server, token, compression string) time.Duration {
		t.Helper()
		m := newMachineWith(t, client.nix, tempDir(t), client.root) // whose Nix remembers nothing of a server
		login(m, token)
		start := time.Now()
		m.run("nix", "copy", "--to", s.url+"?compression="+compression, root)
		return time.Since(start)
	}
	compressions := []string{"xz", "zstd"}

	alone := map[string]time.Duration{}
	for _, compression := range compressions {
		host := newMachine(t, systemNix())
		s := startDepot(host)
		alone[compression] = copying(t, s, newToken(host, "ci", "--push", "main"), compression)
	}
	for name, c := range map[string]struct{ tokens, addresses int }{
		"of one token from one address":    {1, 1},
		"of one token from ten addresses":  {1, 10},
		"of ten tokens from ten addresses": {10, 10},
	} {
		t.Run(name, func(t *testing.T) {
			for _, compression := range compressions {
				host := newMachine(t, systemNix())
				s := startDepot(host)
				token := newToken(host, "ci", "--push", "main")
				slow := startSlowUploads(t, host, s, c.tokens, c.addresses)
				took := copying(t, s, token, compression)
				t.Logf("%s: %.1f s, alone %.1f s", compression, took.Seconds(), alone[compression].Seconds())
				if took > 10*alone[compression]+30*time.Second {
					t.Errorf("nix copy with %s took %s beside slow uploads, and %s alone", compression, took, alone[compression])
				}
				if n := slow.Load(); n != 10 {
					t.Errorf("only %d of ten slow uploads were on their way at the end", n)
				}
			}
		})
	}
}

// startSlowUploads begins ten uploads that go on until the test ends. They come from addresses of
// the loopback network. It returns how many are on their way, and does so when that are all.
func startSlowUploads(t *testing.T, host *machine, s *server, tokens, addresses int) *atomic.Int64 {
	t.Helper()
	dir := tempDir(t)
	contents := make([]byte, 4<<20) // that does not compress
	rand.Read(contents)
	if err := os.WriteFile(filepath.Join(dir, "file"), contents, 0o644); err != nil {
		t.Fatal(err)
	}
	compress := exec.Command("sh", "-c", "nix-store --dump "+filepath.Join(dir, "file")+" | zstd -1 --long=27")
	file, err := compress.Output()
	if err != nil {
		t.Fatal(err)
	}
	url := fmt.Sprintf("%s/nar/%s.nar.zst", s.url, nix.SHA256Sum(sha256.Sum256(file)).Nix32())
	var names []string
	for i := range tokens {
		names = append(names, newToken(host, fmt.Sprintf("slow-%d", i), "--push", "main"))
	}
	sending := new(atomic.Int64)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{}, 10)
	for i := range 10 {
		from := &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i%addresses))}
		client := &http.Client{Transport: &http.Transport{DialContext: (&net.Dialer{LocalAddr: from}).DialContext}}
		body := &trickle{ctx: ctx, r: bytes.NewReader(file)}
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, url, body)
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = int64(len(file))
		req.SetBasicAuth("any", names[i%tokens])
		body.begun = func() { sending.Add(1) }
		go func() {
			defer func() { ended <- struct{}{} }()
			res, err := client.Do(req)
			sending.Add(-1)
			if err == nil {
				text, _ := io.ReadAll(res.Body)
				res.Body.Close()
				t.Errorf("a slow upload was answered: %s: %s", res.Status, text)
			}
		}()
	}
	t.Cleanup(func() {
		cancel()
		for range 10 {
			<-ended
		}
	})
	for deadline := time.Now().Add(30 * time.Second); sending.Load() < 10; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of ten slow uploads have begun", sending.Load())
		}
	}
	time.Sleep(time.Second) // the server reads what has come
	return sending
}

// trickle gives 5 KB a second, the first at once.
type trickle struct {
	ctx   context.Context
	r     io.Reader
	begun func()
}

func (s *trickle) Read(p []byte) (int, error) {
	if s.begun != nil {
		s.begun()
		s.begun = nil
	} else {
		select {
		case <-s.ctx.Done():
			return 0, s.ctx.Err()
		case <-time.After(time.Second):
		}
	}
	return s.r.Read(p[:min(5000, len(p))])
}
