//go:build programs

package main

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"firn/internal/cache/cachetest"
	"firn/internal/doctor"
	"firn/nix"
)

// A patient is a cache that firn doctor is let at, and what this machine's Nix is.
type patient struct {
	*testing.T
	env []string
}

// examine runs firn doctor, and returns what it found, by check, and its exit code.
func (p *patient) examine(args ...string) (map[string]doctor.Finding, int) {
	p.Helper()
	cmd := exec.CommandContext(p.Context(), "firn", append([]string{"doctor", "--json"}, args...)...)
	cmd.Env = p.env
	out, err := cmd.Output()
	if err != nil && cmd.ProcessState == nil {
		p.Fatal(err)
	}
	var report doctorReport
	if err := json.Unmarshal(out, &report); err != nil {
		p.Fatalf("%v\n%s", err, out)
	}
	findings := map[string]doctor.Finding{}
	for _, f := range report.Findings {
		findings[f.Check] = f
	}
	if n := report.OK + report.Warnings + report.Failed + report.Skipped; n != len(findings) || n == 0 {
		p.Errorf("%d findings of %d checks", n, len(findings))
	}
	return findings, cmd.ProcessState.ExitCode()
}

// wantHealthy examines a cache in which nothing may be wrong. Over HTTP there is no certificate.
func (p *patient) wantHealthy(args ...string) map[string]doctor.Finding {
	p.Helper()
	findings, code := p.examine(args...)
	for name, f := range findings {
		if f.Verdict != doctor.OK && (name != "certificate" || f.Verdict != doctor.Skip) {
			p.Errorf("%s: %s: %s", name, f.Verdict, f.Seen)
		}
	}
	if code != 0 {
		p.Errorf("exit code %d", code)
	}
	return findings
}

