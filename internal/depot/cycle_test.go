package depot_test

import (
	"bytes"
	"errors"
	"testing"

	"firn/internal/cache"
	"firn/internal/depot"
	"firn/internal/depot/index"
	"firn/nix"
)

// A path that is withheld refers to what it refers to: it may be whole again, and then be part of a
// cycle.
func TestCycleThroughWithheld(tt *testing.T) {
	t := newTester(tt, depot.Options{})
	c, err := cache.New([]cache.Source{t.View}, cache.Options{Sink: cache.SinkOf(t.View), AllowMissingReferences: true})
	if err != nil {
		t.Fatal(err)
	}
	one, two := archive(t, file("", []byte("one"))), archive(t, file("", []byte("two")))
	publish := func(nar []byte, ref []byte) error {
		t.Helper()
		info := infoOf(t, nar)
		info.References = []nix.StorePath{infoOf(t, ref).Path}
		received, err := c.Receive(t.Context(), cache.Upload{NAR: bytes.NewReader(nar)})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Publish(t.Context(), info, received)
		return err
	}
	if err := publish(one, two); err != nil {
		t.Fatal(err)
	}
	there, err := t.catalog.Path(t.Context(), t.record.ID, infoOf(t, one).Path.Hash())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := t.catalog.SetFaults(t.Context(), []index.NARID{there.NAR}, index.Whole, index.Damaged); err != nil {
		t.Fatal(err)
	}
	if err := publish(two, one); !errors.Is(err, cache.ErrInvalid) {
		t.Errorf("Publish of the other half of a cycle: %v, want ErrInvalid", err)
	}
	if _, err := t.catalog.SetFaults(t.Context(), []index.NARID{there.NAR}, index.Damaged, index.Whole); err != nil {
		t.Fatal(err)
	}
	if _, err := c.NARInfo(t.Context(), infoOf(t, two).Path.Hash()); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("NARInfo of the other half: %v, want ErrNotFound", err)
	}
}
