package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A tester is a log of which the lines are kept.
type tester struct {
	*testing.T
	*Log
	lines bytes.Buffer
}

func newTester(t *testing.T) *tester {
	r := &tester{T: t}
	r.Log = New(Options{Logger: slog.New(slog.NewTextHandler(&r.lines, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
			return slog.Attr{}
		}
		return a
	}}))})
	return r
}

// want wants these lines, and forgets them.
func (t *tester) want(lines ...string) {
	t.Helper()
	want := ""
	for _, line := range lines {
		want += line + "\n"
	}
	synctest.Wait() // until no goroutine writes
	if got := t.lines.String(); got != want {
		t.Errorf("the log has\n%swant\n%s", got, want)
	}
	t.lines.Reset()
}

// counted returns the counter of a front end and, if that is not empty, a reason.
func (t *tester) counted(name string, end FrontEnd, why Reason) float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(t.Log)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := ""
			for _, l := range m.GetLabel() {
				labels += l.GetValue()
			}
			if f.GetName() == name && labels == string(end)+string(why) {
				return m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("there is no %s of %s %s", name, end, why)
	return 0
}

func client(end FrontEnd, address, name string) Client {
	return Client{FrontEnd: end, Remote: netip.MustParseAddr(address), Name: name, Cache: "main"}
}

// What a token pushes from one address to one cache is one session until a minute has passed since
// its last upload, however long one takes.
func TestSessions(t0 *testing.T) {
	synctest.Test(t0, func(t0 *testing.T) {
		t := newTester(t0)
		ctx, end := context.WithCancel(t.Context())
		go t.Log.Run(ctx)
		ci := client(HTTP, "192.0.2.7", "ci")
		long := t.Join(ci)
		for range 3 {
			s := t.Join(ci)
			s.Read(100)
			s.Received()
			s.Published()
			time.Sleep(50 * time.Second)
			s.End()
		}
		other := t.Join(client(HTTP, "2001:db8::1", "ci"))
		other.Kept()
		other.End()
		other = t.Join(client(HTTP, "2001:db8::2", "ci")) // the same network
		other.Failed()
		other.End()
		asked := t.Join(client(HTTP, "192.0.2.8", "ci")) // pushes nothing
		asked.Read(10)
		asked.End()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		t.want(`msg=pushed front_end=http remote=2001:db8::1 by=ci cache=main paths=0 nars=0 bytes=0 duration=0s others=1 failed=1`)
		time.Sleep(time.Hour)
		long.Read(1)
		long.Received()
		long.End()
		time.Sleep(idle + lookInterval)
		synctest.Wait()
		t.want(`msg=pushed front_end=http remote=192.0.2.7 by=ci cache=main paths=3 nars=4 bytes=301 duration=1h4m30s`)

		s := t.Begin(client(SSH, "192.0.2.7", "builder"))
		s.Published()
		time.Sleep(time.Second)
		s.End()
		t.want(`msg=pushed front_end=ssh remote=192.0.2.7 by=builder cache=main paths=1 nars=0 bytes=0 duration=1s`)
		t.Begin(client(SSH, "192.0.2.7", "builder")).End() // fetched only
		t.want()

		left := t.Join(ci)
		left.Published()
		left.End()
		end()
		synctest.Wait()
		t.want()
		t.Close()
		t.want(`msg=pushed front_end=http remote=192.0.2.7 by=ci cache=main paths=1 nars=0 bytes=0 duration=0s`)
		if got := t.counted("firn_push_sessions_total", HTTP, ""); got != 3 {
			t.Errorf("%v sessions are counted", got)
		}
	})
}

// There are no more sessions than may be, whatever is pushed by how many, and nothing of one that
// makes room for another is lost.
func TestManySessions(t0 *testing.T) {
	synctest.Test(t0, func(t0 *testing.T) {
		t := newTester(t0)
		uploads := t.Join(client(HTTP, "192.0.2.7", "first"))
		uploads.Published()
		for i := range maxSessions {
			time.Sleep(time.Millisecond)
			s := t.Join(client(HTTP, "192.0.2.7", fmt.Sprint("n", i)))
			s.Published()
			s.End()
		}
		if n := len(t.sessions); n != maxSessions {
			t.Errorf("%d sessions are known", n)
		}
		t.want() // the first goes on
		uploads.Published()
		uploads.End()
		t.want(`msg=pushed front_end=http remote=192.0.2.7 by=first cache=main paths=2 nars=0 bytes=0 duration=1.024s`)
		again := t.Join(client(HTTP, "192.0.2.7", "second"))
		again.End()
		t.want(`msg=pushed front_end=http remote=192.0.2.7 by=n0 cache=main paths=1 nars=0 bytes=0 duration=0s`)
		t.Close()
		if n := strings.Count(t.lines.String(), "msg=pushed"); n != maxSessions-1 || len(t.sessions) != 0 {
			t.Errorf("%d lines at the end, and %d sessions are left", n, len(t.sessions))
		}
	})
}

