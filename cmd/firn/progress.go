package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

const (
	// barWidth is the length of a progress bar in characters.
	barWidth = 30
	// barInterval and lineInterval are the least time between two drawings of a bar, and between two lines where there is no terminal.
	barInterval, lineInterval = 100 * time.Millisecond, 10 * time.Second
)

// progress shows on standard error how far something is: as a bar on a terminal, else as a line now and then.
type progress struct {
	what     string
	terminal bool
	begun    time.Time

	mu   sync.Mutex
	last time.Time
}

func newProgress(what string) *progress {
	return &progress{what: what, terminal: term.IsTerminal(int(os.Stderr.Fd())), begun: time.Now(), last: time.Now()}
}

// bytes tells how many bytes are done, of how many.
func (p *progress) bytes(done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	interval := lineInterval
	if p.terminal {
		interval = barInterval
	}
	if time.Since(p.last) < interval {
		return
	}
	p.last = time.Now()
	share := float64(done) / float64(max(total, 1))
	rate := size(int64(float64(done) / time.Since(p.begun).Seconds()))
	if !p.terminal {
		fmt.Fprintf(os.Stderr, "%s: %.0f %% of %s, %s/s\n", p.what, 100*share, size(total), rate)
		return
	}
	filled := min(barWidth, int(share*barWidth))
	fmt.Fprintf(os.Stderr, "\r%s [%s%s] %3.0f %% of %s, %s/s \x1b[K", p.what, strings.Repeat("#", filled), strings.Repeat(".", barWidth-filled), 100*share, size(total), rate)
}

// end takes the bar away.
func (p *progress) end() {
	if p.terminal {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
}
