package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/zstd"

	"firn/internal/cache/cachetest"
	"firn/nix"
)

// An admin runs commands on the state of a server that runs.
type admin struct {
	*testing.T
	server *testServer
	state  string
}

func newAdmin(t *testing.T, args ...string) *admin {
	t.Helper()
	state := filepath.Join(t.TempDir(), "state")
	s := startServer(t, environment(t), append([]string{"--state", state, "--store", "off", "--listen", "127.0.0.1:0"}, args...)...)
	return &admin{t, s, state}
}

// command prepares a command.
func (a *admin) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(a.Context(), "firn", append(args, "--state", a.state)...)
	cmd.Env = environment(a.T)
	return cmd
}

// run runs a command and returns what it prints, and its exit code.
func (a *admin) run(args ...string) (stdout string, code int) {
	a.Helper()
	out, err := a.command(args...).Output()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if err != nil && !ok {
		a.Fatal(err)
	}
	if ok {
		a.Logf("firn %v: %s", args, exit.Stderr)
		code = exit.ExitCode()
	}
	return string(out), code
}

// fails runs a command that fails, and returns what it says, and its exit code.
func (a *admin) fails(args ...string) (stderr string, code int) {
	a.Helper()
	_, err := a.command(args...).Output()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		a.Fatalf("firn %v: error %v", args, err)
	}
	return string(exit.Stderr), exit.ExitCode()
}

// said runs a command and returns what it says on standard error.
func (a *admin) said(args ...string) string {
	a.Helper()
	cmd := a.command(args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		a.Fatalf("firn %v: %v: %s", args, err, stderr.String())
	}
	return stderr.String()
}

func (a *admin) mustRun(args ...string) string {
	a.Helper()
	out, code := a.run(args...)
	if code != 0 {
		a.Fatalf("firn %v: exit code %d", args, code)
	}
	return strings.TrimSpace(out)
}

// want sends a request with a token, if that is not empty, and wants a status and, in the body, some text.
func (a *admin) want(method, path, token string, body []byte, status int, text string) {
	a.Helper()
	request, err := http.NewRequestWithContext(a.Context(), method, a.server.url+path, bytes.NewReader(body))
	if err != nil {
		a.Fatal(err)
	}
	if token != "" {
		request.SetBasicAuth("anybody", token)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		a.Fatal(err)
	}
	defer answer.Body.Close()
	got, err := io.ReadAll(answer.Body)
	if err != nil {
		a.Fatal(err)
	}
	if answer.StatusCode != status || !strings.Contains(string(got), text) {
		a.Errorf("%s %s: %s\n%s\nwant %d with %q", method, path, answer.Status, got, status, text)
	}
}

// tag returns the ETag of what is there.
func (a *admin) tag(path, token string) string {
	a.Helper()
	request, err := http.NewRequestWithContext(a.Context(), http.MethodGet, a.server.url+path, nil)
	if err != nil {
		a.Fatal(err)
	}
	request.SetBasicAuth("anybody", token)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		a.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		a.Fatalf("%s: %s", path, answer.Status)
	}
	return answer.Header.Get("ETag")
}

func (a *admin) isOK(path string) bool {
	a.Helper()
	answer, err := http.Get(a.server.url + path)
	if err != nil {
		a.Fatal(err)
	}
	answer.Body.Close()
	return answer.StatusCode == http.StatusOK
}

// push pushes a path to the cache below prefix, and wants a status.
func (a *admin) push(prefix, token string, p cachetest.Path, status int) {
	a.Helper()
	url := cachetest.URL(p.NAR, "")
	info := nix.NARInfo{PathInfo: *p.Info, URL: url, Compression: nix.None, FileHash: p.Info.NARHash, FileSize: p.Info.NARSize}
	a.want(http.MethodPut, prefix+"/"+url, token, p.NAR, status, "")
	a.want(http.MethodPut, prefix+"/"+p.Info.Path.Hash().String()+".narinfo", token, info.AppendText(nil), status, "")
}

func narinfoOf(p cachetest.Path) string { return "/" + p.Info.Path.Hash().String() + ".narinfo" }

