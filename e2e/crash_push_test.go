package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"firn/nix"
	"firn/nix/nar"
)

// killRounds is how often a server, or a client, is killed, unless FIRN_KILL_ROUNDS says otherwise.
const killRounds = 20

// A victim is a server that is killed again and again.
type victim struct {
	m    *machine
	args []string
	cmd  *exec.Cmd
	url  string
	logs *lockedBuffer
}

// start runs the server until it answers.
func (v *victim) start(t testing.TB) {
	t.Helper()
	v.logs = &lockedBuffer{}
	args := append([]string{firnPath, "serve", "--listen", "127.0.0.1:0", "--store", "off"}, v.args...)
	v.cmd = v.m.command(context.Background(), args...)
	v.cmd.Stderr = v.logs
	stdout, err := v.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v.url = ""
	for announced := bufio.NewScanner(stdout); announced.Scan(); {
		line := strings.TrimSpace(announced.Text())
		if strings.HasPrefix(line, "http://") {
			v.url = line
		}
		if strings.HasPrefix(line, "extra-trusted-public-keys") && v.url != "" {
			return
		}
	}
	v.cmd.Wait()
	t.Fatalf("firn did not start:\n%s", v.logs)
}

// kill ends it at once and returns what it had logged. It must have been alive.
func (v *victim) kill(t testing.TB) {
	t.Helper()
	if err := v.cmd.Process.Kill(); err != nil {
		t.Fatalf("firn was dead already: %v\n%s", err, v.logs)
	}
	v.cmd.Wait()
	if status := v.cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Fatalf("firn ended by itself: %v\n%s", v.cmd.ProcessState, v.logs)
	}
}

// A pushed path is one that a client of the test sends.
type pushed struct {
	info *nix.NARInfo
	nar  []byte
	file []byte // as it is sent
	// narinfo says how far the request got that publishes it.
	narinfo fate
}

type fate uint8

const (
	unsent       fate = iota // must not be there
	inFlight                 // may be there, and whole then
	acknowledged             // must be there
)

// newPushed makes a path that shares some of its bytes with others, and refers to ref.
func newPushed(random *rand.Rand, name string, size int, ref *pushed) *pushed {
	seed := func() [32]byte {
		var s [32]byte
		s[0] = byte(random.IntN(4))
		return s
	}
	var body bytes.Buffer
	for body.Len() < size {
		if random.IntN(2) == 0 { // what other paths have too
			io.CopyN(&body, rand.NewChaCha8(seed()), int64(size/4+1))
		} else {
			for range size/32 + 1 {
				body.WriteString(strconv.FormatUint(random.Uint64(), 36))
			}
		}
	}
	p := &pushed{info: &nix.NARInfo{}}
	if ref != nil {
		fmt.Fprintf(&body, "%s\n", ref.info.Path)
		p.info.References = []nix.StorePath{ref.info.Path}
	}
	var archive bytes.Buffer
	w := nar.NewWriter(&archive)
	err := w.WriteHeader(&nar.Header{Type: nar.TypeRegular, Size: int64(body.Len())})
	if err == nil {
		_, err = w.Write(body.Bytes())
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err)
	}
	p.nar = archive.Bytes()
	p.info.NARHash = nix.SHA256Sum(sha256.Sum256(p.nar))
	p.info.NARSize = int64(len(p.nar))
	digits := sha256.Sum256([]byte(name))
	p.info.Path, err = nix.DefaultStoreDir.ParseBase(string(nix.AppendNix32(nil, digits[:20])) + "-" + name)
	if err != nil {
		panic(err)
	}
	p.file, p.info.Compression = p.nar, nix.None
	suffix := ".nar"
	if random.IntN(2) == 0 {
		encoder, err := zstd.NewWriter(nil)
		if err != nil {
			panic(err)
		}
		p.file, p.info.Compression = encoder.EncodeAll(p.nar, nil), nix.Zstd
		suffix += ".zst"
	}
	p.info.FileHash = nix.SHA256Sum(sha256.Sum256(p.file))
	p.info.FileSize = int64(len(p.file))
	p.info.URL = "nar/" + p.info.FileHash.Nix32() + suffix
	return p
}

// put sends a file. Its error is that of a connection or of a status that is not one of success.
func put(client *http.Client, url, token string, body []byte) error {
	r, err := http.NewRequest(http.MethodPut, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.SetBasicAuth("anybody", token)
	res, err := client.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if res.StatusCode/100 != 2 {
		return &statusError{res.StatusCode, string(text)}
	}
	return err
}

type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return fmt.Sprintf("%d: %s", e.code, e.text) }

