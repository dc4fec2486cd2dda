// The crowds are clients in processes of their own, in which the race detector has nothing to see. Their
// addresses, 127.0.0.2 and others, are Linux's.

//go:build programs && !race

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"firn/internal/cache/cachetest"
	"firn/nix"
)

// crowd is the name under which the program of the tests is a crowd: connections from one address
// that take what they can get, and give nothing.
const crowd = "firn-test-crowd"

// manners are what the connections of a crowd do. Each one that ends is made again, for as long as
// the crowd is there.
var manners = map[string]func(c *crowdClient){
	// They send nothing.
	"silent": func(c *crowdClient) { c.hold("") },
	// They send a header that does not end.
	"slow header": func(c *crowdClient) { c.hold("GET /nix-cache-info HTTP/1.1\r\nHost: x\r\nX: ") },
	// They ask for a large NAR, and do not take it.
	"slow reader": func(c *crowdClient) { c.hold("GET " + c.nar + " HTTP/1.1\r\nHost: x\r\n\r\n") },
	// They say that an upload comes, and do not send it; so most of them wait for their turn.
	"waiting": func(c *crowdClient) { c.hold(c.put(".nar")) },
	// The same with narinfos.
	"waiting with a narinfo": func(c *crowdClient) { c.hold(c.put(".narinfo")) },
	// They have no right to send anything.
	"no token": func(c *crowdClient) {
		c.hold("PUT /nar/" + strings.Repeat("0", 52) + ".nar HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
	},
	// They ask for a large NAR a hundred times over each of ten connections of HTTP/2, and do not
	// take it.
	"streams": (*crowdClient).streams,
}

// crowdClient is one connection of a crowd, one after the other.
type crowdClient struct {
	dialer      net.Dialer
	http, https string // addresses
	nar         string // path of a large NAR
	token       string
	tried       func()        // called when the first connection was made, or was not
	gone        chan struct{} // closed when the crowd is to end
}

func (c *crowdClient) put(suffix string) string {
	name := "/nar/" + strings.Repeat("0", 52) + suffix
	if suffix == ".narinfo" {
		name = "/" + strings.Repeat("0", 32) + suffix
	}
	r, err := http.NewRequest(http.MethodPut, "http://x"+name, nil)
	if err != nil {
		panic(err)
	}
	r.SetBasicAuth("any", c.token)
	return "PUT " + name + " HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\nAuthorization: " + r.Header.Get("Authorization") + "\r\n\r\n"
}

// hold begins a request, and then sends a byte a second, until the server hangs up.
func (c *crowdClient) hold(request string) {
	defer c.tried()
	conn, err := c.dialer.Dial("tcp", c.http)
	if err != nil {
		return
	}
	defer conn.Close()
	for c.sent(conn, request) {
		request = request[:min(1, len(request))]
	}
}

// sent reports whether the connection is there still a second after something was sent.
func (c *crowdClient) sent(conn net.Conn, text string) bool {
	_, err := io.WriteString(conn, text)
	c.tried()
	if err != nil {
		return false
	}
	select {
	case <-c.gone:
		return false
	case <-time.After(time.Second):
	}
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return false
	}
	there := true
	err = raw.Read(func(fd uintptr) bool { // without taking anything of what has come
		n, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		there = n > 0 || err == syscall.EAGAIN
		return true
	})
	return err == nil && there
}

func (c *crowdClient) streams() {
	defer c.tried()
	transport := &http.Transport{
		MaxConnsPerHost:   1, // else each request that comes before there is one makes its own
		ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DialContext: c.dialer.DialContext,
		HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10, MaxReceiveBufferPerConnection: 100 * 64 << 10},
	}
	defer transport.CloseIdleConnections()
	var asked, all sync.WaitGroup
	for range 100 {
		asked.Add(1)
		sent := sync.OnceFunc(asked.Done)
		ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { sent() }})
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+c.https+c.nar, nil)
		if err != nil {
			panic(err)
		}
		all.Go(func() {
			defer sent()
			answer, err := transport.RoundTrip(r)
			if err != nil {
				return
			}
			defer answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				<-c.gone // no client reads the body
			}
		})
	}
	asked.Wait()
	c.tried()
	all.Wait()
}