// What commands change is so at the next request.
func TestAdmin(t *testing.T) {
	a := newAdmin(t)
	p := cachetest.NewPath(t, nix.DefaultStoreDir, "hello", "hello\n")
	token := a.mustRun("token", "create", "ci", "--push", "main", "--push", "team*")
	reader := a.mustRun("token", "create", "reader", "--read", "*")

	a.push("", "", p, http.StatusUnauthorized)
	a.push("", "firn_wrong", p, http.StatusUnauthorized)
	a.push("", reader, p, http.StatusForbidden)
	a.push("", token, p, http.StatusCreated)
	a.want(http.MethodGet, narinfoOf(p), "", nil, http.StatusOK, "\nSig: "+a.server.keyName()+":")

	a.push("/team", token, p, http.StatusNotFound)
	key := a.mustRun("cache", "create", "team", "--private", "--host", "team.example")
	a.want(http.MethodGet, "/team"+narinfoOf(p), token, nil, http.StatusNotFound, "")
	a.push("/team", token, p, http.StatusCreated)
	name, _, _ := strings.Cut(key, ":")
	a.want(http.MethodGet, "/team"+narinfoOf(p), token, nil, http.StatusOK, "\nSig: "+name+":")
	a.want(http.MethodGet, "/team"+narinfoOf(p), reader, nil, http.StatusOK, "")
	a.want(http.MethodGet, "/team"+narinfoOf(p), "", nil, http.StatusUnauthorized, "firn token create")
	a.mustRun("cache", "set", "team", "--no-private")
	for !a.isOK("/team" + narinfoOf(p)) { // within a moment
		if t.Context().Err() != nil {
			t.Fatal("the cache stays private")
		}
	}

	stats := a.mustRun("stats")
	if got := strings.Fields(strings.Split(stats, "\n")[1])[:3]; fmt.Sprint(got) != "[main 1 1]" || !strings.Contains(stats, "kept in 1 pack,") {
		t.Errorf("the stats are\n%s", stats)
	}
	a.mustRun("cache", "delete", "team", "--yes")
	for a.isOK("/team" + narinfoOf(p)) {
		if t.Context().Err() != nil {
			t.Fatal("the cache stays")
		}
	}
	a.want(http.MethodGet, "/team"+narinfoOf(p), token, nil, http.StatusNotFound, "")
	a.mustRun("token", "revoke", "ci")
	a.push("", token, p, http.StatusUnauthorized)

	// A later start knows all of it, and says so.
	again := startServer(t, environment(t), "--state", a.state, "--store", "off", "--listen", "127.0.0.1:0")
	if !strings.Contains(again.announced, " serves what was pushed to it at\n") || strings.Contains(again.announced, "To push to it") {
		t.Errorf("a later start announced\n%s", again.announced)
	}
	if got := again.get(t, narinfoOf(p)); !strings.Contains(got, "StorePath: "+p.Info.Path.String()+"\n") {
		t.Errorf("a later start serves\n%s", got)
	}
}

// A NAR that was uploaded as zstd is served under that name as it is kept: not larger, and with ranges.
func TestUploadedZstd(t *testing.T) {
	a := newAdmin(t)
	p := cachetest.NewPath(t, nix.DefaultStoreDir, "a", strings.Repeat("some text\n", 50_000))
	token := a.mustRun("token", "create", "ci", "--push", "main")
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	file := encoder.EncodeAll(p.NAR, nil)
	info := nix.NARInfo{PathInfo: *p.Info, Compression: nix.Zstd, FileHash: nix.SHA256Sum(sha256.Sum256(file)), FileSize: int64(len(file))}
	info.URL = "nar/" + info.FileHash.Nix32() + ".nar.zst"
	a.want(http.MethodPut, "/"+info.URL, token, file, http.StatusCreated, "")
	if tag := a.tag("/"+info.URL, token); tag != "" {
		t.Errorf("before it is published it has the tag %s, which tells whether another cache has had it all the time", tag)
	}
	a.want(http.MethodPut, narinfoOf(p), token, info.AppendText(nil), http.StatusCreated, "")
	if a.tag("/"+info.URL, token) == "" {
		t.Error("it has no tag, so that no download can be resumed")
	}
	got := a.server.get(t, "/"+info.URL)
	decoder, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Close()
	if archive, err := decoder.DecodeAll([]byte(got), nil); err != nil || !bytes.Equal(archive, p.NAR) || len(got) > len(p.NAR)/10 {
		t.Errorf("got %d bytes of a NAR of %d, %v", len(got), len(p.NAR), err)
	}
}

