package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"firn/internal/testing/seed"
	"firn/nix"
)

// restartRounds is how often a server is restarted, unless FIRN_RESTART_ROUNDS says otherwise.
const restartRounds = 20

// An asker asks for one thing after the other through one connection for as long as the server lets it, and opens another when it was told
// that an answer was the last. What HTTP has a client do where a connection that it had used before is closed without a word, it does too, and counts it.
// Any other end is a failure.
type asker struct {
	address string
	conn    net.Conn
	read    *bufio.Reader
	dials   int
	told    int // how often an answer said that it was the last through its connection
	again   int // requests that were sent twice
}

// ask writes the body of an answer, and returns its status.
func (a *asker) ask(ctx context.Context, path string, body io.Writer) (status int, err error) {
	used := a.conn != nil
	if !used {
		if a.conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", a.address); err != nil {
			return 0, err
		}
		a.read = bufio.NewReader(a.conn)
		a.dials++
	}
	if err := a.conn.SetDeadline(time.Now().Add(commandTimeout)); err != nil {
		return 0, err
	}
	_, err = fmt.Fprintf(a.conn, "GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n", path)
	if err == nil {
		_, err = a.read.Peek(1)
	}
	if err != nil && used {
		a.close()
		a.again++
		return a.ask(ctx, path, body)
	}
	if err != nil {
		return 0, err
	}
	res, err := http.ReadResponse(a.read, nil)
	if err != nil {
		return 0, err
	}
	if _, err := io.Copy(body, res.Body); err != nil {
		return 0, err
	}
	if res.Close {
		a.told++
		a.close()
	}
	return res.StatusCode, nil
}

func (a *asker) close() {
	if a.conn != nil {
		a.conn.Close()
		a.conn = nil
	}
}

// slowly takes what is written to it so that a large NAR is on its way for some tenths of a second: longer than most restarts would take.
type slowly struct{ taken int }

func (s *slowly) Write(p []byte) (int, error) {
	const step, pause = 4 << 20, 40 * time.Millisecond
	if s.taken += len(p); s.taken > step {
		s.taken = 0
		time.Sleep(pause)
	}
	return len(p), nil
}

// A crowd is clients that ask until they are told to stop. Each failure is one of the test.
type crowd struct {
	t      testing.TB
	ctx    context.Context
	all    sync.WaitGroup
	mu     sync.Mutex
	counts map[string]int // of requests that were answered, by kind of client; each kind has an entry
	askers map[string][]*asker
	seed   uint64
	added  uint64 // clients
}

// add adds a client, which calls ask again and again, with a pause of up to most in between.
func (c *crowd) add(kind string, most time.Duration, ask func(ctx context.Context) error) {
	c.count(kind, 0)
	c.added++
	random := seed.Rand(c.seed, c.added)
	c.all.Go(func() {
		for c.ctx.Err() == nil {
			// A request that has begun is not cancelled.
			if err := ask(context.WithoutCancel(c.ctx)); err != nil {
				c.t.Errorf("%s, after %d requests: %v", kind, c.count(kind, 0), err)
				return
			}
			c.count(kind, 1)
			time.Sleep(time.Duration(random.Int64N(int64(most))))
		}
	})
}

func (c *crowd) count(kind string, more int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[kind] += more
	return c.counts[kind]
}

// addAsker adds an asker, which asks for one path after the other.
func (c *crowd) addAsker(kind, address string, most time.Duration, body func() io.Writer, paths ...string) {
	a, n := &asker{address: address}, 0
	c.askers[kind] = append(c.askers[kind], a)
	c.add(kind, most, func(ctx context.Context) error {
		path := paths[n%len(paths)]
		n++
		status, err := a.ask(ctx, path, body())
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("status %d", status)
		}
		if err != nil {
			return fmt.Errorf("GET %s through connection %d: %w", path, a.dials, err)
		}
		return nil
	})
}