// Of firn itself, of its static export behind nginx, and of a server that is not there, firn doctor says what is so,
// with no more to go by than the configuration of Nix.
func TestDoctor(t *testing.T) {
	t.Parallel()
	root, paths := makeStore(t)
	state := filepath.Join(t.TempDir(), "state")
	s := startServer(t, environment(t), "--store", root, "--listen", "127.0.0.1:0", "--state", state)
	_, key, _ := strings.Cut(s.announced, "extra-trusted-public-keys = ")
	key, _, _ = strings.Cut(key, "\n")
	p := &patient{T: t}
	conf := t.TempDir()
	configure := func(urls string) {
		t.Helper()
		text := "extra-substituters = " + urls + "\nextra-trusted-public-keys = " + key + "\n"
		if err := os.WriteFile(filepath.Join(conf, "nix.conf"), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	p.env = environment(t, "NIX_CONF_DIR="+conf, "NIX_REMOTE="+root)

	t.Run("firn", func(t *testing.T) {
		configure(s.url)
		p := &patient{t, p.env}
		findings := p.wantHealthy(s.url)
		if seen := findings["signature"].Seen; !strings.Contains(seen, s.keyName()) && !strings.Contains(seen, "address of its contents") {
			t.Errorf("signature: %s", seen)
		}
		p.wantHealthy(s.url, "--path", paths["big"])
		configure("http://elsewhere")
		findings, code := p.examine(s.url, "--path", filepath.Base(paths["small"]), "--no-nar")
		if f := findings["substituters"]; f.Verdict != doctor.Warn || code != 0 {
			t.Errorf("substituters: %s, exit code %d", f.Verdict, code)
		}
		if f := findings["nar"]; f.Verdict != doctor.Skip {
			t.Errorf("nar: %s: %s", f.Verdict, f.Seen)
		}
	})

	t.Run("nginx", func(t *testing.T) {
		static := filepath.Join(t.TempDir(), "cache")
		run := exec.CommandContext(t.Context(), "firn", "export", "--state", state, static, paths["big"], paths["small"])
		run.Env = environment(t, "FIRN_STORE="+root)
		if out, err := run.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		url := "http://127.0.0.1:" + serveStatic(t, static)
		configure(url)
		(&patient{t, p.env}).wantHealthy(url, "--path", paths["big"])
	})

	t.Run("for people", func(t *testing.T) {
		cmd := exec.CommandContext(t.Context(), "firn", "doctor", "http://127.0.0.1:1")
		cmd.Env = p.env
		out, err := cmd.Output()
		const want = `ok    name          127.0.0.1 is an address
fail  connect       127.0.0.1:1 does not answer: connection refused
                    -> is the server running`
		if err == nil || cmd.ProcessState.ExitCode() != 1 || !strings.HasPrefix(string(out), want) || !strings.Contains(string(out), "skip  certificate   nothing answers at the host (so too with the") {
			t.Errorf("exit code %d, %s", cmd.ProcessState.ExitCode(), out)
		}
	})
}

// For a token of a private cache firn doctor tells a wrong name from a wrong token, whether it may
// push, and does not say that all is well where it has not looked. It leaves nothing behind.
func TestDoctorRights(t *testing.T) {
	a := newAdmin(t)
	a.mustRun("cache", "create", "team", "--private")
	tokens := map[string]string{
		"reader": a.mustRun("token", "create", "reader", "--read", "team"), "pusher": a.mustRun("token", "create", "pusher", "--push", "team"), "wrong": "firn_wrong",
	}
	path := cachetest.NewPath(t, nix.DefaultStoreDir, "hello", "hello\n")
	a.push("/team", tokens["pusher"], path, http.StatusCreated)
	before := a.mustRun("stats", "--cache", "team") + a.mustRun("path", "list", "--long", "--cache", "team")
	run := func(env []string, args ...string) (string, int) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "firn", append([]string{"doctor"}, args...)...)
		cmd.Env = append(environment(t, "NIX_CONF_DIR="+t.TempDir(), "NIX_REMOTE="+t.TempDir()), env...)
		out, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	netrc := func(text string) string {
		file := filepath.Join(t.TempDir(), "netrc")
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	host := strings.TrimPrefix(a.server.url, "http://")
	known := "--path=" + path.Info.Path.String()
	trusted := "--trusted-public-keys=" + a.mustRun("cache", "show", "team", "--json")
	_, trusted, _ = strings.Cut(trusted, "\"publicKeys\": [\n    \"")
	trusted, _, _ = strings.Cut(trusted, "\"")
	trusted = "--trusted-public-keys=" + trusted
	for _, test := range []struct {
		what  string
		netrc string
		cache string
		args  []string
		code  int
		want  []string
	}{
		{"a right token", "machine 127.0.0.1 login ci password " + tokens["reader"], "team", []string{known}, 0, []string{"ok    credentials", " 0 failed"}},
		{"a wrong name", "machine 127.0.0.1 login ci password " + tokens["reader"], "taem", []string{known}, 1, []string{
			`fail  cache-info    nix-cache-info: 403 Forbidden, and the server says "there is no cache of this name that this token may read`,
			"fail  credentials   the server knows the password, but does not let it read this\n", "is the name of the cache in the URL right?"}},
		{"a wrong token", "machine 127.0.0.1 login ci password " + tokens["wrong"], "team", []string{known}, 1, []string{
			`the server says "this token is not known, has expired, or was revoked`, "fail  credentials   the server does not take the password"}},
		{"a port", "machine " + host + " login ci password " + tokens["reader"], "team", []string{known}, 1, []string{"warn  netrc ", "know no ports", "write machine 127.0.0.1, without the port"}},
		{"no login", "machine 127.0.0.1 password " + tokens["reader"], "team", []string{known}, 0, []string{"warn  netrc ", `has no login for "machine 127.0.0.1"`}},
		{"no path", "machine 127.0.0.1 login ci password " + tokens["reader"], "team", nil, 4, []string{" 0 failed", "firn: nothing failed, but whether clients will be fine is not known", "--path"}},
		{"may push", "machine 127.0.0.1 login ci password " + tokens["pusher"], "team", []string{known, "--push"}, 0, []string{"ok    push          this password may push"}},
		{"may not push", "machine 127.0.0.1 login ci password " + tokens["reader"], "team", []string{known, "--push"}, 1, []string{
			`fail  push          it may not push: 403 Forbidden, and the server says "this token may not push here`}},
		{"may push to another", "machine 127.0.0.1 login ci password " + tokens["pusher"], "main", []string{known, "--push"}, 1, []string{"fail  push "}},
	} {
		out, code := run(nil, append([]string{a.server.url + "/" + test.cache, "--netrc-file", netrc(test.netrc), trusted}, test.args...)...)
		if code != test.code {
			t.Errorf("%s: exit code %d, want %d\n%s", test.what, code, test.code, out)
		}
		for _, want := range test.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: want %q\n%s", test.what, want, out)
			}
		}
		for _, token := range tokens {
			if strings.Contains(out, token) {
				t.Errorf("%s: shows a token\n%s", test.what, out)
			}
		}
	}
	if after := a.mustRun("stats", "--cache", "team") + a.mustRun("path", "list", "--long", "--cache", "team"); after != before {
		t.Errorf("left behind is\n%s\nbefore it was\n%s", after, before)
	}

	// What failed is easy to see: last, alone with --quiet, and in colour on a terminal.
	file := netrc("machine 127.0.0.1 login ci password " + tokens["reader"])
	args := []string{a.server.url + "/team", "--netrc-file", file, trusted, known, "--push"}
	out, _ := run(nil, args...)
	_, last, _ := strings.Cut(out, " skipped\n")
	if strings.Count(last, "fail  ") != 1 || !strings.HasPrefix(last, "\nfail  push ") || strings.Contains(out, "\x1b") {
		t.Errorf("at the end is %q of\n%s", last, out)
	}
	out, code := run(nil, append(args, "--quiet")...)
	if lines := strings.Split(out, "\n"); code != 1 || strings.Count(out, "fail  ") != 1 || strings.Contains(out, "ok  ") || strings.Contains(out, "skip") || len(lines) > 8 {
		t.Errorf("quiet is\n%s", out)
	}
	terminal := func(env ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "script", "--quiet", "--command", "firn doctor '"+strings.Join(args, "' '")+"'", os.DevNull)
		cmd.Env = append(environment(t, "TERM=xterm", "NIX_CONF_DIR="+t.TempDir(), "NIX_REMOTE="+t.TempDir()), env...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	if out := terminal(); !strings.Contains(out, "\x1b[1;31mfail\x1b[0m  push ") || !strings.Contains(out, "\x1b[32mok  \x1b[0m  ") {
		t.Errorf("on a terminal:\n%q", out)
	}
	if out := terminal("NO_COLOR=1"); strings.Contains(out, "\x1b") {
		t.Errorf("on a terminal with NO_COLOR:\n%q", out)
	}
}

// serveStatic serves a directory with Debian's nginx, and returns the port.
func serveStatic(t *testing.T, dir string) string {
	t.Helper()
	port, home := freePort(t), t.TempDir()
	temp := ""
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		temp += kind + "_temp_path " + home + ";\n"
	}
	config := filepath.Join(home, "nginx.conf")
	text := "daemon off;\npid " + home + "/pid;\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\n" + temp +
		"server { listen 127.0.0.1:" + port + ";\nlocation / { root " + dir + "; } }\n}\n"
	if os.Getuid() == 0 {
		text = "user root;\n" + text
	}
	if err := os.WriteFile(config, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/sbin/nginx", "-p", home, "-c", config)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	})
	for range 500 {
		if conn, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
			conn.Close()
			return port
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("nginx does not listen")
	return ""
}
