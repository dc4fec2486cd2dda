//go:build linux

package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

const (
	// rateConnections is the number of connections on which narinfo requests per second are counted.
	rateConnections = 64
	// rangeRepeats is how often a run asks for the range at the end of the largest NAR; the run's value is the median.
	rangeRepeats = 30
	// flightConnections is the number of NARs that are in flight at once when memory is measured.
	flightConnections = 256
	// flightHold is how long these NARs are held half sent.
	flightHold = time.Second
	// narinfoRepeats is how often a run asks for all narinfos in sequence; the run's value is the median.
	// One pass is so short that a single interruption would double it.
	narinfoRepeats = 5
	// rateTime is how long requests per second are counted; rateTimeQuick in a quick run.
	rateTime, rateTimeQuick = 700 * time.Millisecond, 200 * time.Millisecond
)

// narConnections are the numbers of connections that all NARs are fetched on.
var narConnections = []int{1, 4, 16, 64}

// What is measured, in the order of the tables.
var (
	metricNARInfos = Metric{Key: "narinfos_s", Title: "all narinfos, 1 connection", Unit: "ms", Scale: 1e3, Digits: 1, Ratio: true}
	metricHits     = Metric{Key: "narinfo_hits_per_s", Title: "narinfo hits, 64 connections", Unit: "1/s", Scale: 1, Higher: true, Ratio: true}
	metricMisses   = Metric{Key: "narinfo_misses_per_s", Title: "narinfo misses, 64 connections", Unit: "1/s", Scale: 1, Higher: true, Ratio: true}
	metricRange    = Metric{Key: "range_first_byte_s", Title: "first byte of a range at the end of the largest NAR", Unit: "ms", Scale: 1e3, Digits: 2, Ratio: true}
	metricSent     = Metric{Key: "nar_bytes", Title: "all NARs as they are sent", Unit: "MB", Scale: 1e-6, Digits: 0, Ratio: true}
	metricCPU      = Metric{Key: "cpu_s", Title: "CPU of the server, one pass", Unit: "s", Scale: 1, Digits: 2, Ratio: true}
	metricClient   = Metric{Key: "client_cpu_s", Title: "CPU of the client, one pass", Unit: "s", Scale: 1, Digits: 2}
	metricAfter    = Metric{Key: "resident_after_bytes", Title: "resident after the passes", Unit: "MB", Scale: 1e-6, Digits: 1}
	metricPeak     = Metric{Key: "resident_peak_bytes", Title: "resident at most", Unit: "MB", Scale: 1e-6, Digits: 1}
	metricFlight   = Metric{Key: "resident_in_flight_bytes", Title: "resident at most, 256 NARs in flight", Unit: "MB", Scale: 1e-6, Digits: 1}
	metricStart    = Metric{Key: "start_s", Title: "start to first answer", Unit: "ms", Scale: 1e3, Digits: 1}
)

// metricNARs is the time of all NARs on n connections.
func metricNARs(n int) Metric {
	title := fmt.Sprintf("all NARs, %d connections", n)
	if n == 1 {
		title = "all NARs, 1 connection"
	}
	return Metric{Key: fmt.Sprintf("nars_%d_s", n), Title: title, Unit: "s", Scale: 1, Digits: 3, Ratio: true}
}

// cpuOf is the key under which the CPU time is recorded that a server takes for a measurement, clientOf that of the client.
func cpuOf(m Metric) string    { return "cpu_of_" + m.Key }
func clientOf(m Metric) string { return "client_cpu_of_" + m.Key }

// metrics are all metrics, in the order of the tables.
func metrics() []Metric {
	all := []Metric{metricNARInfos}
	for _, n := range narConnections {
		all = append(all, metricNARs(n))
	}
	return append(all, metricHits, metricMisses, metricRange, metricSent, metricCPU, metricClient, metricAfter, metricPeak, metricFlight, metricStart)
}

// phase is one measurement of one server.
type phase struct {
	metric Metric
	twins  bool // of twins, too
	run    func(context.Context, *Server, *Target) (float64, error)
}

