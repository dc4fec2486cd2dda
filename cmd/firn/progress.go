package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"firn/internal/transfer"
)

const (
	// barWidth is the length of a progress bar in characters.
	barWidth = 30
	// barInterval and lineInterval are the least time between two drawings of a bar, and between two lines where there is no terminal.
	barInterval, lineInterval = 100 * time.Millisecond, 10 * time.Second
	// retryInterval is the least time between two lines about what failed: when a server is away, all that is asked for fails at once.
	retryInterval = time.Second
	// clearLine takes the bar away.
	clearLine = "\r\x1b[K"
)

// progress shows on standard error how far something is: as a bar on a terminal, else as a line now and then.
type progress struct {
	what     string
	terminal bool
	begun    time.Time

	mu    sync.Mutex
	last  time.Time
	bar   string    // that is on the terminal
	told  time.Time // when what failed was told of last
	until time.Time // when the last of what failed is tried again
}

func newProgress(what string) *progress {
	return &progress{what: what, terminal: term.IsTerminal(int(os.Stderr.Fd())), begun: time.Now(), last: time.Now()}
}

// bytes tells how many bytes are done, of how many.
func (p *progress) bytes(done, total int64) {
	p.show(done, total, func() string {
		return fmt.Sprintf("of %s, %s/s", size(total), p.rate(done))
	})
}

// paths tells how far a transfer is.
func (p *progress) paths(now transfer.Progress) {
	p.show(now.DoneBytes, now.KnownBytes, func() string {
		text := fmt.Sprintf("of %s, %d of %s, %s/s", size(now.KnownBytes), now.Paths, plural(int64(now.Known), "path"), p.rate(now.Bytes))
		if pause := time.Until(p.until); pause > 0 {
			text += fmt.Sprintf(", trying again in %.1f s", pause.Seconds())
		}
		return text
	})
}

// retry tells what failed, and after which pause it is tried again.
func (p *progress) retry(err error, pause time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if until := now.Add(pause); until.After(p.until) {
		p.until = until
	}
	if now.Sub(p.told) < retryInterval {
		return
	}
	p.told = now
	when := "now"
	if pause > 0 {
		when = fmt.Sprintf("in %.1f s", pause.Seconds())
	}
	line := fmt.Sprintf("%s: %v; trying again %s\n", p.what, err, when)
	if p.terminal {
		line = clearLine + line + p.bar
	}
	fmt.Fprint(os.Stderr, line)
}

// rate is how many bytes there were in a second, so far.
func (p *progress) rate(bytes int64) string {
	return size(int64(float64(bytes) / time.Since(p.begun).Seconds()))
}

// show shows that a part of the whole is done, if it is time for that, with the rest of the line.
func (p *progress) show(done, total int64, rest func() string) {
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
	share := min(1, max(0, float64(done)/float64(max(total, 1))))
	if !p.terminal {
		fmt.Fprintf(os.Stderr, "%s: %.0f %% %s\n", p.what, 100*share, rest())
		return
	}
	filled := int(share * barWidth)
	p.bar = fmt.Sprintf("%s [%s%s] %3.0f %% %s", p.what, strings.Repeat("#", filled), strings.Repeat(".", barWidth-filled), 100*share, rest())
	fmt.Fprintf(os.Stderr, "\r%s\x1b[K", p.bar)
}

// end takes the bar away.
func (p *progress) end() {
	if p.terminal {
		fmt.Fprint(os.Stderr, clearLine)
	}
}
