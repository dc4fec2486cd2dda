//go:build programs

package nix_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"firn/nix"
)

// oracle is the real Nix, with a store of its own in a temporary directory:
// it sees nothing of the machine's store and configuration, and leaves nothing behind.
type oracle struct {
	dir      nix.StoreDir
	home     string
	settings []string // lines of nix.conf
}

// newOracle returns the Nix on PATH, with an empty store.
func newOracle(t testing.TB, settings ...string) *oracle {
	t.Helper()
	for _, program := range []string{"nix", "nix-store", "nix-hash"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("these tests compare with the real Nix: %v; make test brings it", err)
		}
	}
	home := must(filepath.EvalSymlinks(t.TempDir()))
	t.Cleanup(func() { // a store is read-only, which stops all but root from removing it
		_ = filepath.WalkDir(home, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				return os.Chmod(path, 0o755)
			}
			return err
		})
	})
	o := &oracle{dir: must(nix.ParseStoreDir(home + "/store")), home: home, settings: append([]string{
		"experimental-features = nix-command ca-derivations",
		"build-users-group =",
		"sandbox = false",
		"substitute = false",
	}, settings...)}
	o.write(t, "conf/nix.conf", strings.Join(o.settings, "\n")+"\n")
	return o
}

// write writes a file below home, and returns its path.
func (o *oracle) write(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(o.home, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// try runs a program of Nix and returns what it prints; failure is for the caller to judge.
func (o *oracle) try(stdin string, args ...string) (stdout string, err error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"),
		"HOME=" + o.home,
		"TMPDIR=" + o.home,
		"NIX_CONF_DIR=" + o.home + "/conf",
		"NIX_USER_CONF_FILES=",
		"NIX_STORE_DIR=" + string(o.dir),
		"NIX_STATE_DIR=" + o.home + "/state",
		"NIX_LOG_DIR=" + o.home + "/log",
	}
	cmd.Dir = o.home
	cmd.Stdin = strings.NewReader(stdin)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", &nixError{args, stderr.String(), err}
	}
	return string(out), nil
}

type nixError struct {
	args   []string
	stderr string
	err    error
}

func (e *nixError) Error() string {
	return strings.Join(e.args, " ") + ": " + e.err.Error() + "\n" + e.stderr
}

// run is try for what must succeed. The line feed at the end is cut off.
func (o *oracle) run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := o.try("", args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(out, "\n")
}

// nixPathInfo is an entry of nix path-info --json.
type nixPathInfo struct {
	Path             string   `json:"path"`
	NARHash          string   `json:"narHash"`
	NARSize          int64    `json:"narSize"`
	References       []string `json:"references"`
	CA               string   `json:"ca"`
	Deriver          string   `json:"deriver"`
	RegistrationTime int64    `json:"registrationTime"`
	Signatures       []string `json:"signatures"`
	Ultimate         bool     `json:"ultimate"`
	URL              string   `json:"url"`
	DownloadHash     string   `json:"downloadHash"`
	DownloadSize     int64    `json:"downloadSize"`
}

// pathInfos returns what nix path-info --json says with the given arguments.
func (o *oracle) pathInfos(t testing.TB, args ...string) (infos []nixPathInfo) {
	t.Helper()
	out := o.run(t, append([]string{"nix", "path-info", "--json"}, args...)...)
	if strings.HasPrefix(out, "{") { // Nix 2.19 and later: an object by path
		byPath := map[string]nixPathInfo{}
		if err := json.Unmarshal([]byte(out), &byPath); err != nil {
			t.Fatal(err)
		}
		for path, info := range byPath {
			info.Path = path
			infos = append(infos, info)
		}
		return infos
	}
	if err := json.Unmarshal([]byte(out), &infos); err != nil {
		t.Fatal(err)
	}
	return infos
}

// value returns the path info as a value of this package.
func (p nixPathInfo) value(t testing.TB, dir nix.StoreDir) *nix.PathInfo {
	t.Helper()
	info := &nix.PathInfo{
		Path:     must(dir.ParsePath(p.Path)),
		NARHash:  must(nix.ParseHash(p.NARHash)),
		NARSize:  p.NARSize,
		Ultimate: p.Ultimate,
	}
	for _, ref := range p.References {
		info.References = append(info.References, must(dir.ParsePath(ref)))
	}
	info.References = nix.SortPaths(info.References)
	for _, sig := range p.Signatures {
		info.Signatures = append(info.Signatures, must(nix.ParseSignature(sig)))
	}
	if p.CA != "" {
		info.CA = must(nix.ParseContentAddress(p.CA))
	}
	if p.Deriver != "" {
		info.Deriver = must(dir.ParsePath(p.Deriver))
	}
	if p.RegistrationTime != 0 {
		info.RegistrationTime = time.Unix(p.RegistrationTime, 0)
	}
	return info
}

// addClosure adds two paths, the second of which refers to the first and both to themselves,
// that are not content-addressed, and returns them.
func (o *oracle) addClosure(t testing.TB) (lib, prog string) {
	t.Helper()
	lib = string(o.dir) + "/00000000000000000000000000000001-lib"
	prog = string(o.dir) + "/00000000000000000000000000000002-prog"
	o.write(t, "store/"+filepath.Base(lib), "I am "+lib+"\n")
	o.write(t, "store/"+filepath.Base(prog)+"/bin/prog", "I am "+prog+" and use "+lib+"\n")
	// Path, deriver, count of references, references.
	registration := strings.Join([]string{lib, "", "1", lib, prog, "", "2", lib, prog, ""}, "\n")
	if _, err := o.try(registration, "nix-store", "--register-validity"); err != nil {
		t.Fatal(err)
	}
	return lib, prog
}
