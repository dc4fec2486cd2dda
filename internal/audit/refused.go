package audit

import (
	"net/netip"
	"sync"
	"time"

	"firn/internal/fairlimit"
)

// A Reason is why a client was refused. Its text stays the same: filters of logs rest on it.
type Reason string

// Why a log-in was refused: the client could not say who it is.
const (
	WrongToken       Reason = "wrong token" // unknown, expired or revoked
	WrongCertificate Reason = "wrong certificate"
	WrongKey         Reason = "wrong key"
	TooOften         Reason = "too many wrong tokens"
)

// Why access was denied: the client is known, or gave no credential, and may not do this.
const (
	NoToken    Reason = "no token"
	MayNotRead Reason = "may not read"
	MayNotPush Reason = "may not push"
)

// login reports whether the reason is that of a log-in.
func (r Reason) login() bool {
	switch r {
	case WrongToken, WrongCertificate, WrongKey, TooOften:
		return true
	}
	return false
}

// Lines of refusals are bounded: an address may have burst of them at once, and one every pause, for
// each front end and reason; all addresses together allBurst, and one every allPause. Log-ins and
// denied access have these bounds each for itself: a client that is known, and asks a thousand times
// for what it may not do, hides no one who guesses tokens, and fail2ban sees these. What is not
// logged is counted, in /metrics and in the next line of its kind.
const (
	burst, pause       = 20, time.Minute
	allBurst, allPause = 200, time.Second
	// maxAddresses bounds the addresses that are told apart, each with a front end and a reason. With
	// more all begin again; the bound for all together stays.
	maxAddresses = 4096
)

// Refused logs, and counts, that a client was refused. err says more, and may be nil.
func (l *Log) Refused(c Client, why Reason, err error) {
	c = c.bounded()
	counters, lines := l.metrics.denied, &l.denied
	text := "access denied"
	if why.login() {
		counters, lines, text = l.metrics.refused, &l.refused, "login refused"
	}
	counters[c.FrontEnd][why].Inc()
	unlogged, ok := lines.take(source{fairlimit.Network(c.Remote), c.FrontEnd, why}, l.now())
	if !ok {
		return
	}
	// In this order: what the client has a say in comes after the address, so that it cannot be
	// taken for that.
	attributes := []any{"front_end", string(c.FrontEnd), "remote", c.remote(), "reason", string(why), "cache", c.Cache}
	if c.Name != "" {
		attributes = append(attributes, "by", c.Name)
	}
	if err != nil {
		attributes = append(attributes, "error", short(err.Error()))
	}
	if unlogged > 0 {
		attributes = append(attributes, "unlogged", unlogged)
	}
	l.log.Info(text, attributes...)
}

// Exposed logs that a client has sent a token over plain HTTP to a server that has HTTPS: once an
// hour for an address.
func (l *Log) Exposed(c Client) {
	c = c.bounded()
	if _, ok := l.exposed.take(source{fairlimit.Network(c.Remote), c.FrontEnd, ""}, l.now()); ok {
		l.log.Warn("a token was sent over plain HTTP, where others on the way can read it: have the client use https, and make it a new token",
			"front_end", string(c.FrontEnd), "remote", c.remote(), "cache", c.Cache)
	}
}

// A source is where lines that are alike come from.
type source struct {
	address  netip.Addr
	frontEnd FrontEnd
	reason   Reason
}

// limits decide which lines are logged.
type limits struct {
	burst int           // of a source
	pause time.Duration // of a source

	mu       sync.Mutex
	sources  map[source]time.Time // when what one has used up is there again
	all      time.Time            // likewise, of all
	unlogged int64                // since the last line
}

// take takes a line for a source. unlogged is how many refusals had none since the last one.
func (l *limits) take(from source, now time.Time) (unlogged int64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sources == nil || len(l.sources) >= maxAddresses {
		l.sources = map[source]time.Time{}
	}
	own, mine := spend(l.sources[from], now, l.burst, l.pause)
	all, ours := spend(l.all, now, allBurst, allPause)
	if !mine || !ours {
		l.unlogged++
		return 0, false
	}
	l.sources[from], l.all = own, all
	unlogged, l.unlogged = l.unlogged, 0
	return unlogged, true
}

// spend adds a pause to a debt, unless that makes it larger than the burst allows.
func spend(owed, now time.Time, burst int, pause time.Duration) (time.Time, bool) {
	if owed.Before(now) {
		owed = now
	}
	owed = owed.Add(pause)
	return owed, owed.Sub(now) <= time.Duration(burst)*pause
}
