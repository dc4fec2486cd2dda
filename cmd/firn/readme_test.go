// Walks build a firn of their own, in which no race would be seen.

//go:build programs && !race

package main

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The walk of the README works as it stands, with a store of its own.
func TestReadme(t *testing.T) {
	dir := t.TempDir()
	out := walk(t, "README.md", "NIX_STORE_DIR="+dir+"/store", "NIX_STATE_DIR="+dir+"/var", "NIX_LOG_DIR="+dir+"/log")
	if !strings.Contains(out, "\nSig: demo-1:") {
		t.Errorf("the walk shows no signature:\n%s", out)
	}
}

// So does that of the handbook's page on pushing, which takes a store below a directory: the cache is one of /nix/store.
func TestPushingWalk(t *testing.T) {
	dir := t.TempDir()
	out := walk(t, "docs/pushing.md", "NIX_REMOTE="+dir, "HOME="+dir, "GOCACHE="+goEnv(t, "GOCACHE"), "GOMODCACHE="+goEnv(t, "GOMODCACHE"))
	if strings.Contains(out, "was not pushed") {
		t.Errorf("the hook pushed nothing:\n%s", out)
	}
}

// So does that of the page on SSH.
func TestSSHWalk(t *testing.T) {
	dir := t.TempDir()
	out := walk(t, "docs/ssh.md", "NIX_REMOTE="+dir, "HOME="+dir, "GOCACHE="+goEnv(t, "GOCACHE"), "GOMODCACHE="+goEnv(t, "GOMODCACHE"))
	if !strings.Contains(out, "Permission denied (publickey)") {
		t.Errorf("a revoked key was not refused:\n%s", out)
	}
}

// So does that of the page with questions: only what cache.nixos.org does not have is pushed.
func TestQuestionsWalk(t *testing.T) {
	dir := t.TempDir()
	out := walk(t, "docs/questions.md", "NIX_REMOTE="+dir, "HOME="+dir, "GOCACHE="+goEnv(t, "GOCACHE"), "GOMODCACHE="+goEnv(t, "GOMODCACHE"))
	if strings.Count(out, "\nStorePath: /nix/store/") != 1 || !strings.Contains(out, "-ours\n") {
		t.Errorf("the path was not pushed without what it refers to:\n%s", out)
	}
}

// So does that of the page on TLS.
func TestTLSWalk(t *testing.T) {
	dir := t.TempDir()
	out := walk(t, "docs/tls.md", "NIX_REMOTE="+dir, "HOME="+dir, "GOCACHE="+goEnv(t, "GOCACHE"), "GOMODCACHE="+goEnv(t, "GOMODCACHE"))
	if !strings.Contains(out, "StoreDir: /nix/store") {
		t.Errorf("the server did not answer:\n%s", out)
	}
}

// So does that of the page on proxies.
func TestProxyWalk(t *testing.T) {
	dir := t.TempDir()
	out := walk(t, "docs/behind-a-proxy.md", "NIX_REMOTE="+dir, "HOME="+dir, "GOCACHE="+goEnv(t, "GOCACHE"), "GOMODCACHE="+goEnv(t, "GOMODCACHE"))
	if !strings.Contains(out, "StorePath: /nix/store/") {
		t.Errorf("nothing was pushed:\n%s", out)
	}
}

// So does that of the quick start, which takes a store of its own, too.
func TestQuickStartWalk(t *testing.T) {
	out := walk(t, "docs/quick-start.md", ownStore(t)...)
	if strings.Contains(out, "\nfail ") || strings.Count(out, "\nStorePath: ") != 1 {
		t.Errorf("not what the page says:\n%s", out)
	}
}

// So does that of the page on serving a store.
func TestServingWalk(t *testing.T) {
	out := walk(t, "docs/serving.md", ownStore(t)...)
	if !strings.Contains(out, "copying path") {
		t.Errorf("nothing was fetched:\n%s", out)
	}
}

// So does that of the page on keys.
func TestKeysWalk(t *testing.T) {
	out := walk(t, "docs/keys.md", ownStore(t)...)
	if !strings.Contains(out, "\nSig: cache.example.org-1:") {
		t.Errorf("nothing was signed:\n%s", out)
	}
}

// So does that of the page on moving, with a store below a directory: caches of firn are of /nix/store.
// The store has what is imported, as that of a reader has.
func TestMovingWalk(t *testing.T) {
	dir := t.TempDir()
	out := walk(t, "docs/moving.md", "NIX_REMOTE="+dir, "FIRN_STORE="+dir, "HOME="+dir, "GOCACHE="+goEnv(t, "GOCACHE"), "GOMODCACHE="+goEnv(t, "GOMODCACHE"))
	if !strings.Contains(out, "\nSig: static-1:") || strings.Contains(out, "\nfail ") {
		t.Errorf("not what the page says:\n%s", out)
	}
}

