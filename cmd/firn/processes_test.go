package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"firn/internal/cache/cachetest"
	"firn/internal/catalog"
	"firn/internal/catalog/sqlite"
	"firn/internal/depot/index"
	"firn/nix"
	"firn/nix/protocol"
)

// A pusher pushes to a cache, by one process of several that have the same state.
type pusher interface {
	// upload sends what is needed before publish, which says whether the path was taken.
	upload(t testing.TB, p cachetest.Path)
	publish(p cachetest.Path) error
	// realisation sends one, which is refused or kept.
	realisation(r *nix.Realisation) error
}

var errRefused = errors.New("refused")

// overHTTP pushes to a server.
type overHTTP struct {
	client *http.Client
	url    string // of the cache
	token  string
	t      testing.TB
}

func (c *overHTTP) put(path string, body []byte) error {
	for range 100 {
		request, err := http.NewRequestWithContext(c.t.Context(), http.MethodPut, c.url+path, bytes.NewReader(body))
		if err != nil {
			return err
		}
		request.SetBasicAuth("anybody", c.token)
		answer, err := c.client.Do(request)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		switch {
		case err != nil:
			return err
		case answer.StatusCode == http.StatusServiceUnavailable:
			continue
		case answer.StatusCode >= 500:
			return fmt.Errorf("%s: %s", answer.Status, text)
		case answer.StatusCode >= 400:
			return fmt.Errorf("%w: %s: %s", errRefused, answer.Status, text)
		}
		return nil
	}
	return errors.New("unavailable a hundred times")
}

func narinfo(p cachetest.Path) []byte {
	info := nix.NARInfo{PathInfo: *p.Info, URL: cachetest.URL(p.NAR, ""), Compression: nix.None, FileHash: p.Info.NARHash, FileSize: p.Info.NARSize}
	return info.AppendText(nil)
}

func (c *overHTTP) upload(t testing.TB, p cachetest.Path) {
	t.Helper()
	if err := c.put("/"+cachetest.URL(p.NAR, ""), p.NAR); err != nil {
		t.Fatal(err)
	}
}

func (c *overHTTP) publish(p cachetest.Path) error { return c.put(narinfoOf(p), narinfo(p)) }

func (c *overHTTP) realisation(r *nix.Realisation) error {
	text, err := r.MarshalJSON()
	if err != nil {
		return err
	}
	return c.put("/realisations/"+r.ID.String()+".doi", text)
}

// overStdio pushes to firn stdio, in the worker protocol.
type overStdio struct {
	conn   io.ReadWriter
	client *protocol.WorkerClient
}

// newStdio starts firn stdio on the state of a server.
func newStdio(a *admin, cacheName string) *overStdio {
	a.Helper()
	cmd := exec.Command("firn", "stdio", "--cache", cacheName, "--state", a.state) // it ends with its standard input
	cmd.Env = environment(a.T, "FIRN_STORE=off")
	cmd.WaitDelay = time.Minute
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		a.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		a.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		a.Fatal(err)
	}
	conn := struct {
		io.Reader
		io.Writer
	}{out, in}
	client, err := protocol.DialWorker(conn, nix.DefaultStoreDir)
	if err != nil {
		a.Fatal(err)
	}
	a.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			a.Errorf("firn stdio: %v: %s", err, stderr.String())
		}
	})
	return &overStdio{conn, client}
}

func (*overStdio) upload(testing.TB, cachetest.Path) {} // it comes with the path

func (c *overStdio) publish(p cachetest.Path) error {
	err := c.client.AddNAR(p.Info, bytes.NewReader(p.NAR))
	if err == nil {
		// A path may be acknowledged before it is published. What is asked next is answered after
		// that.
		_, err = c.client.ValidPaths([]nix.StorePath{p.Info.Path})
	}
	return refused(err)
}

func refused(err error) error {
	if answer, ok := errors.AsType[*protocol.AnswerError](err); ok {
		return fmt.Errorf("%w: %s", errRefused, answer.Message)
	}
	return err
}

