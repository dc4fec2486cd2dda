//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// startLimit is how long a server may take until its first answer.
	startLimit = 60 * time.Second
	// startPoll is how long to wait before asking a starting server again.
	startPoll = time.Millisecond
	// stopLimit is how long a server may take to end before it is killed.
	stopLimit = 5 * time.Second
)

// Names of the servers that are always there.
const (
	nginxPlain = "nginx"
	nginxZstd  = "nginx, zstd"
	bareGo     = "bare Go"
	bareZstd   = "bare Go, zstd"
	firnPlain  = "firn"
	firnZstd   = "firn, zstd"
)

// Spec is a competitor: how it is started, and whom it is compared with.
type Spec struct {
	Name     string
	Baseline string // the server that ratios are to; "": this one is a baseline

	// Command makes the command that serves on addr and keeps its own files in dir, which is new and empty.
	// nil for a peer, which runs already.
	Command func(addr netip.AddrPort, dir string) (*exec.Cmd, error)

	// Closure is what it serves, where that is not the closure of the Material.
	Closure []Path

	// Twin tells that narinfos and memory are those of another server, which differs in the NARs that it serves:
	// requests for narinfos per second, and memory with many NARs in flight, are not measured again.
	Twin bool

	// Of a peer.
	URL *url.URL
	PID int // 0: not known, so its CPU time and memory are not measured
}

// Server is a competitor that answers.
type Server struct {
	Spec
	Addr   netip.AddrPort
	Prefix string        // of every path: "" or "/cache"
	Start  time.Duration // from the start of the process to the first answer; 0 for a peer
	begin  time.Time     // of the process
	cmd    *exec.Cmd
	ended  chan error
	dir    string
}

// start starts a server, or finds a peer, and returns once it has answered.
// The files of a started server lie in a new directory below work.
func start(ctx context.Context, client *Client, spec Spec, work string) (*Server, error) {
	if spec.Command == nil {
		return findPeer(ctx, client, spec)
	}
	s, err := launch(spec, work)
	if err == nil {
		err = s.await(ctx, func() error { return s.answer(ctx, client) })
	}
	return s, err
}

// launch starts the process of a server, which may not answer yet.
func launch(spec Spec, work string) (*Server, error) {
	dir, err := os.MkdirTemp(work, "server-")
	if err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	cmd, err := spec.Command(addr, dir)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	// Should this process be killed, its servers end with it. The signal comes when the starting thread ends,
	// which is why main holds on to its thread.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	s := &Server{Spec: spec, Addr: addr, cmd: cmd, ended: make(chan error, 1), dir: dir, begin: time.Now()}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	s.PID = cmd.Process.Pid
	go func() { s.ended <- cmd.Wait() }()
	return s, nil
}

// findPeer asks a running peer once.
func findPeer(ctx context.Context, client *Client, spec Spec) (*Server, error) {
	addr, err := netip.ParseAddrPort(spec.URL.Host)
	if err != nil {
		return nil, fmt.Errorf("peer %s: %w", spec.Name, err)
	}
	s := &Server{Spec: spec, Addr: addr, Prefix: strings.TrimSuffix(spec.URL.Path, "/")}
	if err := s.answer(ctx, client); err != nil {
		return nil, fmt.Errorf("peer %s: %w", spec.Name, err)
	}
	return s, nil
}

// await asks a server until it answers. One that does not is ended.
func (s *Server) await(ctx context.Context, answer func() error) error {
	if err := s.awaitAnswer(ctx, answer); err != nil {
		s.stop()
		return fmt.Errorf("start %s: %w%s", s.Name, err, s.logTail())
	}
	return nil
}

