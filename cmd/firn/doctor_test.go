package main

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"firn/internal/doctor"
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
