package e2e

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"database/sql"
	"encoding/base64"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	_ "modernc.org/sqlite"

	"firn/internal/cache"
	"firn/internal/sshd"
	"firn/internal/testing/conversation"
)

// recordings is where the conversations are that the tests of internal/session replay.
const recordings = "../internal/session/testdata/conversations"

var record = flag.Bool("record", false, "write the conversations of the Nix versions that there are to "+recordings)

// anyKey lets any key log in.
type anyKey struct{}

func (anyKey) SSHKey(context.Context, ssh.PublicKey, string) (cache.Principal, error) {
	return nil, nil
}
func (anyKey) Used(cache.Principal)          {}
func (anyKey) Failed(netip.Addr)             {}
func (anyKey) Wait(netip.Addr) time.Duration { return 0 }

// A listener hears the conversations that a client has with a cache that is always the same.
type listener struct {
	*sshClient
	server *conversation.Server

	mu    sync.Mutex
	title string
	step  string
	heard map[string]*conversation.Conversation // by the names of their files
	order int
}

// listen starts a server for a machine, which has a key of that name.
func listen(m *machine, name string) *listener {
	m.t.Helper()
	server, err := conversation.NewServer()
	if err != nil {
		m.t.Fatal(err)
	}
	l := &listener{server: server, heard: map[string]*conversation.Conversation{}}
	keys, err := sshd.HostKeys(filepath.Join(m.dir, "state/ssh"), slog.New(slog.DiscardHandler))
	if err != nil {
		m.t.Fatal(err)
	}
	at, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(m.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- sshd.New(anyKey{}, l.answer, sshd.Options{HostKeys: keys}).Serve(ctx, at) }()
	m.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			m.t.Error(err)
		}
	})
	_, port, _ := net.SplitHostPort(at.Addr().String())
	l.sshClient = newSSHClient(m, m, port, sshKey(m, name))
	return l
}

func (l *listener) answer(ctx context.Context, _ *sshd.Login, line string, conn io.ReadWriteCloser) error {
	l.mu.Lock()
	l.order++
	name, title := fmt.Sprintf("%02d-%s.txt", l.order, l.step), l.title
	l.mu.Unlock()
	c, err := l.server.Record(ctx, title, line, conn)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard[name] = c
	return err
}

// on has a machine do something that is called step.
func (l *listener) on(m *machine, step string, args ...string) {
	l.t.Helper()
	title := regexp.MustCompile(regexp.QuoteMeta(l.dir)+`\S*/`).ReplaceAllString(strings.Join(m.nix.words(args), " "), "")
	l.mu.Lock()
	l.step, l.title = step, title
	l.mu.Unlock()
	(&sshClient{m, l.options}).nix(args...)
}

// settle sets when the paths of a machine were registered, which clients tell, to the same time in all recordings.
func settle(m *machine) {
	m.t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(m.root, "nix/var/nix/db/db.sqlite"))
	if err == nil {
		_, err = db.Exec("UPDATE ValidPaths SET registrationTime = 1000000000")
	}
	if err == nil {
		err = db.Close()
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// Each Nix still says what the recording has, so that replaying it without Nix tests what Nix says.
func TestConversations(t *testing.T) {
	t.Parallel()
	eachNix(t, func(t *testing.T, n nixSystem) {
		major := regexp.MustCompile(`^\d+\.\d+`).FindString(n.version)
		source := newMachine(t, n)
		file := source.write("file", "a file\n")
		a := source.run("nix-store", "--add", file)
		b, drv := build(source, `dependency = builtins.storePath "`+a+`";`, "echo a log; echo refers to $dependency >$out")
		const attributes = `__contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";`
		build(source, attributes, "echo content-addressed >$out")
		settle(source)
		signer := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize))
		secret := source.write("secret", "signer-1:"+base64.StdEncoding.EncodeToString(signer))
		for _, scheme := range schemes {
			t.Run(scheme, func(t *testing.T) {
				source.t = t
				l := listen(source, scheme)
				url := scheme + "://main@127.0.0.1"
				trusted := []string{"--option", "trusted-public-keys", l.server.PublicKey()}
				reader := func() *machine { return newMachine(t, n) }
				l.on(source, "push", "nix", "copy", "--to", url, b)
				l.on(source, "push-again", "nix", "copy", "--to", url, b)
				l.on(source, "path-info", "nix", "path-info", "--store", url, "--recursive", b)
				l.on(source, "verify", append([]string{"nix", "store", "verify", "--store", url, b}, trusted...)...)
				info := "info"
				if n.isOld() || strings.HasPrefix(n.version, "2.8") {
					info = "ping"
				}
				l.on(source, info, "nix", "store", info, "--store", url)
				l.on(reader(), "pull", append([]string{"nix", "copy", "--from", url, b}, trusted...)...)
				l.on(reader(), "substitute", append([]string{"nix-store", "--realise", b, "--option", "substituters", url}, trusted...)...)
				if scheme == "ssh" {
					l.on(source, "copy-closure-to", "nix-copy-closure", "--to", "main@127.0.0.1", "--use-substitutes", a)
					l.on(reader(), "copy-closure-from", append([]string{"nix-copy-closure", "--from", "main@127.0.0.1", b}, trusted...)...)
				} else {
					l.on(source, "sign", "nix", "store", "sign", "--store", url, "--key-file", secret, b)
					if !n.isOld() { // which knows neither
						l.on(source, "copy-log", "nix", "store", "copy-log", "--to", url, drv)
						l.on(source, "realisation", "nix", "copy", "--to", url, "--file", filepath.Join(source.dir, "test.nix"))
					}
				}
				l.check(filepath.Join(recordings, "nix-"+major, scheme), n.isOld())
			})
		}
	})
}

// check compares a conversation with its recording, or records it. With anyOrder, what the client said is the same in another order:
// Nix 2.3 asks for what paths refer to on several threads.
func (l *listener) check(dir string, anyOrder bool) {
	l.t.Helper()
	if _, err := os.Stat(dir); err != nil && !*record {
		l.t.Logf("there is no recording of this version of Nix: go test -run TestConversations . -record makes one")
		return
	}
	eventually(l.t, "all conversations have ended", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.heard) == l.order
	})
	if *record {
		if err := os.RemoveAll(dir); err != nil {
			l.t.Fatal(err)
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			l.t.Fatal(err)
		}
	}
	for name, c := range l.heard {
		file := filepath.Join(dir, name)
		if *record {
			if err := os.WriteFile(file, conversation.Format(c), 0o644); err != nil {
				l.t.Fatal(err)
			}
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			l.t.Errorf("%s was not recorded: %v", c.Title, err)
			continue
		}
		recorded, err := conversation.Parse(text)
		if err != nil {
			l.t.Fatal(err)
		}
		got, want := conversation.Lines(c.Said(true)), conversation.Lines(recorded.Said(true))
		if anyOrder {
			slices.Sort(got)
			slices.Sort(want)
		}
		if c.Command != recorded.Command || !slices.Equal(got, want) {
			l.t.Errorf("%s: Nix says something else than was recorded in %s:\n%s", c.Title, file, conversation.Format(c))
		}
	}
	if files, err := filepath.Glob(filepath.Join(dir, "*.txt")); err != nil || len(files) != len(l.heard) {
		l.t.Errorf("there were %d conversations, and %d are recorded, %v", len(l.heard), len(files), err)
	}
}