func (s *Server) awaitAnswer(ctx context.Context, answer func() error) error {
	limit := s.begin.Add(startLimit)
	for {
		err := answer()
		if err == nil {
			s.Start = time.Since(s.begin)
			return nil
		}
		if time.Now().After(limit) {
			return fmt.Errorf("no answer in %v: %w", startLimit, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-s.ended:
			s.ended <- err
			return fmt.Errorf("ended at once: %v", err)
		case <-time.After(startPoll):
		}
	}
}

// answer asks for what every cache has.
func (s *Server) answer(ctx context.Context, client *Client) error {
	info := s.get("/nix-cache-info", http.StatusOK, -1)
	_, err := client.Run(ctx, Load{Addr: s.Addr, Connections: 1, Discard: DiscardCopy, Requests: []Request{info}})
	return err
}

// get is a request for a path of the cache.
func (s *Server) get(path string, status int, size int64) Request {
	return newRequest(s.Addr.String(), s.Prefix+path, "", status, size)
}

// measured tells whether the kernel can be asked about the server.
func (s *Server) measured() bool { return s.PID != 0 }

// cpuTime is the CPU time that the server has used; 0 when it is not measured.
func (s *Server) cpuTime() (time.Duration, error) {
	if !s.measured() {
		return 0, nil
	}
	return cpuTime(s.PID)
}

// stop ends the server and removes its files. A peer is left alone.
func (s *Server) stop() {
	if s.cmd == nil {
		return
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-s.ended:
		s.ended <- err
	case <-time.After(stopLimit):
		s.cmd.Process.Kill()
		s.ended <- <-s.ended
	}
}

// logTail is the end of what the server has written, for an error message.
func (s *Server) logTail() string {
	const most = 2 << 10
	text, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil || len(text) == 0 {
		return ""
	}
	return "\n" + string(bytes.TrimSpace(text[max(0, len(text)-most):]))
}

// freeAddr is a loopback address that nobody listens on just now.
func freeAddr() (netip.AddrPort, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort(), nil
}

// nginxSpec is Debian's nginx over the flat files of root, with Debian's settings where they matter here (sendfile, tcp_nopush),
// a worker for each core, and nothing written for a request.
func nginxSpec(name, baseline, root string) Spec {
	return Spec{Name: name, Baseline: baseline, Command: func(addr netip.AddrPort, dir string) (*exec.Cmd, error) {
		conf := filepath.Join(dir, "nginx.conf")
		if err := os.WriteFile(conf, []byte(nginxConf(addr, root, dir)), 0o600); err != nil {
			return nil, err
		}
		return exec.Command(nginxProgram(), "-p", dir, "-c", conf, "-e", "stderr"), nil
	}}
}

func nginxConf(addr netip.AddrPort, root, dir string) string {
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;" // the files are the caller's own, whatever their directory's mode
	}
	return fmt.Sprintf(`daemon off;
%s
worker_processes %d;
pid %s/pid;
error_log stderr warn;
events { worker_connections 1024; }
http {
	sendfile on;
	tcp_nopush on;
	keepalive_timeout 1h;
	keepalive_requests 1000000000;
	access_log off;
	log_not_found off;
	types { }
	default_type application/octet-stream;
	client_body_temp_path %[3]s/body;
	proxy_temp_path %[3]s/proxy;
	fastcgi_temp_path %[3]s/fastcgi;
	uwsgi_temp_path %[3]s/uwsgi;
	scgi_temp_path %[3]s/scgi;
	server {
		listen %[4]s;
		root %[5]s;
	}
}
`, user, runtime.NumCPU(), dir, addr, strconv.Quote(root))
}

// nginxProgram is nginx, which lies outside the search path of ordinary users on Debian.
func nginxProgram() string {
	if path, err := exec.LookPath("nginx"); err == nil {
		return path
	}
	return "/usr/sbin/nginx"
}

// bareSpec is the bare Go server over the flat files of root.
func bareSpec(name, baseline, root string) Spec {
	return Spec{Name: name, Baseline: baseline, Command: func(addr netip.AddrPort, dir string) (*exec.Cmd, error) {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		return exec.Command(self, bareCommand, addr.String(), root), nil
	}}
}

// firnSpec is firn over the live store below root.
func firnSpec(name, baseline, program, root, key string, flags ...string) Spec {
	return Spec{Name: name, Baseline: baseline, Command: func(addr netip.AddrPort, dir string) (*exec.Cmd, error) {
		args := []string{"serve", "--listen", addr.String(), "--store", root, "--state", filepath.Join(dir, "state"), "--key", key}
		cmd := exec.Command(program, append(args, flags...)...)
		cmd.Env = cleanEnvironment()
		return cmd, nil
	}}
}

// buildFirn compiles cmd/firn of the module below root into dir.
func buildFirn(ctx context.Context, root, dir string) (string, error) {
	program := filepath.Join(dir, "firn")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", program, "./cmd/firn")
	cmd.Dir = root
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // so that it removes its own temporary files
	cmd.WaitDelay = stopLimit
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build firn: %w\n%s", err, bytes.TrimSpace(text))
	}
	return program, nil
}

// parsePeer reads NAME=URL or NAME=URL,PID. The URL must be of this machine's loopback: nothing else is ever asked.
func parsePeer(text string) (Spec, error) {
	name, rest, ok := strings.Cut(text, "=")
	if !ok || name == "" {
		return Spec{}, fmt.Errorf("peer %q: want NAME=URL or NAME=URL,PID", text)
	}
	address, pidText, hasPID := strings.Cut(rest, ",")
	spec := Spec{Name: name}
	if hasPID {
		pid, err := strconv.Atoi(pidText)
		if err != nil || pid <= 0 {
			return Spec{}, fmt.Errorf("peer %s: process id %q", name, pidText)
		}
		spec.PID = pid
	}
	u, err := url.Parse(address)
	if err != nil {
		return Spec{}, fmt.Errorf("peer %s: %w", name, err)
	}
	if u.Scheme != "http" || u.RawQuery != "" || u.User != nil {
		return Spec{}, fmt.Errorf("peer %s: URL %q: want http://ADDRESS:PORT[/PREFIX]", name, address)
	}
	host := u.Hostname()
	if host == "localhost" {
		host = "127.0.0.1"
	}
	port := u.Port()
	if port == "" {
		port = "80"
	}
	addr, err := netip.ParseAddrPort(net.JoinHostPort(host, port))
	if err != nil {
		return Spec{}, fmt.Errorf("peer %s: %w", name, err)
	}
	if !addr.Addr().IsLoopback() {
		return Spec{}, errors.New("peer " + name + ": " + addr.String() + " is not a loopback address")
	}
	u.Host = addr.String()
	spec.URL = u
	return spec, nil
}