// crowdMain is the crowd: FROM HTTP HTTPS NAR TOKEN MANNERS NUMBER. It says when all have tried,
// and ends with its standard input.
func crowdMain() {
	from, number := os.Args[1], os.Args[7]
	n, err := strconv.Atoi(number)
	if err != nil {
		panic(err)
	}
	pause := time.Duration(n) * time.Second / 500 // a crowd that stays, and not a flood of connects
	gone := make(chan struct{})
	var tried sync.WaitGroup
	tried.Add(n)
	for i := range n {
		c := &crowdClient{
			dialer: net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 10 * time.Second},
			http:   os.Args[2], https: os.Args[3], nar: os.Args[4], token: os.Args[5], tried: sync.OnceFunc(tried.Done), gone: gone,
		}
		go func() {
			for {
				manners[os.Args[6]](c)
				select {
				case <-gone:
					return
				case <-time.After(pause/2 + pause*time.Duration(i)/time.Duration(n)): // not all at once
				}
			}
		}()
	}
	tried.Wait()
	fmt.Println("all have tried")
	io.Copy(io.Discard, os.Stdin)
	close(gone)
}

func init() { programs[crowd] = crowdMain }

// crowdAddress is where a crowd comes from.
const crowdAddress = "127.0.0.2"

// TestCrowds: however many connections one address makes, and whatever they do, a client from
// another address gets what it asks for, and can push, at once. So it is with few files allowed,
// and with many. A crowd that comes from the address of a trusted proxy may have all connections
// that are free, and even so others are served, who come from elsewhere or through the same proxy.
// FIRN_SOAK has it use as many connections as a machine gives one process.
func TestCrowds(t *testing.T) {
	sizes := map[int]int{256: 600, 1024: 1500, 4096: 5000} // files that the server may have open: connections of the crowd
	if os.Getenv("FIRN_SOAK") != "" {
		sizes = map[int]int{16384: 15_000}
	}
	for _, files := range slices.Sorted(maps.Keys(sizes)) {
		t.Run(fmt.Sprintf("%d files", files), func(t *testing.T) { testCrowd(t, files, sizes[files], "none") })
		t.Run(fmt.Sprintf("%d files, from a trusted proxy", files), func(t *testing.T) { testCrowd(t, files, sizes[files], crowdAddress) })
	}
}

// crowdServer is a server with few files, and what is in it.
type crowdServer struct {
	*admin
	limit  int
	https  string
	token  string // of the client that is to be served
	large  string // path of a large NAR
	small  cachetest.Path
	pushed int
}

func testCrowd(t *testing.T, files, connections int, trustedProxy string) {
	pair := certificate(t)
	a := &admin{T: t, state: filepath.Join(t.TempDir(), "state")}
	cmd := exec.Command("sh", "-c", fmt.Sprintf(`ulimit -n %d && exec firn "$@"`, files), "sh", "serve", "--state", a.state, "--store", "off", "--trusted-proxy", trustedProxy,
		"--listen", "127.0.0.1:0", "--https", "127.0.0.1:0", "--tls-cert", pair[0], "--tls-key", pair[1])
	cmd.Env = environment(t)
	a.server = startCommand(t, cmd)
	s := &crowdServer{admin: a, limit: files, token: a.mustRun("token", "create", "--push", "main", "good")}
	for line := range strings.Lines(a.server.announced) {
		if address, ok := strings.CutPrefix(strings.TrimSpace(line), "https://"); ok {
			s.https = address
		}
	}
	rude := a.mustRun("token", "create", "--push", "main", "rude")

	contents := make([]byte, 24<<20)
	rand.NewChaCha8([32]byte{}).Read(contents)
	large := cachetest.NewPath(t, nix.DefaultStoreDir, "large", string(contents))
	s.push("", s.token, large, http.StatusCreated)
	s.large = "/nar/" + large.Info.Path.Hash().String() + "-" + large.Info.NARHash.Nix32() + ".nar.zst"
	s.want(http.MethodHead, s.large, "", nil, http.StatusOK, "")
	s.small = cachetest.NewPath(t, nix.DefaultStoreDir, "small", "contents")
	s.push("", s.token, s.small, http.StatusCreated)

	for _, manner := range slices.Sorted(maps.Keys(manners)) {
		n := connections
		if manner == "streams" {
			n = 10
		}
		end := s.crowd(rude, manner, n)
		s.wantServed(manner, &http.Transport{DisableKeepAlives: true}, "")
		if trustedProxy == crowdAddress {
			dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(crowdAddress)}}
			s.wantServed(manner+", beside it through the proxy", &http.Transport{DisableKeepAlives: true, DialContext: dialer.DialContext}, "203.0.113.7")
		}
		end()
	}
	if said := s.server.stderr.String(); strings.Contains(said, "too many open files") {
		t.Errorf("the server ran out of files:\n%s", said)
	}
}

