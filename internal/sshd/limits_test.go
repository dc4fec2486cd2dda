package sshd

import (
	"testing"
	"testing/synctest"
	"time"
)

// A connection that waits goes on when another of its key ends, as its share is larger from then on.
func TestShareGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := newLimits(100, 100)
		u, leave := all.join("key")
		defer leave()
		_, leaveOther := all.join("key")
		u.backlog()
		u.received(70)
		waited := make(chan error, 1)
		go func() { waited <- u.wait(time.Hour) }()
		synctest.Wait()
		if len(waited) > 0 {
			t.Fatal("a connection with more than its share does not wait")
		}
		leaveOther()
		if err := <-waited; err != nil {
			t.Errorf("with all of the share of its key it is refused: %v", err)
		}
	})
}