// An address that fails a thousand times has some lines, another address has lines too, and the log
// tells how many were left out.
func TestRefused(t0 *testing.T) {
	synctest.Test(t0, func(t0 *testing.T) {
		t := newTester(t0)
		lines := func() int {
			n := strings.Count(t.lines.String(), "\n")
			t.lines.Reset()
			return n
		}
		flood, beside := client(HTTP, "192.0.2.7", ""), client(SSH, "192.0.2.8", "")
		for range 1000 {
			t.Refused(flood, WrongToken, nil)
		}
		if n := lines(); n != burst {
			t.Errorf("%d lines of 1000", n)
		}
		beside.Cache = `x" remote=192.0.2.9`
		t.Refused(beside, WrongKey, errors.New("no such key\n"))
		t.want(`msg="login refused" front_end=ssh remote=192.0.2.8 reason="wrong key" cache="x\" remote=192.0.2.9" error="no such key\n" unlogged=980`)
		time.Sleep(10 * time.Minute)
		for range 1000 {
			t.Refused(flood, WrongToken, nil)
		}
		if n := lines(); n != 10 {
			t.Errorf("%d lines of 1000 after ten minutes", n)
		}
		// From more addresses than are told apart.
		for i := range 3 * maxAddresses {
			t.Refused(client(HTTP, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String(), ""), TooOften, nil)
			if len(t.refused.sources) > maxAddresses {
				t.Fatalf("%d addresses are known", len(t.refused.sources))
			}
		}
		if n := lines(); n > allBurst {
			t.Errorf("%d lines of %d addresses", n, 3*maxAddresses)
		}
		time.Sleep(time.Minute)
		if t.counted("firn_logins_refused_total", HTTP, WrongToken) != 2000 ||
			t.counted("firn_logins_refused_total", SSH, WrongKey) != 1 || t.counted("firn_logins_refused_total", HTTP, TooOften) != 3*maxAddresses {
			t.Error("not all refusals are counted")
		}
		// What a client says of itself has no say in how long a line is.
		huge := client(SSH, "192.0.2.9", strings.Repeat("n", 1<<20))
		huge.Cache = strings.Repeat("\xff", 1<<20)
		t.Refused(huge, MayNotRead, errors.New(strings.Repeat("e", 1<<20)))
		if n := t.lines.Len(); n == 0 || n > 2000 {
			t.Errorf("a line of %d bytes", n)
		}
	})
}

// Nothing that clients of an address do hides from the log that another one there tries tokens or
// keys: one that may not push and does not give up, nor from many addresses.
func TestRefusedBeside(t0 *testing.T) {
	synctest.Test(t0, func(t0 *testing.T) {
		t := newTester(t0)
		http, ssh := client(HTTP, "192.0.2.7", ""), client(SSH, "192.0.2.7", "")
		for range 1000 {
			t.Refused(http, MayNotPush, nil)
		}
		for i := range 1000 {
			t.Refused(client(SSH, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String(), ""), MayNotRead, nil)
		}
		t.lines.Reset()
		t.Refused(http, WrongToken, nil)
		t.want(`msg="login refused" front_end=http remote=192.0.2.7 reason="wrong token" cache=main`)
		for range 100 {
			t.Refused(http, WrongToken, nil)
		}
		t.lines.Reset()
		t.Refused(http, TooOften, nil)
		t.want(`msg="login refused" front_end=http remote=192.0.2.7 reason="too many wrong tokens" cache=main unlogged=81`)
		t.Refused(ssh, WrongKey, nil)
		t.want(`msg="login refused" front_end=ssh remote=192.0.2.7 reason="wrong key" cache=main`)
		if a, b := t.counted("firn_access_denied_total", HTTP, MayNotPush), t.counted("firn_access_denied_total", SSH, MayNotRead); a != 1000 || b != 1000 {
			t.Errorf("%v and %v refusals are counted", a, b)
		}
	})
}

// A token that comes over plain HTTP a thousand times is told once an hour for each address.
func TestExposed(t0 *testing.T) {
	synctest.Test(t0, func(t0 *testing.T) {
		t := newTester(t0)
		for range 90 { // minutes
			for range 100 {
				t.Exposed(client(HTTP, "192.0.2.7", ""))
			}
			time.Sleep(time.Minute)
		}
		t.Exposed(client(HTTP, "192.0.2.8", ""))
		for address, want := range map[string]int{"192.0.2.7": 2, "192.0.2.8": 1} {
			if n := strings.Count(t.lines.String(), `front_end=http remote=`+address+` cache=main`); n != want {
				t.Errorf("%d lines of %s, want %d", n, address, want)
			}
		}
	})
}