// shootout is the servers, and what was measured of them.
type shootout struct {
	client   *Client
	discard  Discard
	rateTime time.Duration
	work     string // for the files of servers that are started
	progress func(format string, args ...any)
	plan     *plan
	remarks  []string // what was not measured, and why

	servers []*Server
	targets map[*Server]*Target
	samples Samples
	runs    int // that were made
}

// enter starts a server and verifies what it serves.
func (b *shootout) enter(ctx context.Context, spec Spec, closure []Path) error {
	s, err := start(ctx, b.client, spec, b.work)
	if err != nil {
		return err
	}
	b.servers = append(b.servers, s)
	begin := time.Now()
	t, err := verify(ctx, s, closure)
	if err != nil {
		return fmt.Errorf("verify %s: %w%s", s.Name, err, s.logTail())
	}
	if s.Baseline == "" && s.URL != nil {
		s.Baseline = baselineOf(t)
	}
	b.targets[s] = t
	b.samples.add(s.Name, metricSent.Key, float64(t.NARBytes))
	b.progress("%s: %d paths, %.0f MiB of NARs are right (%.1f s)", s.Name, len(closure), float64(t.NARBytes)/(1<<20), time.Since(begin).Seconds())
	return nil
}

// baselineOf is what a peer is compared with.
func baselineOf(t *Target) string {
	if t.Compression == "zstd" {
		return nginxZstd
	}
	return nginxPlain
}

// leave ends all servers.
func (b *shootout) leave() {
	for _, s := range b.servers {
		s.stop()
	}
}

// phases are what a run measures.
func (b *shootout) phases() []phase {
	all := []phase{{metricNARInfos, true, func(ctx context.Context, s *Server, t *Target) (float64, error) {
		var times []float64
		for range narinfoRepeats {
			v, err := b.seconds(ctx, Load{Addr: s.Addr, Connections: 1, Discard: DiscardCopy, Requests: t.NARInfos})
			if err != nil {
				return 0, err
			}
			times = append(times, v)
		}
		return median(times), nil
	}}}
	for _, n := range narConnections {
		all = append(all, phase{metricNARs(n), true, func(ctx context.Context, s *Server, t *Target) (float64, error) {
			return b.seconds(ctx, Load{Addr: s.Addr, Connections: n, Discard: b.discard, Requests: t.NARs})
		}})
	}
	return append(all,
		phase{metricHits, false, func(ctx context.Context, s *Server, t *Target) (float64, error) {
			return b.rate(ctx, s, t.NARInfos)
		}},
		phase{metricMisses, false, func(ctx context.Context, s *Server, t *Target) (float64, error) {
			return b.rate(ctx, s, t.Misses)
		}},
		phase{metricRange, true, func(ctx context.Context, s *Server, t *Target) (float64, error) {
			times, err := b.client.FirstBytes(ctx, Load{Addr: s.Addr, Discard: DiscardCopy, Requests: slices.Repeat([]Request{t.Range}, rangeRepeats)})
			if err != nil {
				return 0, err
			}
			seconds := make([]float64, len(times))
			for i, d := range times {
				seconds[i] = d.Seconds()
			}
			return median(seconds), nil
		}},
	)
}

// seconds is how long a load takes.
func (b *shootout) seconds(ctx context.Context, load Load) (float64, error) {
	tally, err := b.client.Run(ctx, load)
	return tally.Elapsed.Seconds(), err
}

// rate is the number of requests a second, on many connections.
func (b *shootout) rate(ctx context.Context, s *Server, requests []Request) (float64, error) {
	tally, err := b.client.Run(ctx, Load{Addr: s.Addr, Connections: rateConnections, Discard: DiscardCopy, Requests: requests, Duration: b.rateTime})
	return float64(tally.Requests) / tally.Elapsed.Seconds(), err
}

// run measures every phase once with every server. The servers take turns phase by phase, each time beginning with another,
// so that what else happens on the machine happens to all of them.
func (b *shootout) run(ctx context.Context) error {
	for i, ph := range b.phases() {
		for j := range b.servers {
			s := b.servers[(b.runs+i+j)%len(b.servers)]
			if s.Twin && !ph.twins {
				continue
			}
			if err := b.measure(ctx, ph, s); err != nil {
				return fmt.Errorf("%s: %s: %w%s", s.Name, ph.metric.Title, err, s.logTail())
			}
		}
	}
	for _, s := range b.servers {
		if err := b.summarize(s); err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		if err := b.restart(ctx, s.Spec); err != nil {
			return err
		}
	}
	b.runs++
	return nil
}