// realisation writes by hand what only the daemon of Nix itself sends: the operation
// RegisterDrvOutput.
func (c *overStdio) realisation(r *nix.Realisation) error {
	text, err := r.MarshalJSON()
	if err != nil {
		return err
	}
	question := binary.LittleEndian.AppendUint64(nil, 42)
	question = binary.LittleEndian.AppendUint64(question, uint64(len(text)))
	question = append(append(question, text...), make([]byte, -len(text)&7)...)
	if _, err := c.conn.Write(question); err != nil {
		return err
	}
	answer := make([]byte, 8)
	if _, err := io.ReadFull(c.conn, answer); err != nil {
		return err
	}
	if tag := binary.LittleEndian.Uint64(answer); tag != 0x616c7473 { // that nothing more is said
		return fmt.Errorf("firn stdio answers a realisation with %#x", tag)
	}
	return nil
}

// others is a state with several processes.
type others struct {
	*admin
	pushers [2]pusher
	catalog *sqlite.Catalog // of this process, for what commands do
	reader  *overHTTP
	tokens  int // that were made
}

// withProcesses runs a test on a state that several processes have, in a cache of its own for each
// kind of these.
func withProcesses(t *testing.T, args []string, test func(t *others)) {
	for _, kind := range []struct {
		name  string
		start func(o *others)
	}{
		{"two servers", func(o *others) {
			o.pushers[1] = o.http(startServer(o.T, environment(o.T), "--state", o.state, "--store", "off", "--listen", "127.0.0.1:0"))
		}},
		{"a server and stdio", func(o *others) { o.pushers[1] = newStdio(o.admin, "team") }},
		{"a server whose settings change", func(o *others) {
			o.pushers[1] = o.http(o.server)
			o.changeSettings()
		}},
	} {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel() // each round waits for the disk, some ten times
			o := &others{admin: newAdmin(t)}
			o.mustRun(append([]string{"cache", "create", "team"}, args...)...)
			cat, err := openCatalog(t.Context(), o.state)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { cat.Close() }) // after those who use it
			o.catalog = cat
			first := o.http(o.server)
			o.reader, o.pushers[0] = first, first
			kind.start(o)
			test(o)
		})
	}
}

func (o *others) http(s *testServer) *overHTTP {
	o.Helper()
	o.tokens++
	token := o.mustRun("token", "create", fmt.Sprint("ci-", o.tokens), "--push", "team")
	client := &http.Client{Transport: &http.Transport{}}
	o.Cleanup(client.CloseIdleConnections)
	return &overHTTP{client: client, url: s.url + "/team", token: token, t: o.T}
}

// changeSettings has commands change the priority of the cache until the test ends.
func (o *others) changeSettings() {
	ctx, cancel := context.WithCancel(context.Background())
	var changing sync.WaitGroup
	changing.Go(func() {
		for i := 1; ctx.Err() == nil; i++ {
			cmd := exec.CommandContext(ctx, "firn", "cache", "set", "team", "--priority", fmt.Sprint(10+i%80), "--state", o.state)
			cmd.Env = o.server.cmd.Env
			if out, err := cmd.CombinedOutput(); err != nil && ctx.Err() == nil {
				o.Errorf("firn cache set: %v: %s", err, out)
				return
			}
		}
	})
	// One command takes some 50 ms. This does what it does, more often.
	changing.Go(func() {
		for i := 1; ctx.Err() == nil; i++ {
			if err := changePriority(ctx, o.catalog, 100+i%900); err != nil && ctx.Err() == nil {
				o.Error(err)
				return
			}
			time.Sleep(time.Millisecond) // others write too
		}
	})
	o.Cleanup(func() { cancel(); changing.Wait() })
}

// atOnce has both pushers do something at the same time, and returns what each came to.
func (o *others) atOnce(do func(i int, p pusher) error) (errs [2]error) {
	start := make(chan struct{})
	var both sync.WaitGroup
	for i, p := range o.pushers {
		both.Go(func() {
			<-start
			errs[i] = do(i, p)
		})
	}
	close(start)
	both.Wait()
	return errs
}

