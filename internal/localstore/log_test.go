//go:build programs

package localstore

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"firn/internal/cache"
)

// The log of a derivation that Nix itself has built.
func TestLogOfNix(t *testing.T) {
	n := newNix(t)
	drv := n.path(n.run("nix-instantiate", "--expr", `derivation { name = "logged"; system = builtins.currentSystem;
		builder = "/bin/sh"; args = [ "-c" "echo this is the log; echo > $out" ]; }`))
	n.run("nix-store", "--realise", drv.String())
	log, err := n.open().OpenLog(t.Context(), drv)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	text, err := io.ReadAll(log)
	if err != nil || string(text) != "this is the log\n" {
		t.Errorf("the log is %q, %v", text, err)
	}
}

func TestLogLayouts(t *testing.T) {
	n := newNix(t)
	s := n.open()
	drv := n.path(string(n.storeDir) + "/" + strings.Repeat("1", 32) + "-built.drv")
	base := drv.Base()
	want := strings.Repeat("a line of the log\n", 100_000) // more than one block of bzip2
	compressed := compressBzip2(t, want)
	for _, test := range []struct {
		name, text, want string
		atLeast          int // bytes of want
	}{
		{"drvs/" + base[:2] + "/" + base[2:], want, want, len(want)},
		{"drvs/" + base, want, want, len(want)},
		{"drvs/" + base, "", "", 0},
		{"drvs/" + base[:2] + "/" + base[2:] + ".bz2", compressed, want, len(want)},
		{"drvs/" + base + ".bz2", compressed, want, len(want)},
		{"drvs/" + base + ".bz2", compressed + compressed, want + want, 2 * len(want)},
		{"drvs/" + base + ".bz2", compressed[:len(compressed)-20], want, 1},
		{"drvs/" + base + ".bz2", compressed + "trailing nonsense", want, len(want)},
		{"drvs/" + base + ".bz2", compressed[:3], "", 0},
		{"drvs/" + base + ".bz2", "", "", 0},
		{"drvs/" + base + ".bz2", "not bzip2", "", 0},
	} {
		path := n.write(filepath.Join("log", test.name), test.text)
		log, err := s.OpenLog(t.Context(), drv)
		if err != nil {
			t.Errorf("%s of %d bytes: %v", test.name, len(test.text), err)
			continue
		}
		got, err := io.ReadAll(log)
		if err != nil || !strings.HasPrefix(test.want, string(got)) || len(got) < test.atLeast {
			t.Errorf("%s of %d bytes: got %d bytes, %v, want %d", test.name, len(test.text), len(got), err, len(test.want))
		}
		if size, known := log.Size(); known && size != int64(len(got)) {
			t.Errorf("%s: Size is %d of %d bytes", test.name, size, len(got))
		}
		log.Close()
		os.Remove(path)
	}
	if _, err := s.OpenLog(t.Context(), drv); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("no log: %v, want ErrNotFound", err)
	}
	n.write("log/drvs/"+base+"/is-a-directory", "")
	if _, err := s.OpenLog(t.Context(), drv); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("a directory in the place of a log: %v, want ErrNotFound", err)
	}
	file := n.add("file", "hello\n")
	n.write("log/drvs/"+file.Base(), "not a log")
	if _, err := s.OpenLog(t.Context(), file); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("the log of what is no derivation: %v, want ErrNotFound", err)
	}
}

// A log that grows while it is read is given as far as it was when it was opened.
func TestLogGrows(t *testing.T) {
	n := newNix(t)
	s := n.open()
	drv := n.path(string(n.storeDir) + "/" + strings.Repeat("1", 32) + "-built.drv")
	path := n.write("log/drvs/"+drv.Base(), "first\n")
	log, err := s.OpenLog(t.Context(), drv)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("second\n"); err != nil {
		t.Fatal(err)
	}
	size, _ := log.Size()
	if got, err := io.ReadAll(log); err != nil || string(got) != "first\n" || size != 6 {
		t.Errorf("got %q, %v, and %d as its size", got, err, size)
	}
}

func compressBzip2(t *testing.T, text string) string {
	t.Helper()
	cmd := exec.Command("bzip2", "-9")
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("bzip2: %v", err)
	}
	return string(out)
}

// Clients that read compressed logs slowly do not fill the memory.
func TestCompressedLogsBounded(t *testing.T) {
	n := newNix(t)
	s := n.open()
	drv := n.path(string(n.storeDir) + "/" + strings.Repeat("1", 32) + "-built.drv")
	n.write("log/drvs/"+drv.Base()+".bz2", compressBzip2(t, "a line\n"))
	var open []cache.Log
	for range maxBzip2 {
		log, err := s.OpenLog(t.Context(), drv)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, log)
	}
	if _, err := s.OpenLog(t.Context(), drv); !errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("one more: %v, want ErrUnavailable", err)
	}
	open[0].Close()
	log, err := s.OpenLog(t.Context(), drv)
	if err != nil {
		t.Errorf("after one was closed: %v", err)
	} else {
		log.Close()
	}
	for _, log := range open[1:] {
		log.Close()
	}
}