// What is damaged on disk is found, withheld, and whole once it is pushed again.
func TestVerifyDamage(t *testing.T) {
	a := newAdmin(t)
	p, other := cachetest.NewPath(t, nix.DefaultStoreDir, "a", strings.Repeat("a", 5000)), cachetest.NewPath(t, nix.DefaultStoreDir, "b", "b")
	token := a.mustRun("token", "create", "ci", "--push", "main")
	a.push("", token, p, http.StatusCreated)
	packs, err := filepath.Glob(filepath.Join(a.state, "depot/packs/*/*"))
	if err != nil || len(packs) != 1 {
		t.Fatalf("the packs are %v, %v", packs, err)
	}
	a.push("", token, other, http.StatusCreated)
	if got := a.mustRun("verify"); got != fmt.Sprintf("2 NARs verified, %s: 0 damaged", size(p.Info.NARSize+other.Info.NARSize)) {
		t.Errorf("verify says %q", got)
	}

	pack, err := os.ReadFile(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	broken := bytes.Clone(pack)
	broken[len(broken)-1] ^= 1
	if err := os.WriteFile(packs[0], broken, 0o600); err != nil {
		t.Fatal(err)
	}
	wantDamaged := func(args ...string) {
		t.Helper()
		out, code := a.run(append([]string{"verify"}, args...)...)
		if code != exitDamaged || !strings.Contains(out, p.Info.Path.String()) || strings.Contains(out, other.Info.Path.String()) {
			t.Errorf("verify %v ended with %d and says\n%s", args, code, out)
		}
	}
	wantDamaged()
	if said, _ := a.fails("verify"); !strings.Contains(said, "To stop serving it, run firn verify --repair. To restore it, push it again: nix copy --option narinfo-cache-positive-ttl 0 --to ") {
		t.Errorf("verify advises\n%s", said)
	}
	wantDamaged("--cache", "main", "--json")
	wantDamaged(p.Info.Path.String())
	wantDamaged(p.Info.Path.Hash().String())
	a.mustRun("verify", other.Info.Path.Base())
	wantDamaged("--repair")
	a.want(http.MethodGet, narinfoOf(p), "", nil, http.StatusNotFound, "")
	a.want(http.MethodGet, narinfoOf(other), "", nil, http.StatusOK, "")
	if got := a.mustRun("path", "list", "--withheld"); got != p.Info.Path.String() {
		t.Errorf("path list --withheld says %q", got)
	}
	if got := a.mustRun("path", "list"); got != other.Info.Path.String() {
		t.Errorf("path list says %q", got)
	}

	a.want(http.MethodPut, "/"+cachetest.URL(p.NAR, ""), token, p.NAR, http.StatusCreated, "") // its narinfo is there again with it
	a.want(http.MethodGet, narinfoOf(p), "", nil, http.StatusOK, "")
	a.mustRun("verify")
}

// What is exported can be imported, and is served as it was.
func TestExportImport(t *testing.T) {
	a := newAdmin(t)
	p := cachetest.NewPath(t, nix.DefaultStoreDir, "hello", "hello\n")
	a.push("", a.mustRun("token", "create", "ci", "--push", "main"), p, http.StatusCreated)
	dir := filepath.Join(t.TempDir(), "out")
	if got := a.mustRun("export", dir); got != "exported 1 path of 1" {
		t.Errorf("export says %q", got)
	}
	narinfo, err := os.ReadFile(filepath.Join(dir, narinfoOf(p)))
	if err != nil || string(narinfo) != a.server.get(t, narinfoOf(p)) {
		t.Errorf("exported\n%s\n%v", narinfo, err)
	}

	into := newAdmin(t)
	if got := into.mustRun("import", dir); got != "imported 1 path of 1" {
		t.Errorf("import says %q", got)
	}
	if got := into.mustRun("import", dir); got != "imported 0 paths of 1, 1 were there" {
		t.Errorf("a second import says %q", got)
	}
	into.want(http.MethodGet, narinfoOf(p), "", nil, http.StatusOK, "\nSig: "+into.server.keyName()+":")
}

// Who changes something is told what has changed, in a line that scripts do not see.
func TestSaysWhatWasDone(t *testing.T) {
	a := newAdmin(t)
	key := filepath.Join(t.TempDir(), "id.pub")
	if err := os.WriteFile(key, []byte("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsyR5pL7KWpJ3iuvcMLfGWSrKYyqWTrqEX2Ydh9Z7yM ci\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ command, want string }{
		{"cache create team", "Cache team created. It answers at /team/. Clients have to trust this key:\n"},
		{"cache set team --private --priority 20", "Cache team changed: it is private; its priority is 20.\n"},
		{"cache set team --private", "Cache team unchanged.\n"},
		{"cache set team --host a.example --host b.example --allow-missing-references", "Cache team changed: its host names are a.example, b.example; missing references are allowed.\n"},
		{"sshkey add ci " + key + " --push team --read t*", "SSH key ci: may read t*, push team from now on.\n"},
		{"sshkey revoke ci", "SSH key ci revoked.\n"},
		{"token create --admin team ci", "This is the only time"},
		{"token revoke ci", "Token ci revoked.\n"},
		{"cache delete --yes team", "Cache team deleted, with 0 paths.\n"},
	} {
		if got := a.said(strings.Fields(step.command)...); !strings.HasPrefix(got, step.want) {
			t.Errorf("firn %s says %q, want %q", step.command, got, step.want)
		}
	}
}

// An import says what fails and that it tries again.
func TestImportTellsOfRetries(t *testing.T) {
	a := newAdmin(t)
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == 1 {
			http.Error(w, "later", http.StatusServiceUnavailable)
			return
		}
		http.NotFound(w, r)
	}))
	defer server.Close()
	cmd := exec.CommandContext(t.Context(), "firn", "import", "--state", a.state, server.URL, "/nix/store/1b9p07z77phvv2hf6gm9f28syp39f1ag-hello-2.12")
	cmd.Env = environment(t)
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Error("nothing was there, and it was imported")
	}
	line, _, _ := strings.Cut(string(out), "\n")
	if !strings.HasPrefix(line, "importing: get "+server.URL) || !strings.Contains(line, "503 Service Unavailable; trying again in 0.") {
		t.Errorf("it says\n%s", out)
	}
}