// measure makes one measurement, and records the CPU time that server and client took for it.
func (b *shootout) measure(ctx context.Context, ph phase, s *Server) error {
	serverBefore, err := s.cpuTime()
	if err != nil {
		return err
	}
	clientBefore, err := threadTime()
	if err != nil {
		return err
	}
	v, err := ph.run(ctx, s, b.targets[s])
	if err != nil {
		return err
	}
	clientAfter, err := threadTime()
	if err != nil {
		return err
	}
	serverAfter, err := s.cpuTime()
	if err != nil {
		return err
	}
	b.samples.add(s.Name, ph.metric.Key, v)
	b.samples.add(s.Name, clientOf(ph.metric), (clientAfter - clientBefore).Seconds())
	if s.measured() {
		b.samples.add(s.Name, cpuOf(ph.metric), (serverAfter - serverBefore).Seconds())
	}
	b.progress("run %d: %s: %s %s %s", b.runs+1, ph.metric.Title, s.Name, ph.metric.format(v), ph.metric.Unit)
	return nil
}

// summarize records what a run's measurements leave: the CPU time of one pass, and memory.
func (b *shootout) summarize(s *Server) error {
	b.samples.add(s.Name, metricClient.Key, b.onePass(s, clientOf))
	if !s.measured() {
		return nil
	}
	b.samples.add(s.Name, metricCPU.Key, b.onePass(s, cpuOf))
	m, err := memoryOf(s.PID)
	if err != nil {
		return err
	}
	b.samples.add(s.Name, metricAfter.Key, float64(m.Now))
	b.samples.add(s.Name, metricPeak.Key, float64(m.Peak))
	return nil
}

// onePass is the CPU time, recorded under some key, that this run took for one pass:
// for all narinfos in sequence, and for all NARs once (the mean over the numbers of connections).
func (b *shootout) onePass(s *Server, key func(Metric) string) float64 {
	of := func(m Metric) float64 { return b.samples.of(s.Name, key(m))[b.runs] }
	sum := of(metricNARInfos) / narinfoRepeats
	for _, n := range narConnections {
		sum += of(metricNARs(n)) / float64(len(narConnections))
	}
	return sum
}

// restart measures how long a second process of the same kind takes to answer.
func (b *shootout) restart(ctx context.Context, spec Spec) error {
	if spec.Command == nil {
		return nil
	}
	s, err := start(ctx, b.client, spec, b.work)
	if err != nil {
		return err
	}
	s.stop()
	b.samples.add(s.Name, metricStart.Key, s.Start.Seconds())
	return nil
}

// inFlight measures the memory of every server with many NARs in flight: first held half sent, then sent as fast as it goes.
func (b *shootout) inFlight(ctx context.Context) error {
	for _, s := range b.servers {
		if !s.measured() || s.Twin {
			continue
		}
		if err := resetPeak(s.PID); err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		large := b.targets[s].Large
		held := slices.Repeat(large, flightConnections/len(large)+1)[:flightConnections]
		load := Load{Addr: s.Addr, Connections: flightConnections, Discard: b.discard, Requests: held}
		if err := b.client.Hold(ctx, load, func() error { return sleep(ctx, flightHold) }); err != nil {
			return fmt.Errorf("%s: hold %d NARs in flight: %w%s", s.Name, flightConnections, err, s.logTail())
		}
		load.Requests = b.targets[s].NARs
		if _, err := b.client.Run(ctx, load); err != nil {
			return fmt.Errorf("%s: send %d NARs at once: %w%s", s.Name, flightConnections, err, s.logTail())
		}
		m, err := memoryOf(s.PID)
		if err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		b.samples.add(s.Name, metricFlight.Key, float64(m.Peak))
		b.progress("%s: %s %s %s", metricFlight.Title, s.Name, metricFlight.format(float64(m.Peak)), metricFlight.Unit)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
