package e2e

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// tinyDisk mounts a file system of so many megabytes at the state directory of a server that m will
// run.
func tinyDisk(m *machine, megabytes int) {
	m.t.Helper()
	state := filepath.Join(m.dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		m.t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", state, "tmpfs", 0, fmt.Sprintf("size=%dm", megabytes)); err != nil {
		m.t.Fatalf("mount a file system: %v", err)
	}
	m.t.Cleanup(func() {
		if err := syscall.Unmount(state, 0); err != nil {
			m.t.Errorf("unmount: %v", err)
		}
	})
}

// addNoise adds a path of so many bytes, which do not compress.
func addNoise(m *machine, name string, size int) string {
	m.t.Helper()
	noise := make([]byte, size)
	seed := [32]byte{byte(size), byte(size >> 8), byte(size >> 16)}
	copy(seed[4:], name)
	rand.NewChaCha8(seed).Read(noise)
	file := m.write(name, "")
	if err := os.WriteFile(file, noise, 0o644); err != nil {
		m.t.Fatal(err)
	}
	return m.run("nix-store", "--add", file)
}

// addGrowing adds a path of so many bytes, of which xz finds nearly all to be repeated, and the
// server, which compresses less at once, hardly any.
func addGrowing(m *machine, name string, size int) string {
	m.t.Helper()
	const piece = 256
	random := rand.New(rand.NewPCG(uint64(size), 1))
	pool := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{9}).Read(pool)
	var text []byte
	for len(text) < size {
		at := random.IntN(len(pool)/piece) * piece
		text = append(text, pool[at:at+piece]...)
	}
	file := m.write(name, "")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		m.t.Fatal(err)
	}
	return m.run("nix-store", "--add", file)
}

// Whatever it is that finds no room on the disk of the server, every Nix ends soon, and the last
// thing that it says is why.
func TestFullDiskOfClients(t *testing.T) {
	t.Parallel()
	eachNix(t, func(t *testing.T, n nixSystem) {
		host := newMachine(t, systemNix())
		tinyDisk(host, 24)
		s := startDepot(host)
		client := newMachine(t, n)
		login(client, newToken(host, "ci", "--push", "main"))
		to := s.url + "?compression=none"
		wantFull := func(to, path string) {
			t.Helper()
			begun := time.Now()
			_, err := client.try("nix", "copy", "--to", to, path)
			if took := time.Since(begun); took > 2*time.Minute {
				t.Errorf("%s was refused after %v", path, took)
			}
			if err == nil {
				t.Errorf("%s was pushed", path)
				return
			}
			cause := "the disk of this server is full"
			if n.isOld() {
				cause = "HTTP error 507" // it shows no more of an answer
			}
			said := err.Error()
			if at := strings.LastIndex(said, "error:"); at < 0 || !strings.Contains(said[at:], cause) {
				t.Errorf("it ends with something else:\n%s", said)
			}
		}
		wantFull(to, addNoise(client, "larger", 40<<20))
		wantFull(s.url+"?compression=xz&compression-level=1", addGrowing(client, "grows", 26<<20))
		if !strings.Contains(s.errors.String(), "no space left on device") {
			t.Errorf("none was refused on its way:\n%s", s.errors)
		}
		fits := addNoise(client, "fits", 12<<20)
		client.run("nix", "copy", "--to", to, fits)
		if health := s.text("health"); health != "ok\n" {
			t.Errorf("with room it says %q", health)
		}
		wantFull(to, addNoise(client, "medium", 13<<20))
		// Small ones fill the rest, so that the catalog has no room for their narinfos either.
		for i := range 400 {
			path := addNoise(client, fmt.Sprint("small-", i), 60_000-i*100)
			if _, err := client.try("nix", "copy", "--to", to, path); err != nil {
				wantFull(to, path)
				break
			}
			if i == 399 {
				t.Error("the disk was never full")
			}
		}
		if health := s.text("health"); !strings.HasPrefix(health, "ok, but the disk is nearly full") {
			t.Errorf("without room it says %q", health)
		}
		if seen := host.run(firnPath, "doctor", s.url, "--path", fits, "--quiet"); !strings.Contains(seen, "warn  room ") || !strings.Contains(seen, "the disk is nearly full") {
			t.Errorf("without room firn doctor says\n%s", seen)
		}
		if !strings.Contains(s.errors.String(), "on the disk of the state directory") {
			t.Errorf("the log does not say what to do:\n%s", s.errors)
		}
		admin(host, "verify")
	})
}

// cutOnce relays connections to a server, and cuts the first one that has sent so many bytes, as a
// server does that is killed. It returns its URL.
func cutOnce(t *testing.T, to string, after int64) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var once sync.Once
	relay := func(client net.Conn) {
		defer client.Close()
		server, err := net.Dial("tcp", strings.TrimPrefix(to, "http://"))
		if err != nil {
			t.Error(err)
			return
		}
		defer server.Close()
		go func() {
			defer server.Close()
			if n, _ := io.Copy(server, io.LimitReader(client, after)); n < after {
				return
			}
			cut := false
			once.Do(func() { cut = true })
			if cut {
				client.Close()
				return
			}
			io.Copy(server, client)
		}()
		io.Copy(client, server)
	}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go relay(client)
		}
	}()
	return "http://" + l.Addr().String()
}

// A push that broke off is done again by the Nix that can. One that sends only the rest ends soon,
// and says what may have been the cause.
func TestPushBreaksOff(t *testing.T) {
	t.Parallel()
	eachNix(t, func(t *testing.T, n nixSystem) {
		host := newMachine(t, systemNix())
		s := startDepot(host)
		client := newMachine(t, n)
		login(client, newToken(host, "ci", "--push", "main"))
		path := addNoise(client, "noise", 8<<20)
		begun := time.Now()
		_, err := client.try("nix", "copy", "--to", cutOnce(t, s.url, 1<<20)+"?compression=none", path)
		if took := time.Since(begun); took > 2*time.Minute {
			t.Errorf("it ended after %v", took)
		}
		said := fmt.Sprint(err)
		said = said[max(0, strings.LastIndex(said, "error:")):]
		switch minor := strings.Split(n.version, ".")[1]; minor {
		case "3": // it shows no more of an answer
			if !strings.Contains(said, "HTTP error 40") {
				t.Errorf("it ends with %s", said)
			}
		case "8":
			if !strings.Contains(said, "if another error came before this one, that is the cause") {
				t.Errorf("it ends with %s", said)
			}
		case "26": // it fails by itself, before it asks again
			if err == nil {
				t.Error("it has sent all of it again")
			}
		default:
			if err != nil {
				t.Error(err)
			}
		}
		client.run("nix", "copy", "--to", s.url+"?compression=none", path) // and again
		admin(host, "verify")
	})
}
