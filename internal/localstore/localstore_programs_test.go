//go:build programs

package localstore

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"firn/internal/cache"
	"firn/nix"
)

// register registers paths as `nix-store --register-validity` reads them: path, deriver and references each,
// with a text of its own for every path. It returns the paths.
func (n *nixStore) register(names []string, deriver string, references ...nix.StorePath) []nix.StorePath {
	n.t.Helper()
	var paths []nix.StorePath
	var input strings.Builder
	for i, name := range names {
		path := n.path(string(n.storeDir) + "/" + strings.Repeat("0", 28) + nix.PathHash{19: byte(i + 1)}.String()[:4] + "-" + name)
		if err := os.WriteFile(path.String(), []byte(name), 0o444); err != nil {
			n.t.Fatal(err)
		}
		input.WriteString(path.String() + "\n" + deriver + "\n")
		input.WriteString(strconv.Itoa(len(references)) + "\n")
		for _, ref := range references {
			input.WriteString(ref.String() + "\n")
		}
		paths = append(paths, path)
	}
	n.input(input.String(), "nix-store", "--register-validity", "--reregister")
	return paths
}

func TestPathInfo(t *testing.T) {
	n := newNix(t)
	ref := n.add("ref", "referred to")
	deriver := string(n.storeDir) + "/" + strings.Repeat("1", 32) + "-x.drv"
	paths := n.register([]string{"one"}, deriver, ref)
	secret := n.write("secret", "")
	os.Remove(secret)
	n.run("nix-store", "--generate-binary-cache-key", "test-1", secret, filepath.Join(n.dir, "public"))
	n.run("nix", "store", "sign", "--key-file", secret, paths[0].String())

	s := n.open()
	info, err := s.PathInfo(t.Context(), paths[0].Hash())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{ref.String()}, texts(info.References)); diff != "" {
		t.Errorf("references (-want +got):\n%s", diff)
	}
	if info.Deriver.String() != deriver {
		t.Errorf("deriver is %v, want %v", info.Deriver, deriver)
	}
	if info.RegistrationTime.IsZero() || info.Ultimate || !info.CA.IsZero() {
		t.Errorf("registered %v, ultimate %v, content address %v", info.RegistrationTime, info.Ultimate, info.CA)
	}
	text, err := os.ReadFile(filepath.Join(n.dir, "public"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := nix.ParsePublicKey(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(info.Signatures) != 1 || !key.Verify(info.AppendFingerprint(nil), info.Signatures[0]) {
		t.Errorf("signatures %v are not the one made by Nix", info.Signatures)
	}
}

func texts(paths []nix.StorePath) []string {
	var all []string
	for _, p := range paths {
		all = append(all, p.String())
	}
	return all
}

// Another root is laid out as `nix --store ROOT` does it: its paths are in /nix/store, its files are not.
func TestRoot(t *testing.T) {
	n := newNix(t)
	root := filepath.Join(n.dir, "root")
	path := n.run("nix-store", "--store", root, "--add", n.write("src/hello", "hello\n"))
	s := openStore(t, Options{Root: root})
	hash := parsePath(t, nix.DefaultStoreDir, path).Hash()
	info, err := s.PathInfo(t.Context(), hash)
	if err != nil {
		t.Fatal(err)
	}
	nar, err := s.OpenNAR(t.Context(), info)
	if err != nil {
		t.Fatal(err)
	}
	defer nar.Close()
	var got bytes.Buffer
	if err := nar.WriteRange(t.Context(), &got, 0, nar.Size()); err != nil {
		t.Fatal(err)
	}
	if want := n.run("nix-store", "--dump", root+path); got.String() != want {
		t.Errorf("the NAR has %d bytes, and is not that of Nix, of %d", got.Len(), len(want))
	}
	n.run("nix-store", "--store", root, "--gc")
	if _, err := os.Stat(root + path); err != nil {
		t.Errorf("it was collected while it was open: %v", err)
	}
}

// Below another root, files are in nix/store whatever the store directory, and paths may have spaces in their names.
func TestRootWithStoreDir(t *testing.T) {
	const dir nix.StoreDir = "/another/store directory"
	n := newNix(t)
	root := filepath.Join(n.dir, "root")
	cmd := exec.Command("nix-instantiate", "--store", root, "--eval", "--read-write-mode",
		"-E", `let dep = builtins.toFile "dep" "hello"; in "${builtins.toFile "refers" "${dep}\n"} ${dep}"`)
	cmd.Env = append(n.environ(), "NIX_STORE_DIR="+string(dir))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	path, dep, _ := strings.Cut(strings.Trim(string(out), "\"\n"), " "+string(dir))
	dep = string(dir) + dep

	s := openStore(t, Options{Root: root, StoreDir: dir})
	info, err := s.PathInfo(t.Context(), parsePath(t, dir, path).Hash())
	if err != nil {
		t.Fatal(err)
	}
	if want := []nix.StorePath{parsePath(t, dir, dep)}; !slices.Equal(info.References, want) {
		t.Errorf("references are %v, want %v", info.References, want)
	}
	archive, err := s.OpenNAR(t.Context(), info)
	if err != nil {
		t.Fatal(err)
	}
	archive.Close()
}

func parsePath(t *testing.T, dir nix.StoreDir, s string) nix.StorePath {
	t.Helper()
	path, err := dir.ParsePath(s)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// A path that is registered is visible at once, also after it was asked for in vain.
func TestVisibleAtOnce(t *testing.T) {
	n := newNix(t)
	s := n.open()
	if err := waitForFilter(s); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		name := "visible-" + strconv.Itoa(i)
		text := name + " is added while the store is open"
		other := n.run("nix-store", "--add", n.write("src/"+name, text))
		if _, err := s.PathInfo(t.Context(), n.path(other).Hash()); err != nil {
			t.Fatal(err)
		}
		n.run("nix-store", "--delete", other)
		if _, err := s.PathInfo(t.Context(), n.path(other).Hash()); !errors.Is(err, cache.ErrNotFound) {
			t.Fatalf("after it was deleted: %v, want ErrNotFound", err)
		}
		if i%2 == 0 {
			waitForFilter(s) // so that it is the filter that knows of an absent path
		}
	}
}

func TestCloseEndsEverything(t *testing.T) {
	n := newNix(t)
	path := n.add("file", "hello\n")
	before := goleak.IgnoreCurrent()
	s, err := Open(t.Context(), n.options())
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.PathInfo(t.Context(), path.Hash())
	if err != nil {
		t.Fatal(err)
	}
	archive, err := s.OpenNAR(t.Context(), info)
	if err != nil {
		t.Fatal(err)
	}
	archive.Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	goleak.VerifyNone(t, before)
	if _, err := s.PathInfo(context.Background(), path.Hash()); !errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("PathInfo of a closed store: %v, want ErrUnavailable", err)
	}
	if names := n.tempRoots(); len(names) > 0 {
		t.Errorf("it left temporary roots: %v", names)
	}
}
