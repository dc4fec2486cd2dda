package keyfile

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"firn/nix"

	"github.com/google/go-cmp/cmp"
)

var discard = slog.New(slog.DiscardHandler)

func TestGenerateBothOrNone(t *testing.T) {
	dir := t.TempDir()
	taken := filepath.Join(dir, "taken")
	if err := os.WriteFile(taken, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	dangling := filepath.Join(dir, "dangling")
	if err := os.Symlink(filepath.Join(dir, "nowhere"), dangling); err != nil {
		t.Fatal(err)
	}
	free, missing := filepath.Join(dir, "free"), filepath.Join(dir, "missing", "key")
	for _, test := range []struct {
		name, secret, public string
		want                 error
	}{
		{"k-1", taken, free, fs.ErrExist},
		{"k-1", free, taken, fs.ErrExist},
		{"k-1", free, free, fs.ErrExist},
		{"k-1", free, dangling, fs.ErrExist},
		{"k-1", missing, free, fs.ErrNotExist},
		{"k-1", free, missing, fs.ErrNotExist},
		{"a:b", free, free + ".pub", nil},
		{"", free, free + ".pub", nil},
	} {
		_, err := Generate(test.name, test.secret, test.public)
		if err == nil || test.want != nil && !errors.Is(err, test.want) {
			t.Errorf("Generate(%q, %s, %s): %v, want %v", test.name, test.secret, test.public, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), ".firn-key-") {
			t.Errorf("the error names a temporary file: %v", err)
		}
		if diff := cmp.Diff([]string{"dangling", "taken"}, names(t, dir)); diff != "" {
			t.Errorf("files after a failure (-want +got):\n%s", diff)
		}
	}
	if got := read(t, taken); got != "precious" {
		t.Errorf("the file that was there is now %q", got)
	}
}

func TestLoadErrors(t *testing.T) {
	dir := t.TempDir()
	public := filepath.Join(dir, "public")
	if _, err := Generate("k-1", filepath.Join(dir, "secret"), public); err != nil {
		t.Fatal(err)
	}
	write := func(name, contents string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(contents), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	secret := read(t, filepath.Join(dir, "secret"))
	for _, path := range []string{
		public,
		write("empty", ""),
		write("crlf", secret+"\r\n"),
		write("cut", secret[:len(secret)-4]),
		write("long", secret+strings.Repeat("\n", maxSize)),
		filepath.Join(dir, "absent"),
		dir,
	} {
		key, err := Load(path, discard)
		if err == nil {
			t.Errorf("Load(%s) = %v, want an error", path, key)
			continue
		}
		if !strings.Contains(err.Error(), path) {
			t.Errorf("the error does not name the file: %v", err)
		}
		if strings.Contains(err.Error(), secret[10:40]) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
}

func TestLoadWarnsOfReadableByOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	if _, err := Generate("k-1", path, path+".pub"); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[fs.FileMode]bool{0o600: false, 0o640: false, 0o644: true, 0o604: true} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		if _, err := Load(path, slog.New(slog.NewTextHandler(&log, nil))); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(log.String(), "can read the secret key"); got != want {
			t.Errorf("mode %v: warned %v, want %v: %s", mode, got, want, &log)
		}
	}
}

func TestEnsureRace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "var", "firn")
	var mu sync.Mutex // guards keys and makers
	keys, makers := map[nix.PublicKey]bool{}, 0
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			key, made, err := Ensure(dir, "snow-1", discard)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			keys[key.Public()] = true
			if made {
				makers++
			}
		})
	}
	wg.Wait()
	if len(keys) != 1 || makers != 1 {
		t.Errorf("%d keys, %d made, want one of each", len(keys), makers)
	}
	if diff := cmp.Diff([]string{PublicName, SecretName}, names(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]fs.FileMode{secretMode, publicMode}, []fs.FileMode{mode(t, filepath.Join(dir, SecretName)), mode(t, filepath.Join(dir, PublicName))}); diff != "" {
		t.Errorf("modes (-want +got):\n%s", diff)
	}
	for key := range keys {
		if got := read(t, filepath.Join(dir, PublicName)); got != key.String() {
			t.Errorf("the public key file holds %q, want %q", got, key)
		}
	}
}

func TestEnsureErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Ensure(filepath.Join(file, "state"), "k-1", discard); err == nil {
		t.Error("a state directory below a file: no error")
	}
	if err := os.WriteFile(filepath.Join(dir, SecretName), []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if key, made, err := Ensure(dir, "k-1", discard); err == nil {
		t.Errorf("Ensure with a broken key = %v, %v, want an error", key, made)
	}
	if got := read(t, filepath.Join(dir, SecretName)); got != "broken" {
		t.Errorf("the broken key is now %q", got)
	}
}

// A start with both files writes nothing: the state directory may be read-only by then.
func TestEnsureAgain(t *testing.T) {
	dir, long := t.TempDir(), time.Unix(1_000_000_000, 0)
	first, made, err := Ensure(dir, "snow-1", discard)
	if err != nil || !made {
		t.Fatalf("made %v, %v", made, err)
	}
	if err := os.Chtimes(dir, long, long); err != nil {
		t.Fatal(err)
	}
	again, made, err := Ensure(dir, "snow-2", discard)
	if err != nil || made || again.Public() != first.Public() {
		t.Errorf("a second start has the key %v, made %v, %v; want %v", again.Public(), made, err, first.Public())
	}
	fi, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !fi.ModTime().Equal(long) {
		t.Errorf("a second start wrote to the directory, at %v", fi.ModTime())
	}
	if err := os.Remove(filepath.Join(dir, PublicName)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Ensure(dir, "snow-3", discard); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(dir, PublicName)); got != first.Public().String() {
		t.Errorf("the public key was written anew as %q, want %q", got, first.Public())
	}
}

// What Linux says of a file system without hard links, such as FAT, sounds as if writing were forbidden.
func TestNoHardLinks(t *testing.T) {
	for _, cause := range []error{syscall.EPERM, syscall.EOPNOTSUPP} {
		if err := reason(errors.Join(&os.LinkError{Op: "link", Old: "a", New: "b", Err: cause})); err != errNoLinks {
			t.Errorf("%v is told as %v", cause, err)
		}
	}
}

func TestNameFor(t *testing.T) {
	for hostname, want := range map[string]string{
		"snow":                   "snow-1",
		"snow.example.org":       "snow.example.org-1",
		"a:b c\n":                "a-b-c-1",
		"Schneekanone_ü":         "Schneekanone_-1",
		"":                       "firn-1",
		"::":                     "firn-1",
		strings.Repeat("x", 300): strings.Repeat("x", maxHostname) + "-1",
	} {
		got := NameFor(hostname, "")
		if got != want {
			t.Errorf("NameFor(%q) = %q, want %q", hostname, got, want)
		}
		if _, err := nix.GenerateKey(got); err != nil {
			t.Errorf("NameFor(%q): %v", hostname, err)
		}
	}
}

// Two servers have no keys of one name, whatever caches they have.
func TestNameForCache(t *testing.T) {
	for _, test := range [][3]string{
		{"snow", "team", "snow-team-1"}, {"ice", "team", "ice-team-1"}, {"", "team", "firn-team-1"},
		{strings.Repeat("x", 300), "team", strings.Repeat("x", maxHostname) + "-team-1"},
	} {
		if got := NameFor(test[0], test[1]); got != test[2] {
			t.Errorf("NameFor(%q, %q) = %q, want %q", test[0], test[1], got, test[2])
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Mode().Perm()
}

func names(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
