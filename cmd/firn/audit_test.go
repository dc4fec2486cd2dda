package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"firn/internal/cache/cachetest"
	"firn/nix"
)

// An administrator learns from the log, from /metrics and from commands who pushed what, and who
// was refused, over HTTP and over SSH.
func TestAudit(t *testing.T) {
	t.Parallel()
	address := "127.0.0.1:" + freePort(t)
	a := newAdmin(t, "--ssh", address)
	a.mustRun("cache", "create", "team", "--private")
	path := func(name string, size int) cachetest.Path {
		return cachetest.NewPath(t, nix.DefaultStoreDir, name, strings.Repeat("x", size))
	}
	begin := time.Now().Truncate(time.Second)
	ci, reader := a.mustRun("token", "create", "ci", "--push", "*"), a.mustRun("token", "create", "reader", "--read", "*")
	old := a.mustRun("token", "create", "old", "--push", "main")
	a.mustRun("token", "create", "idle", "--push", "main")
	a.mustRun("token", "revoke", "old")
	builder, stranger := a.addKey("builder", "main"), newSigner(t)

	small, large, other := path("zz-small", 10), path("aa-large", 100_000), path("over-ssh", 1000)
	a.push("", ci, small, http.StatusCreated)
	a.push("", ci, large, http.StatusCreated)
	a.push("", ci, large, http.StatusNoContent)
	a.push("/team", ci, small, http.StatusCreated)
	a.want(http.MethodPut, "/team/nar/x.nar", ci, nil, http.StatusBadRequest, "")
	a.push("", reader, other, http.StatusForbidden)
	a.push("", old, other, http.StatusUnauthorized)
	a.want(http.MethodGet, "/team/nix-cache-info", "", nil, http.StatusUnauthorized, "")
	c, err := dialSSH(t, address, "127.0.0.3", "main", builder)
	if err != nil {
		t.Fatal(err)
	}
	if err := pushOver(c, other, bytes.NewReader(other.NAR)); err != nil {
		t.Fatal(err)
	}
	if _, err := dialSSH(t, address, "127.0.0.4", "main", stranger); err == nil {
		t.Error("a stranger has logged in")
	}
	if c, err = dialSSH(t, address, "127.0.0.3", "team", builder); err == nil {
		err = pushOver(c, other, bytes.NewReader(other.NAR))
	}
	if err == nil {
		t.Error("a key was good for another cache")
	}

	metrics := a.server.get(t, "/metrics")
	for _, want := range []string{
		`firn_paths_published_total{front_end="http"} 3`, `firn_paths_published_total{front_end="ssh"} 1`,
		`firn_nars_received_total{front_end="http"} 3`, `firn_nars_received_total{front_end="ssh"} 1`,
		fmt.Sprintf(`firn_upload_bytes_total{front_end="ssh"} %d`, len(other.NAR)),
		`firn_logins_refused_total{front_end="http",reason="wrong token"} 2`, `firn_logins_refused_total{front_end="ssh",reason="wrong key"} 1`,
		`firn_access_denied_total{front_end="http",reason="may not push"} 2`, `firn_access_denied_total{front_end="http",reason="no token"} 1`,
		`firn_access_denied_total{front_end="ssh",reason="may not read"} 1`,
	} {
		if !strings.Contains(metrics, "\n"+want+"\n") {
			t.Errorf("/metrics has no %s", want)
		}
	}

	// The newest path is first, and the largest.
	var listed []listedPath
	parse(t, a.mustRun("path", "list", "--json", "--sort", "time"), &listed)
	if len(listed) != 3 {
		t.Fatalf("%d paths are listed", len(listed))
	}
	by := map[string]string{small.Info.Path.String(): "ci", large.Info.Path.String(): "ci", other.Info.Path.String(): "builder"}
	for i, p := range listed {
		if p.By != by[p.Path] || p.Published.Before(begin) || p.Published.After(time.Now()) || p.NARSize == 0 || p.Served == 0 ||
			i > 0 && p.Published.After(listed[i-1].Published) {
			t.Errorf("listed is %+v", p)
		}
	}
	for order, first := range map[string]nix.StorePath{"size": large.Info.Path, "name": large.Info.Path} {
		if lines := strings.Split(a.mustRun("path", "list", "--sort", order), "\n"); len(lines) != 3 || lines[0] != first.String() {
			t.Errorf("by %s: %q", order, lines)
		}
	}
	if got := a.mustRun("path", "list", "--long", "--cache", "team"); !regexp.MustCompile(`^PUBLISHED +BY +SIZE +SERVED +PATH\n\S+Z  ci  +\d+ B +\d+ B +/nix/store/\S+-zz-small$`).MatchString(got) {
		t.Errorf("path list --long says\n%s", got)
	}

	a.server.signal(t, syscall.SIGTERM)
	if err := a.server.wait(); err != nil {
		t.Fatal(err)
	}
	log := a.server.stderr.String()
	narinfo := `\d+`
	for _, want := range []string{
		`level=INFO msg=pushed front_end=http remote=127\.0\.0\.1 by=ci cache=main paths=2 nars=2 bytes=` + narinfo + ` duration=\S+\n`,
		`level=INFO msg=pushed front_end=http remote=127\.0\.0\.1 by=ci cache=team paths=1 nars=1 bytes=` + narinfo + ` duration=\S+ failed=1\n`,
		fmt.Sprintf(`level=INFO msg=pushed front_end=ssh remote=127\.0\.0\.3 by=builder cache=main paths=1 nars=1 bytes=%d duration=\S+\n`, len(other.NAR)),
		`level=INFO msg="login refused" front_end=http remote=127\.0\.0\.1 reason="wrong token" cache=main error=`,
		`level=INFO msg="login refused" front_end=ssh remote=127\.0\.0\.4 reason="wrong key" cache=main error="SHA256:`,
		`level=INFO msg="access denied" front_end=http remote=127\.0\.0\.1 reason="may not push" cache=main by=reader\n`,
		`level=INFO msg="access denied" front_end=http remote=127\.0\.0\.1 reason="no token" cache=team\n`,
		`level=INFO msg="access denied" front_end=ssh remote=127\.0\.0\.3 reason="may not read" cache=team by=builder\n`,
	} {
		if !regexp.MustCompile(want).MatchString(log) {
			t.Errorf("the log has no %s:\n%s", want, log)
		}
	}
	if n := strings.Count(log, "msg=pushed"); n != 3 {
		t.Errorf("%d sessions are in the log", n)
	}
	if strings.Contains(log, ci) || strings.Contains(log, old) {
		t.Error("a token is in the log")
	}

	// What was used is written at the end of the server at the latest.
	var tokens, keys []shownToken
	parse(t, a.mustRun("token", "list", "--json"), &tokens)
	parse(t, a.mustRun("sshkey", "list", "--json"), &keys)
	for _, shown := range append(tokens, keys...) {
		at, err := time.Parse(time.RFC3339, shown.Used)
		switch {
		case shown.Name == "idle" && shown.Used != "":
			t.Errorf("%s was used at %s", shown.Name, shown.Used)
		case shown.Name != "idle" && (err != nil || at.Before(begin) || at.After(time.Now())):
			t.Errorf("%s was used at %q", shown.Name, shown.Used)
		}
	}
	if got := a.mustRun("token", "list"); !regexp.MustCompile(`(?m)^idle .* never +never$`).MatchString(got) {
		t.Errorf("token list says\n%s", got)
	}

	failed := documentedFilter(t)
	var found []string
	for line := range strings.Lines(log) {
		if match := failed.FindStringSubmatch(line); match != nil {
			found = append(found, match[1])
		}
	}
	if got := strings.Join(found, " "); got != "127.0.0.1 127.0.0.1 127.0.0.4" {
		t.Errorf("fail2ban would find %s", got)
	}
}

