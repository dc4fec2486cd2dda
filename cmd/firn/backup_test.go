package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"firn/internal/backup"
	"firn/internal/cache/cachetest"
	"firn/nix"
)

// backedUp is what firn backup --json prints.
func (a *admin) backedUp(dir string) (r shownBackup) {
	a.Helper()
	if err := json.Unmarshal([]byte(a.mustRun("backup", "--json", dir)), &r); err != nil {
		a.Fatal(err)
	}
	return r
}

// wantBackup fails unless a backup is whole, and a server that is started on a copy of it serves
// paths and takes a token.
func (a *admin) wantBackup(dir, token string, paths ...cachetest.Path) {
	a.Helper()
	verify := exec.CommandContext(a.Context(), "firn", "verify", "--state", dir)
	verify.Env = environment(a.T)
	if out, err := verify.CombinedOutput(); err != nil {
		a.Fatalf("the backup is not whole: %v\n%s", err, out)
	}
	restored := &admin{T: a.T, state: filepath.Join(a.TempDir(), "restored")}
	if out, err := exec.CommandContext(a.Context(), "cp", "--archive", dir, restored.state).CombinedOutput(); err != nil {
		a.Fatalf("%v\n%s", err, out)
	}
	restored.server = startServer(a.T, environment(a.T), "--state", restored.state, "--store", "off", "--listen", "127.0.0.1:0")
	for _, p := range paths {
		restored.want(http.MethodGet, narinfoOf(p), "", nil, http.StatusOK, "\nSig: "+a.server.keyName()+":")
		restored.want(http.MethodGet, "/"+cachetest.URL(p.NAR, ""), "", nil, http.StatusOK, string(p.NAR))
	}
	restored.push("", token, cachetest.NewPath(a, nix.DefaultStoreDir, "later", unique(a.T)), http.StatusCreated)
	restored.server.signal(a.T, syscall.SIGTERM)
	if err := restored.server.wait(); err != nil {
		a.Errorf("the server on the backup: %v", err)
	}
}

// unique is a text that no client has pushed yet.
func unique(t *testing.T) string { return fmt.Sprint(t.Name(), time.Now().UnixNano()) }

