package depot_test

import (
	"bytes"
	"testing"
	"time"

	"firn/internal/depot"
	"firn/internal/depot/blob/blobtest"
)

// TestPackOfLastWeek: a machine that sleeps, or whose clock is set, between the pack of an upload and its record, wakes with a pack
// that is old and in no record. The sweep that is due then must not take it for an orphan, nor remember it as one.
func TestPackOfLastWeek(tt *testing.T) {
	now := time.Now()
	cat := &interrupted{Catalog: newCatalog(tt)}
	t := newTesterOn(tt, cat, blobtest.NewMemory(), depot.Options{Now: func() time.Time { return now }})
	sleep := func() {
		now = now.Add(7 * 24 * time.Hour)
		if err := t.depot.Tick(t.Context()); err != nil {
			t.Error(err)
		}
	}
	cat.adding = sleep
	nar := archive(t, file("", text(300_000, 1)))
	info := t.push(nar)
	for range 2 {
		n, err := t.OpenNAR(t.Context(), info)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if err := n.WriteRange(t.Context(), &got, 0, n.Size()); err != nil || !bytes.Equal(got.Bytes(), nar) {
			t.Errorf("what was acknowledged is not there: %d bytes of %d, %v", got.Len(), len(nar), err)
		}
		n.Close()
		sleep()
	}
}