// A restart under socket activation fails no request of any client: for narinfos in quick succession, for NARs that outlast the restart,
// with pauses, with curl, which begins with a connection of its own each time, and with Nix, which is told not to try again.
func TestRestarts(t *testing.T) {
	t.Parallel()
	rounds := restartRounds
	if text := os.Getenv("FIRN_RESTART_ROUNDS"); text != "" {
		var err error
		if rounds, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	address := "127.0.0.1:" + freePort(t)
	b := boot(t, map[string]string{
		"etc/systemd/test/nix-daemon.service":       nixDaemonUnit,
		"etc/systemd/test/nix-daemon.socket":        nixDaemonSocket,
		"etc/systemd/test/firn.socket.d/test.conf":  socketAt(address),
		"etc/systemd/test/firn.service.d/test.conf": "[Unit]\nStartLimitIntervalSec=0\n", // more often than systemd thinks is sane
		"etc/firn/firn.toml":                        "",
	}, nil)
	b.run("nix-store", "--init") // as where Nix has been used
	b.run("systemctl", "start", "nix-daemon.socket", "firn.socket", "firn.service")
	var narinfos, nars []string
	var small, large string // store paths
	for name, size := range map[string]string{"a": "1k", "b": "10k", "c": "100k", "d": "1M", "large": "32M"} {
		b.run("sh", "-c", "head -c $2 /dev/urandom >/root/$1", "sh", name, size)
		path := b.run("nix-store", "--add", "/root/"+name)
		narinfos = append(narinfos, filepath.Base(path)[:32]+".narinfo")
		switch name {
		case "a":
			small = path
		case "large":
			large = path
		}
	}
	base := "http://" + address + "/"
	client := newClient(t)
	for _, narinfo := range narinfos {
		_, text := fetch(t, client, base+narinfo)
		info, err := nix.ParseNARInfoStrict(nix.DefaultStoreDir, text)
		if err != nil {
			t.Fatal(err)
		}
		nars = append(nars, info.URL)
		if info.Path.String() == large { // first
			nars[0], nars[len(nars)-1] = nars[len(nars)-1], nars[0]
		}
	}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	c := &crowd{t: t, ctx: ctx, counts: map[string]int{}, askers: map[string][]*asker{}, seed: seed.Of(t)}
	defer c.all.Wait()
	defer stop()
	discard := func() io.Writer { return io.Discard }
	for range 3 {
		c.addAsker("narinfos", address, 3*time.Millisecond, discard, narinfos...)
	}
	for range 2 {
		c.addAsker("NARs", address, 20*time.Millisecond, discard, nars[1:]...)
		c.addAsker("large NAR", address, 50*time.Millisecond, func() io.Writer { return &slowly{} }, nars[0])
		c.addAsker("pauses", address, 800*time.Millisecond, discard, append(nars[1:], narinfos...)...)
	}
	c.add("Go", 10*time.Millisecond, func(context.Context) error {
		res, err := client.Get(base + nars[1])
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if n, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
			return fmt.Errorf("%s, %d bytes, %w", res.Status, n, err)
		}
		return nil
	})
	c.add("curl", 50*time.Millisecond, func(ctx context.Context) error {
		args := []string{"--fail", "--silent", "--show-error"}
		for _, path := range nars[1:] {
			args = append(args, "--output", "/dev/null", base+path)
		}
		out, err := exec.CommandContext(ctx, "curl", args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	m := newMachine(t, newestNix())
	into := filepath.Join(m.dir, "into")
	c.add("Nix", 200*time.Millisecond, func(context.Context) error {
		for _, path := range []string{small, large} {
			_, err := m.try("nix", "copy", "--from", base, "--to", into, path, "--option", "download-attempts", "1", "--option", "narinfo-cache-positive-ttl", "0")
			if err != nil {
				return err
			}
		}
		return os.RemoveAll(into) // the next time it has nothing again
	})

	pid := b.property("MainPID")
	random := seed.Rand(c.seed, 0)
	for round := range rounds {
		time.Sleep(time.Duration(random.Int64N(int64(200 * time.Millisecond))))
		if _, err := b.try("systemctl", "restart", "firn.service"); err != nil {
			t.Fatal(err)
		}
		next := b.property("MainPID")
		if next == pid || next == "0" {
			t.Fatalf("round %d: it was process %s and is %s", round, pid, next)
		}
		pid = next
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	stop()
	c.all.Wait()
	t.Logf("%d restarts; answered: %v", rounds, c.counts)
	for kind, askers := range c.askers {
		dials, told, again := 0, 0, 0
		for _, a := range askers {
			dials, told, again = dials+a.dials, told+a.told, again+a.again
		}
		t.Logf("%s: %d connections, %d answers that were the last, %d requests that were sent twice", kind, dials, told, again)
		// A client that pauses may always be between two requests when the server ends.
		if told == 0 && kind != "pauses" {
			t.Errorf("%s: no answer said that it was the last through its connection", kind)
		}
	}
	for kind, n := range c.counts {
		if n < max(1, rounds/10) {
			t.Errorf("%s: only %d requests were answered in %d restarts", kind, n, rounds)
		}
	}
	if got := b.property("NRestarts"); got != "0" {
		t.Errorf("systemd restarted it %s times by itself", got)
	}
}
