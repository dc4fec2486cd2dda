package conversation

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"io"
	"sync"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/internal/session"
	"firn/nix"
)

// A Server answers for a cache in memory, empty at first, that signs with a key that is always the same: the same questions get the same answers.
type Server struct{ cache *cache.Cache }

// NewServer returns a Server.
func NewServer() (*Server, error) {
	secret := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	key, err := nix.ParseSecretKey("conversation-1:" + base64.StdEncoding.EncodeToString(secret))
	if err != nil {
		return nil, err
	}
	sink := cachetest.NewMemory()
	c, err := cache.New([]cache.Source{sink}, cache.Options{Sink: cache.SinkOf(sink), Keys: []nix.SecretKey{key}})
	return &Server{c}, err
}

// PublicKey is the key that clients have to trust.
func (s *Server) PublicKey() string { return s.cache.PublicKeys()[0].String() }

// Serve has a conversation.
func (s *Server) Serve(ctx context.Context, command string, conn io.ReadWriteCloser) error {
	parsed, err := session.ParseCommand(command)
	if err != nil {
		return err
	}
	return session.Serve(ctx, conn, parsed, session.Options{
		Name:    "main",
		Cache:   func(context.Context) (*cache.Cache, error) { return s.cache, nil },
		Who:     func(context.Context) (cache.Principal, error) { return pusher{}, nil },
		Version: "firn",
	})
}

// A pusher may do anything.
type pusher struct{}

func (pusher) Name() string                  { return "pusher" }
func (pusher) May(cache.Rights, string) bool { return true }

// Record has a conversation, and returns what was said.
func (s *Server) Record(ctx context.Context, title, command string, conn io.ReadWriteCloser) (*Conversation, error) {
	r := &recorder{ReadWriteCloser: conn, c: Conversation{Title: title, Command: command}}
	err := s.Serve(ctx, command, r)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.c.Error = err.Error()
	}
	return &r.c, err
}

// A recorder is a connection that writes down what is said on it.
type recorder struct {
	io.ReadWriteCloser
	mu sync.Mutex
	c  Conversation
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.ReadWriteCloser.Read(p)
	r.note(true, p[:n])
	return n, err
}

func (r *recorder) Write(p []byte) (int, error) {
	r.note(false, p)
	return r.ReadWriteCloser.Write(p)
}

func (r *recorder) note(client bool, said []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(said) > 0 {
		r.c.add(client, said)
	}
}

// Replay has a conversation again with a client that says what it said then, and returns what was said now.
func (s *Server) Replay(ctx context.Context, c *Conversation) *Conversation {
	again, _ := s.Record(ctx, c.Title, c.Command, &client{Reader: bytes.NewReader(c.Said(true))}) // its error is a part of it
	return again
}

// A client says something, and does not listen.
type client struct {
	*bytes.Reader
}

func (*client) Write(p []byte) (int, error) { return len(p), nil }
func (*client) Close() error                { return nil }