// has reports whether the cache has a path.
func (o *others) has(p cachetest.Path) bool {
	o.Helper()
	_, ok := o.text(narinfoOf(p))
	return ok
}

// text is what the server answers, ok if it has it.
func (o *others) text(path string) (text string, ok bool) {
	o.Helper()
	answer, err := o.reader.client.Get(o.reader.url + path)
	if err != nil {
		o.Fatal(err)
	}
	defer answer.Body.Close()
	got, err := io.ReadAll(answer.Body)
	if err != nil {
		o.Fatal(err)
	}
	switch answer.StatusCode {
	case http.StatusOK:
		return string(got), true
	case http.StatusNotFound:
		return "", false
	}
	o.Fatalf("%s: %s: %s", path, answer.Status, got)
	return "", false
}

// part is a path that is like no other.
func part(t testing.TB, round int, name string, refs ...nix.StorePath) cachetest.Path {
	p := cachetest.NewTree(t, nix.DefaultStoreDir, name, map[string]string{"round": fmt.Sprint(round, name)})
	info := *p.Info
	info.References = nix.SortPaths(refs)
	return cachetest.Path{Info: &info, NAR: p.NAR}
}

// Of two paths that refer to each other, and are published at once, one is refused.
func TestProcessesCycle(t *testing.T) {
	t.Parallel()
	withProcesses(t, []string{"--allow-missing-references"}, func(o *others) {
		cycles := 0
		for round := range rounds {
			a, b := part(o, round, "a"), part(o, round, "b")
			a, b = part(o, round, "a", b.Info.Path), part(o, round, "b", a.Info.Path)
			both := [2]cachetest.Path{a, b}
			for i, p := range o.pushers {
				p.upload(o, both[i])
			}
			errs := o.atOnce(func(i int, p pusher) error { return p.publish(both[i]) })
			taken := 0
			for i, err := range errs {
				if err != nil && !errors.Is(err, errRefused) {
					o.Fatal(err)
				}
				if there := o.has(both[i]); there != (err == nil) {
					o.Errorf("round %d: %v, and there: %v", round, err, there)
				} else if there {
					taken++
				}
			}
			if taken == 2 {
				cycles++
			} else if taken == 0 {
				o.Errorf("round %d: both were refused: %v", round, errs)
			}
		}
		if cycles > 0 {
			o.Errorf("%d cycles were published in %d rounds", cycles, rounds)
		}
	})
}

