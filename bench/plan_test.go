//go:build linux

package main

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestPlan(t *testing.T) {
	p := &plan{begin: time.Now(), limit: time.Hour, stages: []stage{
		{"first", 2, time.Minute, time.Minute}, {"second", 3, 20 * time.Minute, 10 * time.Minute}, {"third", 1, 0, 10 * time.Minute},
	}}
	tests := []struct {
		name    string
		done    int
		longest time.Duration
		want    bool
	}{
		{"first", 0, 0, true},
		{"first", 1, 15 * time.Minute, true},
		{"first", 1, 25 * time.Minute, false}, // the others need 40
		{"first", 2, 0, false},
		{"second", 2, 45 * time.Minute, true},
		{"second", 2, 55 * time.Minute, false},
		{"second", 0, 2 * time.Hour, true}, // one is always made
		{"third", 1, 0, false},
		{"fourth", 0, 0, true},
	}
	for _, tt := range tests {
		if got := p.another(tt.name, tt.done, tt.longest); got != tt.want {
			t.Errorf("%s after %d rounds of %v: %v, want %v", tt.name, tt.done, tt.longest, got, tt.want)
		}
	}
	if want := "about 1h3m0s on two cores once everything is prepared (first 180 s in 2 rounds, second 3000 s in 3 rounds, third 600 s)"; p.String() != want {
		t.Errorf("%q, want %q", p, want)
	}
}

// Rounds that there is no time for are not made, and the reader is told.
func TestRounds(t *testing.T) {
	b := &shootout{progress: t.Logf, plan: &plan{begin: time.Now().Add(-time.Hour), limit: time.Minute, stages: []stage{{"pushes", 3, 0, time.Second}}}}
	made := 0
	if err := b.rounds("pushes", func(i int) error { made++; return nil }); err != nil || made != 1 {
		t.Errorf("%d rounds, error %v", made, err)
	}
	if len(b.remarks) != 1 || !strings.HasPrefix(b.remarks[0], "Pushes: 1 of 3 rounds were made") {
		t.Errorf("remarks %q", b.remarks)
	}
	failed := errors.New("failed")
	if err := b.rounds("pushes", func(int) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("error %v", err)
	}
}