// certificate makes a certificate, in two files.
func certificate(t *testing.T) (pair [2]string) {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	server.StartTLS()
	defer server.Close()
	key, err := x509.MarshalPKCS8PrivateKey(server.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for i, block := range []*pem.Block{{Type: "CERTIFICATE", Bytes: server.TLS.Certificates[0].Certificate[0]}, {Type: "PRIVATE KEY", Bytes: key}} {
		pair[i] = filepath.Join(t.TempDir(), "pem")
		if err := os.WriteFile(pair[i], pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return pair
}

// crowd sends a crowd, and returns once all have tried to get in.
func (s *crowdServer) crowd(token, manner string, n int) (end func()) {
	s.Helper()
	cmd := exec.Command(crowd, crowdAddress, strings.TrimPrefix(s.server.url, "http://"), s.https, s.large, token, manner, strconv.Itoa(n))
	cmd.Env = environment(s.T)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		s.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		s.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			s.Errorf("the crowd: %v", err)
		}
	})
	s.Cleanup(end)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		s.Fatalf("the crowd said %q, %v", line, err)
	}
	return end
}

// wantServed checks that a client is served, and how soon, again and again, each time over a new
// connection. If it comes through a proxy, it is the one that this says it is.
func (s *crowdServer) wantServed(manner string, through *http.Transport, client string) {
	s.Helper()
	const tries = 10 // of three requests
	var took []time.Duration
	most := 0
	for range tries {
		s.pushed++
		path := cachetest.NewPath(s, nix.DefaultStoreDir, "pushed", fmt.Sprintf("%s %d", manner, s.pushed))
		for _, r := range []struct {
			method, path string
			body         []byte
			status       int
		}{
			{http.MethodGet, "/" + s.small.Info.Path.Hash().String() + ".narinfo", nil, http.StatusOK},
			{http.MethodGet, "/" + cachetest.URL(s.small.NAR, ""), nil, http.StatusOK},
			{http.MethodPut, "/" + cachetest.URL(path.NAR, ""), path.NAR, http.StatusCreated},
		} {
			start := time.Now()
			s.ask(through, client, r.method, r.path, r.body, r.status)
			took = append(took, time.Since(start))
		}
		most = max(most, openFiles(s.server.cmd.Process.Pid))
	}
	slices.Sort(took)
	median, slowest := took[len(took)/2], took[len(took)-1]
	s.Logf("%s: a request took %s, at the most %s; %d files were open", manner, median, slowest, most)
	// On a machine with nothing else to do it is some 2 ms, and up to 0.1 s beside streams. Now and
	// then it is more, as a machine may have other work too.
	if median > time.Second || slowest > 10*time.Second {
		s.Errorf("%s: others waited for %s, and up to %s", manner, median, slowest)
	}
	if most > s.limit*9/10 {
		s.Errorf("%s: %d of %d files are open", manner, most, s.limit)
	}
}

// ask asks over a connection of its own, for the client that a proxy says it is, unless that is "".
func (s *crowdServer) ask(through *http.Transport, client, method, path string, body []byte, status int) {
	s.Helper()
	asker := &http.Client{Transport: through, Timeout: 20 * time.Second}
	r, err := http.NewRequestWithContext(s.Context(), method, s.server.url+path, bytes.NewReader(body))
	if err != nil {
		s.Fatal(err)
	}
	r.SetBasicAuth("any", s.token)
	if client != "" {
		r.Header.Set("X-Forwarded-For", client)
	}
	answer, err := asker.Do(r)
	if err != nil {
		s.Errorf("%s %s: %v", method, path, err)
		return
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil || answer.StatusCode != status {
		s.Errorf("%s %s: %s, %v", method, path, answer.Status, err)
	}
}

// openFiles returns how many files a process has open, 0 where that cannot be told.
func openFiles(pid int) int {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0
	}
	return len(entries)
}
