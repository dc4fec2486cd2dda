package session

import (
	"context"
	"errors"
	"net"
	"testing"
)

// A conversation that ends at the moment at which the Nix daemon fails takes nothing else with it.
func TestDaemonFailsAtTheEnd(t *testing.T) {
	for range 1000 {
		ours, theirs := net.Pipe()
		d := &daemon{conn: ours}
		ctx, cancel := context.WithCancel(t.Context())
		if err := d.ask(ctx, func() error { cancel(); return errors.New("it fails") }); err == nil {
			t.Error("it did not fail")
		}
		theirs.Close()
	}
}