// Where the packs are on a disk that is not mounted, the server runs, serves nothing of the depot
// and changes nothing, and goes on once it is mounted.
func TestPacksNotMounted(t *testing.T) {
	a := newAdmin(t)
	p := cachetest.NewPath(t, nix.DefaultStoreDir, "a", strings.Repeat("a", 5000))
	token := a.mustRun("token", "create", "ci", "--push", "main")
	a.push("", token, p, http.StatusCreated)
	url := "/" + cachetest.URL(p.NAR, "")
	packs := filepath.Join(a.state, "depot/packs")
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	there := func() {
		t.Helper()
		a.want(http.MethodGet, "/health", "", nil, http.StatusOK, "ok")
		a.want(http.MethodGet, url, "", nil, http.StatusOK, "")
		a.want(http.MethodGet, narinfoOf(p), "", nil, http.StatusOK, "StorePath")
		a.want(http.MethodGet, "/metrics", "", nil, http.StatusOK, "\nfirn_depot_there 1\n")
	}
	there()
	move(packs, packs+".away")
	for _, found := range []bool{true, false} { // while it runs, and at its start
		if !found {
			a.server.signal(t, os.Interrupt)
			if err := a.server.wait(); err != nil {
				t.Fatal(err)
			}
			a.server = startServer(t, environment(t), "--state", a.state, "--store", "off", "--listen", "127.0.0.1:0")
		}
		a.want(http.MethodGet, "/health", "", nil, http.StatusServiceUnavailable, "")
		a.want(http.MethodGet, url, "", nil, http.StatusServiceUnavailable, "")
		a.want(http.MethodGet, narinfoOf(p), "", nil, http.StatusServiceUnavailable, "")
		a.want(http.MethodPut, "/"+cachetest.URL([]byte("x"), ""), token, []byte("x"), http.StatusBadRequest, "")
		a.want(http.MethodGet, "/metrics", "", nil, http.StatusOK, "\nfirn_depot_there 0\n")
		if said, code := a.fails("verify", "--repair"); code != 1 || !strings.Contains(said, "mount the disk") {
			t.Errorf("verify ended with %d and says\n%s", code, said)
		}
	}
	move(packs+".away", packs)
	there()
	a.mustRun("verify")
}