// push sends a path as Nix does.
func (p *pushed) push(client *http.Client, base, token string) error {
	if err := put(client, base+"/"+p.info.URL, token, p.file); err != nil {
		return err
	}
	p.narinfo = inFlight
	err := put(client, base+"/"+p.info.Path.Hash().String()+".narinfo", token, p.info.AppendText(nil))
	if err == nil {
		p.narinfo = acknowledged
	}
	if status, ok := errors.AsType[*statusError](err); ok && status.code/100 == 4 {
		p.narinfo = unsent
	}
	return err
}

// check checks that a path is there whole, or not at all, as it has to be.
func (p *pushed) check(t testing.TB, client *http.Client, base string) {
	t.Helper()
	status, text := fetch(t, client, base+"/"+p.info.Path.Hash().String()+".narinfo")
	switch {
	case status == http.StatusNotFound && p.narinfo != acknowledged:
		return
	case status != http.StatusOK || p.narinfo == unsent:
		t.Errorf("the narinfo of %s, of fate %d, is answered with %d: %s", p.info.Path, p.narinfo, status, text)
		return
	}
	info, err := nix.ParseNARInfoStrict(nix.DefaultStoreDir, text)
	if err != nil {
		t.Error(err)
		return
	}
	if info.NARHash != p.info.NARHash || info.NARSize != p.info.NARSize {
		t.Errorf("%s is there with the NAR hash %s, want %s", p.info.Path, info.NARHash, p.info.NARHash)
	}
	status, file := fetch(t, client, base+"/"+info.URL)
	decoder, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Close()
	got, err := decoder.DecodeAll(file, nil)
	sum := sha256.Sum256(got)
	if status != http.StatusOK || err != nil || nix.SHA256Sum(sum) != p.info.NARHash {
		t.Errorf("the NAR of %s, of fate %d, is answered with %d, %d bytes of %s: %v", p.info.Path, p.narinfo, status, len(got), hex.EncodeToString(sum[:]), err)
	}
}

func fetch(t testing.TB, client *http.Client, url string) (int, []byte) {
	t.Helper()
	res, err := client.Get(url)
	if err != nil {
		t.Error(err)
		return 0, nil
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Errorf("read %s: %v", url, err)
	}
	return res.StatusCode, body
}