// documentedFilter is the filter for fail2ban of the handbook. Its captured group is the address.
func documentedFilter(t *testing.T) *regexp.Regexp {
	t.Helper()
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(`(?m)^failregex = (.*)$`).FindSubmatch(page)
	if match == nil {
		t.Fatal("docs/operations.md has no failregex")
	}
	return regexp.MustCompile(strings.Replace(string(match[1]), "<ADDR>", `([0-9a-fA-F:.]+)`, 1))
}

// The filter takes the lines of files and of the journal, with the time that fail2ban has cut out,
// and nothing that a client has put into another line.
func TestDocumentedFilter(t *testing.T) {
	failed := documentedFilter(t)
	const line = `level=INFO msg="login refused" front_end=http remote=2001:db8::7 reason="wrong token" cache=main`
	for _, good := range []string{line, "time=2026-11-30T21:31:09.123Z " + line, "time= " + line, "time= \t" + line} {
		if match := failed.FindStringSubmatch(good); match == nil || match[1] != "2001:db8::7" {
			t.Errorf("%s: found %q", good, match)
		}
	}
	for _, bad := range []string{
		`level=INFO msg="access denied" front_end=http remote=192.0.2.7 reason="may not push" cache=main by=ci`,
		`level=INFO msg=aborted path="/level=INFO msg=\"login refused\" front_end=http remote=192.0.2.7 reason="`,
		`level=DEBUG msg=answered path="/x level=INFO msg="login refused" front_end=http remote=192.0.2.7 reason=`,
		`level=INFO msg="login refused" front_end=http remote=local reason="wrong token" cache=main`,
	} {
		if match := failed.FindStringSubmatch(bad); match != nil {
			t.Errorf("%s: found %q", bad, match)
		}
	}
}

func parse(t *testing.T, text string, to any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), to); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}