// So does that of the page on backups.
func TestBackupWalk(t *testing.T) {
	dir := t.TempDir()
	out := walk(t, "docs/backup.md", "NIX_REMOTE="+dir, "HOME="+dir, "GOCACHE="+goEnv(t, "GOCACHE"), "GOMODCACHE="+goEnv(t, "GOMODCACHE"))
	for _, want := range []string{"\n1 NAR verified, ", "\nStorePath: /nix/store/"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q:\n%s", want, out)
		}
	}
}

// ownStore are the variables of a Nix that has a store of its own, in a place of its own.
func ownStore(t *testing.T) []string {
	t.Helper()
	dir := t.TempDir()
	return []string{"NIX_STORE_DIR=" + dir + "/store", "NIX_STATE_DIR=" + dir + "/var", "NIX_LOG_DIR=" + dir + "/log"}
}

// So does that of the page on firn doctor.
func TestDoctorWalk(t *testing.T) {
	dir := t.TempDir()
	// Something is built here, by a user with a store of its own.
	if err := os.WriteFile(dir+"/nix.conf", []byte("build-users-group =\nsandbox = false\nsubstituters =\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	out := walk(t, "docs/doctor.md", "NIX_STORE_DIR="+dir+"/store", "NIX_STATE_DIR="+dir+"/var", "NIX_LOG_DIR="+dir+"/log", "HOME="+dir, "NIX_CONF_DIR="+dir, "GOCACHE="+goEnv(t, "GOCACHE"), "GOMODCACHE="+goEnv(t, "GOMODCACHE"))
	if !strings.Contains(out, "fail  signature     signed by") || strings.Count(out, " 0 failed,") != 2 || !strings.Contains(out, "ok    push ") {
		t.Errorf("not what the page says:\n%s", out)
	}
}

// So do those of the pages on moving over from other servers.
func TestNixServeWalk(t *testing.T) {
	dir := t.TempDir()
	out := walk(t, "docs/moving-from-nix-serve.md", "NIX_REMOTE="+dir, "FIRN_STORE="+dir, "HOME="+dir, "GOCACHE="+goEnv(t, "GOCACHE"), "GOMODCACHE="+goEnv(t, "GOMODCACHE"))
	if n := strings.Count(out, "\nSig: cache.example.org-1:"); n != 2 {
		t.Errorf("%d narinfos were signed, want one of each server:\n%s", n, out)
	}
}

func TestHarmoniaWalk(t *testing.T) {
	dir := t.TempDir()
	out := walk(t, "docs/moving-from-harmonia.md", "NIX_REMOTE="+dir, "FIRN_STORE="+dir, "HOME="+dir, "GOCACHE="+goEnv(t, "GOCACHE"), "GOMODCACHE="+goEnv(t, "GOMODCACHE"))
	for _, want := range []string{"\nPriority: 50\n", "\nSig: cache.example.org-1:"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q:\n%s", want, out)
		}
	}
}

// goEnv returns a setting of the go command, which follows from HOME where the environment does not say it.
func goEnv(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "env", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// walkTimeout bounds a walk, which takes seconds. curl, which waits for a server, is patient with one that does not come.
const walkTimeout = 3 * time.Minute

// walk runs the blocks of a page that are marked sh, in one shell, from the root of the repository and on a port that is free.
// It returns what they print.
func walk(t *testing.T, page string, vars ...string) string {
	t.Helper()
	needNix(t)
	text, err := os.ReadFile("../../" + page)
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	script.WriteString("trap 'kill $(jobs -p) $(cat \"$TMPDIR\"/*/pid) 2>/dev/null || true' EXIT\n") // a failed walk leaves no server
	for _, block := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		script.WriteString(block[1])
	}
	const address = "127.0.0.1:5000"
	if n := strings.Count(script.String(), address); n < 3 {
		t.Fatalf("the walk has %s %d times, want it to serve there and to ask there:\n%s", address, n, &script)
	}
	ports := strings.NewReplacer("5000", freePort(t), "2222", freePort(t))

	ctx, cancel := context.WithTimeout(t.Context(), walkTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euxo", "pipefail", "-c", ports.Replace(script.String()))
	cmd.Dir = "../.."
	cmd.Env = append(append(os.Environ(), "TMPDIR="+t.TempDir(), "FIRN_STATE="+t.TempDir()), vars...) // not that of this machine
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) } // with what it waits for
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("the walk failed: %v\n%s", err, out)
	}
	return string(out)
}
