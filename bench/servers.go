//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const (
	// startLimit is how long a server may take until its first answer.
	startLimit = 60 * time.Second
	// startPoll is how long to wait before a starting server is asked again.
	startPoll = time.Millisecond
	// stopLimit is how long a server may take to end before it is killed.
	stopLimit = 5 * time.Second
)

// A server is a process that answers.
type server struct {
	addr  string
	pid   int
	took  time.Duration // from the start of the process to the first answer
	cmd   *exec.Cmd
	ended chan error
	dir   string
}

// A command returns the command of a server that listens on addr and keeps its own files in dir,
// which is new and empty.
type command func(addr, dir string) *exec.Cmd

// start starts a server and returns once it has answered. If ready is nil, an answer is one to an
// HTTP request for "/plain/nix-cache-info", which only nginx has and to which others say 404.
func (b *bench) start(ctx context.Context, of command, ready func(addr string) error) (*server, error) {
	dir, err := os.MkdirTemp(b.work, "server-")
	if err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := of(addr, dir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = cleanEnvironment()
	// Should this process be killed, its servers end with it. The signal comes when the thread ends
	// that started them, which is why main holds on to its thread.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	s := &server{addr: addr, cmd: cmd, ended: make(chan error, 1), dir: dir}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s.pid = cmd.Process.Pid
	b.servers = append(b.servers, s)
	go func() { s.ended <- cmd.Wait() }()
	if ready == nil {
		ready = answersHTTP
	}
	if err := s.await(ctx, func() error { return ready(addr) }); err != nil {
		s.stop()
		return nil, s.explain(fmt.Errorf("start %s: %w", filepath.Base(cmd.Path), err))
	}
	s.took = time.Since(begin)
	return s, nil
}

func (s *server) await(ctx context.Context, ready func() error) error {
	for limit := time.Now().Add(startLimit); ; {
		err := ready()
		if err == nil || time.Now().After(limit) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-s.ended:
			s.ended <- err
			return fmt.Errorf("it ended at once: %v", err)
		case <-time.After(startPoll):
		}
	}
}

func answersHTTP(addr string) error {
	resp, err := http.Get("http://" + addr + "/plain/nix-cache-info")
	if err == nil {
		resp.Body.Close()
	}
	return err
}

// stop ends the server.
func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-s.ended:
		s.ended <- err
	case <-time.After(stopLimit):
		_ = s.cmd.Process.Kill()
		s.ended <- <-s.ended
	}
}

// explain adds the end of what the server has written to an error.
func (s *server) explain(err error) error {
	const most = 2 << 10
	text, readErr := os.ReadFile(filepath.Join(s.dir, "log"))
	if err == nil || readErr != nil || len(text) == 0 {
		return err
	}
	return fmt.Errorf("%w\n%s", err, bytes.TrimSpace(text[max(0, len(text)-most):]))
}

// freeAddr returns a loopback address that no process listens on just now.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// nginxCommand is nginx over the files of root, with sendfile, a worker for each core, and nothing
// written for a request. Debian sets tcp_nopush too: with it, a pass over all NARs often takes 40 ms
// longer, the time of a delayed ACK, because the end of a first answer waits for one.
func nginxCommand(root string) command {
	return func(addr, dir string) *exec.Cmd {
		conf := filepath.Join(dir, "nginx.conf")
		text := fmt.Sprintf(`daemon off;
user root; # whom the files belong to
worker_processes %d;
pid %s/pid;
error_log stderr warn;
events { worker_connections 1024; }
http {
	sendfile on;
	tcp_nopush off;
	keepalive_timeout 1h;
	keepalive_requests 1000000000;
	access_log off;
	log_not_found off;
	types { }
	default_type application/octet-stream;
	server {
		listen %s;
		root %q;
	}
}
`, runtime.NumCPU(), dir, addr, root)
		// Without its configuration nginx says itself what is wrong.
		_ = os.WriteFile(conf, []byte(text), 0o600)
		return exec.Command(daemon("nginx"), "-p", dir, "-c", conf, "-e", "stderr")
	}
}

// daemon returns the path of a program that lies outside the search path of ordinary users on
// Debian. sshd wants to be called by its full path.
func daemon(name string) string {
	path, err := exec.LookPath(name)
	if err != nil {
		path = "/usr/sbin/" + name
	}
	return path
}

// ownCommand is a server that is this program itself.
func ownCommand(args ...string) command {
	return func(addr, _ string) *exec.Cmd {
		return exec.Command("/proc/self/exe", append([]string{args[0], addr}, args[1:]...)...)
	}
}

// A program is a build of firn.
type program struct {
	column Column
	path   string
}

// serve is firn with a state directory of its own, which is new if state is "".
func (p program) serve(state string, flags ...string) command {
	return func(addr, dir string) *exec.Cmd {
		if state == "" {
			dir = filepath.Join(dir, "state")
		} else {
			dir = state
		}
		return exec.Command(p.path, append([]string{"serve", "--listen", addr, "--state", dir}, flags...)...)
	}
}

// token makes a token for pushing to the cache main of the state directory of a server.
func (p program) token(ctx context.Context, state string) (string, error) {
	cmd := exec.CommandContext(ctx, p.path, "token", "create", "--state", state, "--push", "main", fmt.Sprintf("bench-%d", time.Now().UnixNano()))
	cmd.Env = cleanEnvironment()
	text, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("make a token: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// builds returns the builds of firn that are measured: the one before, if there is one, and that of
// the module below root.
func (b *bench) builds(ctx context.Context) ([]program, error) {
	var all []program
	if b.opts.Before != "" {
		path, err := filepath.Abs(b.opts.Before)
		if err != nil {
			return nil, err
		}
		if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
			source := filepath.Join(b.work, "before")
			const unpack = `mkdir "$1" && git archive --output "$1.tar" "$2" && tar -x -f "$1.tar" -C "$1"`
			if err := runIn(ctx, b.root, "sh", "-c", unpack, "sh", source, b.opts.Before); err != nil {
				return nil, fmt.Errorf("--before %s is no file and no commit: %w", b.opts.Before, err)
			}
			path = filepath.Join(b.work, "firn-before")
			if err := buildFirn(ctx, source, path); err != nil {
				return nil, err
			}
		}
		all = append(all, program{before, path})
	}
	path := b.opts.Firn
	if path == "" {
		path = filepath.Join(b.work, "firn")
		if err := buildFirn(ctx, b.root, path); err != nil {
			return nil, err
		}
	}
	return append(all, program{firn, path}), nil
}

func buildFirn(ctx context.Context, root, program string) error {
	return runIn(ctx, root, "env", "CGO_ENABLED=0", "go", "build", "-trimpath", "-o", program, "./cmd/firn")
}

// runIn runs a command in a directory. An error has what the command says.
func runIn(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = cleanEnvironment()
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // so that it removes its own temporary files
	cmd.WaitDelay = stopLimit
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), errors.Join(err, ctx.Err()), bytes.TrimSpace(text))
	}
	return nil
}

// cleanEnvironment is the environment without what would change how firn and Nix behave.
func cleanEnvironment() []string {
	var env []string
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "FIRN_") && !strings.HasPrefix(entry, "NIX_") {
			env = append(env, entry)
		}
	}
	return env
}
