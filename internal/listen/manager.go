package listen

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

const (
	// startLimit is how long an endpoint may take to answer for the first time. They listen already, so this is for a machine that has much to do.
	startLimit = 10 * time.Second

	// parts is how many times in its interval a watchdog is told that all is well: a quarter may be lost to an endpoint that takes its time.
	parts = 4

	// margin is what an end may take beyond its limit: what is open is closed, and look-ups whose client has gone come to their end.
	margin = 30 * time.Second
)

// A Manager is told what this process is doing. Its methods may be called at once.
type Manager struct {
	log       *slog.Logger
	endpoints []Endpoint // that can be asked, and so are watched
}

// NewManager returns the service manager that started this process, or one that listens to nothing. What it cannot be told is logged;
// a nil logger discards.
func NewManager(log *slog.Logger) *Manager {
	return &Manager{log: cmp.Or(log, slog.New(slog.DiscardHandler))}
}

// tell says something, and reports whether anybody listens.
func (m *Manager) tell(state string) bool {
	listens, err := daemon.SdNotify(false, state)
	if err != nil {
		m.log.Warn("the service manager was not told", "state", state, "error", err)
	}
	return listens && err == nil
}

// Ready says that firn serves, as soon as all endpoints answer. One that cannot be asked, as behind a filter of packets that
// keeps the machine from itself, is logged, and holds up nothing.
// The endpoints that have answered are what Watch asks.
func (m *Manager) Ready(ctx context.Context, endpoints []Endpoint, status string) {
	if !m.tell("STATUS=starting") {
		return
	}
	answers := make([]error, len(endpoints))
	var asked sync.WaitGroup
	for i, d := range endpoints {
		asked.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, startLimit)
			defer cancel()
			answers[i] = d.ask(ctx)
		})
	}
	asked.Wait()
	if ctx.Err() != nil {
		return
	}
	for i, err := range answers {
		if err == nil {
			m.endpoints = append(m.endpoints, endpoints[i])
		} else {
			m.log.Warn("it cannot be told whether an address answers, so the watchdog does not ask it", "error", err)
		}
	}
	m.tell("READY=1\nSTATUS=" + status)
}

// Watch tells the watchdog, as often as that wants to hear it, that all endpoints of Ready answer, until ctx ends.
// While one does not it is told nothing, and in time restarts the process. It returns at once when there is no watchdog.
func (m *Manager) Watch(ctx context.Context) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		m.log.Warn("the watchdog cannot be understood", "error", err)
	}
	if interval == 0 {
		return
	}
	ticker := time.NewTicker(interval / parts)
	defer ticker.Stop()
	for {
		m.tick(ctx, interval/parts)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// tick tells the watchdog once that all is well, if it is.
func (m *Manager) tick(ctx context.Context, limit time.Duration) {
	asking, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for _, d := range m.endpoints {
		if err := d.ask(asking); err != nil && ctx.Err() == nil {
			m.log.Error("this server does not answer; the watchdog ends it if that lasts", "error", err)
			return
		}
	}
	m.tell(daemon.SdNotifyWatchdog)
}

// Reloading says that the settings are being reloaded. The function that it returns says that they were.
func (m *Manager) Reloading() (done func(status string)) {
	m.tell(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec() + "STATUS=reloading the settings")
	return func(status string) { m.tell(daemon.SdNotifyReady + "\nSTATUS=" + status) }
}

// Stopping says that an end has begun, which takes until limit, and more than the manager may think.
func (m *Manager) Stopping(status string, limit time.Duration) {
	m.tell(fmt.Sprintf("%s\n%s\nEXTEND_TIMEOUT_USEC=%d\nSTATUS=%s",
		daemon.SdNotifyStopping, daemon.SdNotifyWatchdog, (limit + margin).Microseconds(), status))
}