// newClient is a client of its own, with connections of its own.
func newClient(t testing.TB) *http.Client {
	transport := &http.Transport{MaxIdleConnsPerHost: 16, DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

// A server that is killed at any moment has all that it acknowledged, whole, and nothing that is half there.
func TestKilledWhilePushing(t *testing.T) {
	t.Parallel()
	rounds := roundsToKill(t)
	// Each server is killed a number of times, and then another begins with nothing: every verification reads all that there is.
	const most = 25
	for first := 0; first < rounds; first += most {
		t.Run(fmt.Sprint("from ", first), func(t *testing.T) { killWhilePushing(t, uint64(first), min(most, rounds-first)) })
	}
}

// roundsToKill returns how often something is killed.
func roundsToKill(t testing.TB) int {
	t.Helper()
	text := os.Getenv("FIRN_KILL_ROUNDS")
	if text == "" {
		return killRounds
	}
	rounds, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return rounds
}

// killWhilePushing kills a server so many times.
func killWhilePushing(t *testing.T, seed uint64, rounds int) {
	const (
		clients  = 6
		maxDelay = 1500 * time.Millisecond
		small    = 30 << 10
		big      = 6 << 20
	)
	m := newMachine(t, systemNix())
	state := filepath.Join(m.dir, "state")
	v := &victim{m: m, args: []string{"--state", state}}
	v.start(t)
	token := newToken(m, "ci", "--push", "main")
	random := rand.New(rand.NewPCG(seed, 0))
	var all []*pushed
	for round := range rounds {
		client := newClient(t)
		sent := make([][]*pushed, clients)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range clients {
			random := rand.New(rand.NewPCG(seed, uint64(round*clients+i+1)))
			wg.Go(func() {
				var last *pushed // that is there
				for n := 0; ctx.Err() == nil; n++ {
					size := random.IntN(small)
					if random.IntN(10) == 0 {
						size = random.IntN(big)
					}
					p := newPushed(random, fmt.Sprintf("round-%d-%d-%d", round, i, n), size, last)
					sent[i] = append(sent[i], p)
					err := p.push(client, v.url, token)
					p.file, p.nar = nil, nil // what is left is its hash
					if _, refused := errors.AsType[*statusError](err); refused {
						t.Errorf("push %s: %v", p.info.Path, err)
						return
					}
					if err != nil {
						return // it was killed
					}
					last = p
				}
			})
		}
		time.Sleep(time.Duration(random.Int64N(int64(maxDelay)))) // at a moment that nothing decides
		v.kill(t)
		cancel()
		wg.Wait()

		var now []*pushed
		for _, some := range sent {
			now = append(now, some...)
		}
		all = append(all, now...)
		if round%2 == 0 {
			admin(m, "verify")
		}
		v.start(t)
		if round%2 == 1 {
			admin(m, "verify")
		}
		for _, p := range now {
			p.check(t, client, v.url)
		}
		for range min(20, len(all)) {
			all[random.IntN(len(all))].check(t, client, v.url)
		}
		if t.Failed() {
			t.Fatalf("in round %d; the server says\n%s", round, v.logs)
		}
		client.CloseIdleConnections()
	}
	client := newClient(t)
	counts := map[fate]int{}
	for _, p := range all {
		p.check(t, client, v.url)
		counts[p.narinfo]++
	}
	t.Logf("%d paths in %d rounds: %d acknowledged, %d in flight when it was killed, %d without a narinfo",
		len(all), rounds, counts[acknowledged], counts[inFlight], counts[unsent])
	if counts[acknowledged] < rounds {
		t.Error("too little was pushed for this to mean anything")
	}
	v.kill(t)
	admin(m, "verify")
}

// A full disk loses nothing, and takes again when there is room.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	m := newMachine(t, systemNix())
	state := filepath.Join(m.dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", state, "tmpfs", 0, "size=50m"); err != nil {
		t.Fatalf("mount a file system of 50 MB: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(state, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	v := &victim{m: m, args: []string{"--state", state}}
	v.start(t)
	alive := true
	t.Cleanup(func() { // before it is unmounted
		if alive {
			v.kill(t)
		}
	})
	token := newToken(m, "ci", "--push", "main")
	client := newClient(t)
	var (
		mu      sync.Mutex
		all     []*pushed
		refused int
	)
	fill := func(name string) {
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				random := rand.New(rand.NewPCG(9, uint64(len(name)*10+i)))
				failures := 0
				for n := 0; failures < 5 && n < 100; n++ {
					p := newPushed(random, fmt.Sprintf("%s-%d-%d", name, i, n), 1<<20+random.IntN(4<<20), nil)
					err := p.push(client, v.url, token)
					p.file, p.nar = nil, nil // what is left is its hash
					if status, ok := errors.AsType[*statusError](err); ok && (status.code != http.StatusInsufficientStorage || !strings.Contains(status.text, "disk of this server is full")) {
						t.Errorf("a full disk is answered with %v", err)
					} else if err != nil && !ok {
						t.Errorf("push: %v", err)
					}
					if err != nil {
						failures++
					}
					mu.Lock()
					all = append(all, p)
					refused += min(failures, 1)
					mu.Unlock()
				}
			})
		}
		wg.Wait()
	}
	checkAll := func() {
		t.Helper()
		for _, p := range all {
			p.check(t, client, v.url)
		}
	}
	fill("full")
	if refused == 0 {
		t.Error("it was never full")
	}
	checkAll()
	admin(m, "verify")
	if logs := v.logs.String(); !strings.Contains(logs, "on the disk of the state directory") {
		t.Errorf("the log does not say what to do:\n%s", logs)
	}
	fullOverSSH(t, state)
	v.kill(t)
	v.start(t)
	checkAll()
	admin(m, "verify")

	if err := syscall.Mount("tmpfs", state, "tmpfs", syscall.MS_REMOUNT, "size=200m"); err != nil {
		t.Fatal(err)
	}
	p := newPushed(rand.New(rand.NewPCG(1, 1)), "room", 8<<20, nil)
	if err := p.push(client, v.url, token); err != nil {
		t.Errorf("with room again: %v", err)
	}
	all = append(all, p)
	checkAll()
	v.kill(t)
	alive = false
	admin(m, "verify")
}

// fullOverSSH pushes to a full disk as Nix does over SSH, and wants the reason on its side.
func fullOverSSH(t *testing.T, state string) {
	t.Helper()
	source := newMachine(t, systemNix()) // the others do not see the file system that is full
	file := source.write("noise", "")
	noise := make([]byte, 64<<20)
	rand.NewChaCha8([32]byte{7}).Read(noise)
	if err := os.WriteFile(file, noise, 0o644); err != nil {
		t.Fatal(err)
	}
	path := source.run("nix-store", "--add", file)
	program := source.write("program", "#!/bin/sh\nFIRN_STORE=off exec "+firnPath+" stdio --state "+state+"\n")
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, scheme := range schemes {
		source.refused([]string{"the disk of the server is full"}, "nix", "copy", "--to", scheme+"://localhost?remote-program="+program, path)
	}
}