// Signatures of one realisation that are acknowledged at once are all kept.
func TestProcessesRealisation(t *testing.T) {
	t.Parallel()
	var keys []nix.SecretKey
	for i := range 4 {
		key, err := nix.GenerateKey(fmt.Sprint("builder-", i))
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	withProcesses(t, nil, func(o *others) {
		out := part(o, 0, "out")
		o.pushers[0].upload(o, out)
		if err := o.pushers[0].publish(out); err != nil {
			o.Fatal(err)
		}
		lost := 0
		for round := range rounds {
			r := &nix.Realisation{OutPath: out.Info.Path}
			r.ID.Output = "out"
			var sum [32]byte
			binary.BigEndian.PutUint64(sum[:], uint64(round+1))
			r.ID.DrvHash = nix.SHA256Sum(sum)
			for puts := range 2 { // the first, and one that is there
				for i, err := range o.atOnce(func(i int, p pusher) error {
					signed := *r
					signed.Signatures = []nix.Signature{keys[2*puts+i].Sign(r.AppendFingerprint(nil))}
					return p.realisation(&signed)
				}) {
					if err != nil {
						o.Fatalf("round %d: pusher %d: %v", round, i, err)
					}
				}
			}
			text, _ := o.text("/realisations/" + r.ID.String() + ".doi")
			for _, key := range keys {
				if !strings.Contains(text, `"`+key.Name()+":") {
					lost++
				}
			}
		}
		if lost > 0 {
			o.Errorf("%d of %d signatures that were acknowledged are lost", lost, rounds*len(keys))
		}
	})
}

// A path is not published without its references, and a deleted path does not come back, when
// another process deletes at the same time.
func TestProcessesDeletion(t *testing.T) {
	t.Parallel()
	key, err := nix.GenerateKey("builder-1")
	if err != nil {
		t.Fatal(err)
	}
	withProcesses(t, nil, func(o *others) {
		r, err := record(o.Context(), o.catalog, "team")
		if err != nil {
			o.Fatal(err)
		}
		late := 0
		for round := range rounds {
			library, alone := part(o, round, "library"), part(o, round, "alone")
			program := part(o, round, "program", library.Info.Path)
			for _, p := range []cachetest.Path{library, alone} {
				o.pushers[0].upload(o, p)
				if err := o.pushers[0].publish(p); err != nil {
					o.Fatal(err)
				}
			}
			for _, p := range o.pushers {
				p.upload(o, program)
			}
			d := &index.Deletion{Cache: r.ID, Paths: []nix.PathHash{library.Info.Path.Hash(), alone.Info.Path.Hash()}, Referrers: index.DeleteReferrers}
			deleted := make(chan error, 1)
			go func() {
				// A publish takes a millisecond or two.
				time.Sleep(time.Duration(round%10) * 200 * time.Microsecond)
				_, err := index.Of(o.catalog).Delete(o.Context(), d)
				deleted <- err
			}()
			signed := *alone.Info
			signed.Signatures = []nix.Signature{key.Sign(signed.AppendFingerprint(nil))}
			errs := o.atOnce(func(i int, p pusher) error {
				if i == 0 {
					// With the URL that the cache gave the path, as nix store sign sends it: no
					// upload belongs to it.
					info := nix.NARInfo{PathInfo: signed, URL: "nar/" + signed.Path.Hash().String() + "-" + signed.NARHash.Nix32() + ".nar", Compression: nix.None}
					return o.reader.put(narinfoOf(alone), info.AppendText(nil))
				}
				return p.publish(program)
			})
			if err := <-deleted; err != nil {
				o.Fatal(err)
			}
			for _, err := range errs {
				if err != nil && !errors.Is(err, errRefused) {
					o.Fatal(err)
				}
			}
			if errs[1] != nil {
				late++
			}
			if o.has(program) && !o.has(library) {
				o.Errorf("round %d: a path is there without what it refers to", round)
			}
			if o.has(alone) {
				o.Errorf("round %d: a path that was deleted is there, as a signature was added to it", round)
			}
		}
		o.Logf("%d of %d paths came too late", late, rounds)
	})
}

// Commands that change different settings of a cache at once all take effect.
func TestProcessesSettings(t *testing.T) {
	t.Parallel()
	a := newAdmin(t)
	a.mustRun("cache", "create", "team")
	const commands = 12
	var keys []string
	for i := range commands {
		file := filepath.Join(t.TempDir(), "key")
		generate := exec.CommandContext(t.Context(), "firn", "key", "generate", fmt.Sprint("team-new-", i), file, file+".pub")
		if out, err := generate.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		keys = append(keys, file)
	}
	var running sync.WaitGroup
	for i, key := range keys {
		cmd := a.command("cache", "set", "team", "--add-key", key)
		running.Go(func() {
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("command %d: %v: %s", i, err, out)
			}
		})
	}
	running.Wait()
	shown := a.mustRun("cache", "show", "team")
	for i := range commands {
		if name := fmt.Sprint("team-new-", i); !strings.Contains(shown, name+":") {
			t.Errorf("%s is lost", name)
		}
	}
}

// changePriority does what firn cache set --priority does.
func changePriority(ctx context.Context, cat *sqlite.Catalog, priority int) error {
	r, err := record(ctx, cat, "team")
	if err != nil {
		return err
	}
	changed := *r
	changed.Priority = priority
	if err := cat.SetCache(ctx, r, &changed); !errors.Is(err, catalog.ErrChanged) {
		return err
	}
	return nil // the command would try again
}
