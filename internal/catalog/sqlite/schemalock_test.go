package sqlite

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

// TestSchemaLock: while a server shares the lock, a command does not get it alone, and says what to
// do; another server waits until the first has ended.
func TestSchemaLock(t *testing.T) {
	dir, log := t.TempDir(), &strings.Builder{}
	logger := slog.New(slog.NewTextHandler(log, nil))
	running, err := LockForServer(t.Context(), dir, logger)
	if err != nil {
		t.Fatal(err)
	}
	command, err := LockForCommand(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer command.Close()
	if ok, err := command.Alone(); ok || err != nil {
		t.Errorf("beside a server: %v, %v", ok, err)
	}
	command.asked = command.asked.Add(-commandPatience)
	if ok, err := command.Alone(); ok || err == nil || !strings.Contains(err.Error(), "restart that with this firn") {
		t.Errorf("beside a server, after some time: %v, %v", ok, err)
	}
	next, err := LockForServer(t.Context(), dir, logger)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if ok, err := next.Alone(); ok || err != nil || !strings.Contains(log.String(), "waiting for the end of another server") {
		t.Errorf("a server beside another: %v, %v, and logs %s", ok, err, log)
	}
	if err := running.Close(); err != nil {
		t.Fatal(err)
	}
	if ok, err := next.Alone(); !ok || err != nil {
		t.Errorf("after the end of the other: %v, %v", ok, err)
	}
	// A server that starts waits for a process that has the lock alone.
	ctx, cancel := context.WithTimeout(t.Context(), 4*lockPause)
	defer cancel()
	if _, err := LockForServer(ctx, dir, logger); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while the catalog is brought up to date: %v", err)
	}
}
