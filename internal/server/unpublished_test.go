package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/nix"
)

// TestUnpublished: until somebody has answered for a NAR with a narinfo, only those get it who could do that.
func TestUnpublished(t *testing.T) {
	for name, in := range map[string]string{"public": "main", "private": "team"} {
		t.Run(name, func(t *testing.T) {
			p := newPushTester(t)
			path := cachetest.NewPath(t, nix.DefaultStoreDir, "hello.txt", "another\n")
			url := "/" + in + "/" + cachetest.URL(path.NAR, "")
			others := map[string]int{"": 404, "no-such-token": 404, "push-main": 404, "push-team": 404, "read-team": 404}
			if in == "team" {
				others[""], others["no-such-token"], others["push-main"] = 401, 401, 403
			}
			want := func(when string, others map[string]int) {
				t.Helper()
				for token, status := range others {
					p.wantGet(status, url, as(token))
				}
				p.wantGet(200, url, as("all"))
				delete(others, "push-"+in)
				p.wantGet(200, url, as("push-"+in))
			}
			nobody := p.answers(url)
			p.wantPut(201, url, string(path.NAR), as("push-"+in))
			delete(others, "push-"+in)
			want("before", others)
			if got := p.answers(url); got != nobody {
				t.Errorf("that it is there shows:\n%s\nand where it is not:\n%s", got, nobody)
			}
			if resp, _ := p.do("GET", url, as("push-"+in)); resp.Header.Get("Cache-Control") != "private, max-age=31536000, immutable" || resp.Header.Get("Vary") != "Authorization" {
				t.Errorf("proxies may keep it: %v", resp.Header)
			}
			p.wantPut(201, "/"+in+"/"+path.Info.Path.Hash().String()+".narinfo", text(narinfo(path, path.NAR, nix.None, "")), as("push-"+in))
			for token := range others {
				if others[token] == http.StatusNotFound {
					others[token] = http.StatusOK
				}
			}
			want("after", others)
		})
	}
}

// counter is an Authenticator that lets an address fail a few times.
type counter struct {
	Authenticator
	failed int
}

func (c *counter) Authenticate(ctx context.Context, authorization string, remote netip.Addr) (cache.Principal, error) {
	who, err := c.Authenticator.Authenticate(ctx, authorization, remote)
	if errors.Is(err, cache.ErrUnauthenticated) {
		if c.failed++; c.failed > 3 {
			return nil, &cache.TooOftenError{Wait: time.Second}
		}
	}
	return who, err
}

// TestGuesses: who asks again and again with wrong tokens is told the same of what is there and of
// what is not, and as many failures are counted.
func TestGuesses(t *testing.T) {
	p := newPushTester(t)
	path := cachetest.NewPath(t, nix.DefaultStoreDir, "hello.txt", "another\n")
	absent := cachetest.NewPath(t, nix.DefaultStoreDir, "hello.txt", "nobody has sent this\n")
	p.wantPut(201, "/"+cachetest.URL(path.NAR, ""), string(path.NAR))
	for _, method := range []string{"GET", "HEAD"} {
		var told [2][]string
		var failed [2]int
		for i, url := range []string{cachetest.URL(path.NAR, ""), cachetest.URL(absent.NAR, "")} {
			count := &counter{Authenticator: tokens}
			p.server.access = count
			for range 10 {
				resp, body := p.do(method, "/"+url, as("no-such-token"))
				resp.Header.Del("Date")
				told[i] = append(told[i], fmt.Sprint(resp.StatusCode, resp.Header, string(body)))
				if resp.StatusCode != http.StatusNotFound {
					t.Errorf("%s is answered with %s", url, resp.Status)
				}
			}
			failed[i] = count.failed
		}
		if diff := cmp.Diff(told[1], told[0]); diff != "" {
			t.Errorf("that it is there shows (-absent +there):\n%s", diff)
		}
		if failed[0] != failed[1] {
			t.Errorf("%d failures are counted where it is there, and %d where it is not", failed[0], failed[1])
		}
	}
}

// answers returns all that those are told of a NAR who may not push.
func (p *pushTester) answers(url string) (all string) {
	for _, token := range []string{"", "no-such-token", "read-team"} {
		resp, body := p.do("GET", url, as(token))
		resp.Header.Del("Date")
		all += resp.Status + " " + string(body)
		for _, key := range []string{"Cache-Control", "Vary", "ETag", "Content-Type", "WWW-Authenticate"} {
			all += key + ": " + resp.Header.Get(key) + "\n"
		}
	}
	return all
}

// renewed is a sink that notes what is renewed.
type renewed struct {
	*cachetest.Memory
	urls *[]string
}

func (r renewed) Renew(ctx context.Context, url string) error {
	*r.urls = append(*r.urls, url)
	return r.Memory.Renew(ctx, url)
}

// TestHeadRenews: who is told by a HEAD that a NAR is there, and therefore does not send it, finds it there with his narinfo.
func TestHeadRenews(t *testing.T) {
	p := newPushTester(t)
	var urls []string
	sink := renewed{cachetest.NewMemory(), &urls}
	c, err := cache.New([]cache.Source{sink}, cache.Options{Sink: cache.SinkOf(sink)})
	if err != nil {
		t.Fatal(err)
	}
	p.server.caches = cache.Only(c)
	path := cachetest.NewPath(t, nix.DefaultStoreDir, "hello.txt", "another\n")
	url := cachetest.URL(path.NAR, "")
	p.wantPut(201, "/"+url, string(path.NAR))
	for _, call := range []struct {
		method, token string
		status, want  int
	}{
		{"HEAD", "", 404, 0}, {"HEAD", "read-team", 404, 0}, {"GET", "push-main", 200, 0}, {"HEAD", "push-main", 200, 1}, {"HEAD", "push-main", 200, 2},
	} {
		resp, _ := p.do(call.method, "/"+url, as(call.token))
		if resp.StatusCode != call.status || len(urls) != call.want {
			t.Errorf("%s as %q: %s, renewed %q, want %d, %d times", call.method, call.token, resp.Status, urls, call.status, call.want)
		}
	}
	p.wantPut(201, "/"+path.Info.Path.Hash().String()+".narinfo", text(narinfo(path, path.NAR, nix.None, "")))
	if resp, _ := p.do("HEAD", "/"+url, as("push-main")); resp.StatusCode != 200 || len(urls) != 2 {
		t.Errorf("what is published: %s, renewed %q", resp.Status, urls)
	}
}