// A backup of a server that runs has all of it. The next one copies what is new, and removes what
// has gone.
func TestBackup(t *testing.T) {
	t.Parallel()
	a := newAdmin(t)
	dir := filepath.Join(t.TempDir(), "backup")
	token := a.mustRun("token", "create", "--push", "main", "ci")
	var paths []cachetest.Path
	for i := range 3 {
		paths = append(paths, cachetest.NewPath(t, nix.DefaultStoreDir, fmt.Sprint("path-", i), fmt.Sprint("contents ", i)))
		a.push("", token, paths[i], http.StatusCreated)
	}
	if err := os.MkdirAll(filepath.Join(a.state, "ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(a.state, "ssh/host"), []byte("a key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(a.state, compressedDir), 0o700); err != nil {
		t.Fatal(err)
	}
	first := a.backedUp(dir)
	if first.Packs != 3 || first.Copied != 3 || first.CopiedBytes != first.PackBytes || first.Removed != 0 || len(first.Missing) != 0 {
		t.Errorf("the first backup: %+v", first)
	}
	for name, mode := range map[string]os.FileMode{"ssh": 0o700 | os.ModeDir, "ssh/host": 0o600, "signing-key.secret": 0o600, "signing-key.public": 0o644, "depot": 0o700 | os.ModeDir, "depot/catalog.db": 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != mode {
			t.Errorf("%s in the backup: %v, %v, want mode %v", name, info, err, mode)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, compressedDir)); err == nil {
		t.Error("the backup has what can be made again")
	}
	a.wantBackup(dir, token, paths...)

	more := cachetest.NewPath(t, nix.DefaultStoreDir, "more", "more")
	a.push("", token, more, http.StatusCreated)
	second := a.backedUp(dir)
	if second.Packs != 4 || second.Copied != 1 || second.Files != 0 {
		t.Errorf("the second backup: %+v", second)
	}
	a.wantBackup(dir, token, append(paths, more)...)

	// A pack that the catalog does not name is of no use.
	stray := filepath.Join(dir, "depot/packs/st/stray")
	if err := os.MkdirAll(filepath.Dir(stray), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stray, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if third := a.backedUp(dir); third.Removed != 1 || third.Copied != 0 {
		t.Errorf("the third backup: %+v", third)
	}
	if out := a.mustRun("backup", dir); !strings.Contains(out, "0 packs copied") {
		t.Errorf("for people it prints %q", out)
	}
}

// A pack that the server has lost is told, and stays in a backup that has it.
func TestBackupOfDamage(t *testing.T) {
	t.Parallel()
	a := newAdmin(t)
	token := a.mustRun("token", "create", "--push", "main", "ci")
	p := cachetest.NewPath(t, nix.DefaultStoreDir, "path", "contents")
	a.push("", token, p, http.StatusCreated)
	dir, late := filepath.Join(t.TempDir(), "backup"), filepath.Join(t.TempDir(), "late")
	a.backedUp(dir)
	packs, err := filepath.Glob(filepath.Join(a.state, "depot/packs/*/*"))
	if err != nil || len(packs) != 1 {
		t.Fatalf("packs: %q, %v", packs, err)
	}
	if err := os.Remove(packs[0]); err != nil {
		t.Fatal(err)
	}
	a.backedUp(dir)
	a.wantBackup(dir, token, p)
	if said, code := a.fails("backup", late); code != exitDamaged || !strings.Contains(said, filepath.Base(packs[0])) || !strings.Contains(said, "firn verify") {
		t.Errorf("with code %d it says %s", code, said)
	}
	if err := os.RemoveAll(filepath.Join(a.state, "depot/packs")); err != nil {
		t.Fatal(err)
	}
	if said, code := a.fails("backup", late); code != exitFailure || !strings.Contains(said, "depot/packs") {
		t.Errorf("without a directory of packs, with code %d, it says %s", code, said)
	}
}

// Nothing is written where something else is.
func TestBackupRefuses(t *testing.T) {
	a := newAdmin(t)
	token := a.mustRun("token", "create", "--push", "main", "ci")
	p := cachetest.NewPath(t, nix.DefaultStoreDir, "path", "contents")
	a.push("", token, p, http.StatusCreated)
	refused := func(dir, want string) {
		t.Helper()
		if said, code := a.fails("backup", dir); code != exitFailure || !strings.Contains(said, want) {
			t.Errorf("to %s, with code %d, it says %s, want %q", dir, code, said, want)
		}
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(a.state, link); err != nil {
		t.Fatal(err)
	}
	const inside = "one of these directories is in the other"
	refused(a.state, inside)
	refused(link, inside)
	refused(filepath.Join(link, "backup"), inside)
	refused(filepath.Join(a.state, "depot", "not", "there"), inside)
	refused(filepath.Dir(a.state), inside)
	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(other, "thesis"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(other, "it is no backup")
	if entries, err := os.ReadDir(other); err != nil || len(entries) != 1 {
		t.Errorf("it has written there: %v, %v", entries, err)
	}
	a.want(http.MethodGet, narinfoOf(p), "", nil, http.StatusOK, "")

	// A backup whose packs are those of the server itself.
	twin := t.TempDir()
	if err := os.WriteFile(filepath.Join(twin, backup.Marker), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(a.state, "depot"), filepath.Join(twin, "depot")); err != nil {
		t.Fatal(err)
	}
	refused(twin, "depot is the same directory in both")

	// A backup that became the state of a server.
	dir := filepath.Join(t.TempDir(), "backup")
	a.backedUp(dir)
	s := startServer(t, environment(t), "--state", dir, "--store", "off", "--listen", "127.0.0.1:0")
	refused(dir, "a server was started on it")
	s.signal(t, syscall.SIGTERM)
	if err := s.wait(); err != nil {
		t.Error(err)
	}
	refused(dir, "a server was started on it")
	if !strings.Contains(s.stderr.String(), "this state directory was a backup") {
		t.Errorf("the server on it says\n%s", s.stderr)
	}

	// So does one that a command changed.
	exported := filepath.Join(t.TempDir(), "exported")
	a.mustRun("export", exported)
	for _, args := range [][]string{
		{"import", exported}, {"cache", "create", "team"}, {"cache", "set", "main", "--private"}, {"token", "create", "--push", "main", "new"}, {"token", "revoke", "ci"},
		{"path", "delete", p.Info.Path.String()},
	} {
		dir := filepath.Join(t.TempDir(), "backup")
		a.backedUp(dir)
		cmd := exec.CommandContext(t.Context(), "firn", append(args, "--state", dir)...)
		cmd.Env = environment(t)
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "this state directory was a backup") {
			t.Errorf("firn %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		refused(dir, "or a command such as firn token create changed it")
	}

	// One that a command only looked at, or could not change, stays a backup.
	dir = filepath.Join(t.TempDir(), "backup")
	a.backedUp(dir)
	for _, args := range [][]string{
		{"import", t.TempDir()}, {"import", "http://127.0.0.1:1"}, {"import", a.server.url},
		{"cache", "list"}, {"token", "list"}, {"path", "list"}, {"stats"}, {"path", "delete", "--dry-run", p.Info.Path.String()},
	} {
		cmd := exec.CommandContext(t.Context(), "firn", append(args, "--state", dir)...)
		cmd.Env = environment(t)
		if out, err := cmd.CombinedOutput(); (err != nil) != (args[0] == "import") {
			t.Errorf("firn %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		a.backedUp(dir)
	}

	// What a first backup that was cut off at once has left is no obstacle.
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "."+backup.Marker+".new"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a.backedUp(dir)
}

// A backup that is killed, at whatever moment, while the server takes what is pushed, leaves one
// that is whole.
func TestBackupKilled(t *testing.T) {
	t.Parallel()
	a := newAdmin(t)
	dir := filepath.Join(t.TempDir(), "backup")
	token := a.mustRun("token", "create", "--push", "main", "ci")
	var paths []cachetest.Path
	push := func() {
		p := cachetest.NewPath(t, nix.DefaultStoreDir, fmt.Sprint("path-", len(paths)), unique(t)+strings.Repeat("x", 1<<16))
		a.push("", token, p, http.StatusCreated)
		paths = append(paths, p)
	}
	push()
	a.backedUp(dir)
	begun := time.Now()
	a.backedUp(dir)
	took := time.Since(begun)
	const rounds = 12
	for round := range rounds {
		push()
		cmd := a.command("backup", dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(took * time.Duration(round) / rounds) // at a moment that nothing decides
		cmd.Process.Kill()
		cmd.Wait()
		verify := exec.CommandContext(t.Context(), "firn", "verify", "--state", dir)
		verify.Env = environment(t)
		if out, err := verify.CombinedOutput(); err != nil {
			t.Fatalf("round %d: the backup is not whole: %v\n%s", round, err, out)
		}
	}
	a.backedUp(dir)
	a.wantBackup(dir, token, paths...)
	left, err := filepath.Glob(filepath.Join(dir, "depot/.*"))
	if err != nil || len(left) > 0 {
		t.Errorf("what was cut off is still there: %q, %v", left, err)
	}
}

// Nothing is pushed to a backup that is being written: it would be gone when that ends.
func TestPushToBackupInUse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backup")
	marker := filepath.Join(dir, backup.Marker)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(marker)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil { // as firn backup does
		t.Fatal(err)
	}
	run := func(args ...string) (string, error) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "firn", append(args, "--state", dir)...)
		cmd.Env = append(environment(t), "SSH_ORIGINAL_COMMAND=nix-store --serve --write")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for _, args := range [][]string{{"import", t.TempDir()}, {"cache", "create", "team"}, {"token", "create", "--push", "main", "ci"}, {"stdio"}, {"serve", "--store", "off", "--listen", "127.0.0.1:0"}} {
		if out, err := run(args...); err == nil || !strings.Contains(out, "firn backup writes to it now") {
			t.Errorf("firn %s: %v\n%s", args[0], err, out)
		}
		if _, err := os.Stat(marker); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if out, _ := run("import", t.TempDir()); strings.Contains(out, "firn backup writes") {
		t.Error(out)
	}
	if _, err := os.Stat(marker); err != nil {
		t.Errorf("after an import from where there is no cache: %v", err)
	}
}
