package protocol

import (
	"io"
	"strings"
	"testing"

	"firn/nix"
)

// A landlord has so much room.
type landlord struct{ free, least int }

func (l *landlord) room() (done func(), ok bool) {
	if l.free == 0 {
		return nil, false
	}
	l.free--
	l.least = min(l.least, l.free)
	return func() { l.free++ }, true
}

func (p *peer) wantFree(l *landlord, want int) {
	p.Helper()
	if l.free != want {
		p.Errorf("%d are free, want %d", l.free, want)
	}
}

// What one client says of itself takes no more memory than it may have, and as much as it may is understood.
func TestRoom(t0 *testing.T) {
	long := "/nix/store/" + strings.Repeat("a", maxPath-len("/nix/store/"))
	// Each says something of several megabytes: several MiB of it are taken, and then no more.
	for name, say := range map[string]func(t *peer){
		"references": func(t *peer) {
			t.put(opAddToStoreNar)
			t.putPath(pathA)
			t.putString("")
			t.putString(infoOf(pathA, narA).NARHash.Base16())
			t.put(maxPaths)
		},
		"derived paths": func(t *peer) { t.put(opQueryMissing, maxStrings) },
		"signatures":    func(t *peer) { t.put(opAddSignatures); t.putPath(pathA); t.put(maxSigs) },
		"paths":         func(t *peer) { t.put(opQueryValidPaths, maxPaths) },
	} {
		t0.Run(name, func(t0 *testing.T) {
			l := &landlord{free: 3, least: 3}
			t := talkWorker(t0, filled(), Options{Memory: l.room}, 38)
			text := long
			if name == "paths" {
				text = pathA.String()
			}
			go func() { // which ends when the connection is closed
				say(t)
				for t.err == nil {
					t.putString(text)
				}
			}()
			hear := newWire(struct {
				io.Reader
				io.Writer
			}{t.conn, io.Discard})
			if tag := hear.uint(); tag != stderrError {
				t0.Fatalf("the server says %#x", tag)
			}
			hear.string(maxPath)
			hear.uint()
			hear.string(maxPath)
			if got := hear.string(maxText); !strings.Contains(got, "ask for less") {
				t0.Errorf("the client is told %q, %v", got, hear.err)
			}
			t.conn.Close()
			if err := <-t.ended; err == nil || l.least != 0 || l.free != 3 {
				t0.Errorf("it ended with %v, and of 3 there were %d at the least and %d in the end", err, l.least, l.free)
			}
		})
	}
}

// A question that is large is understood where there is room for it, which is given back with its answer.
func TestRoomIsGivenBack(t0 *testing.T) {
	many := make([]nix.StorePath, 3*memoryStep/(len(absent.String())+perString))
	for i := range many {
		many[i] = absent
	}
	l := &landlord{free: 2, least: 2}
	t := talkWorker(t0, filled(), Options{Memory: l.room}, 38)
	for range 3 {
		t.put(opQueryValidPaths)
		t.putPaths(many)
		t.putUint(0)
		t.wantLast(0)
	}
	t.put(opIsValidPath)
	t.putPath(pathA)
	t.wantLast(1)
	if l.least != 0 {
		t.Errorf("%d were free at the least", l.least)
	}
	t.wantFree(l, 2)
	t.wantEnd("")

	t = talkLegacy(t0, filled(), Options{Memory: l.room}, 7)
	for range 3 {
		t.put(legacyQueryValidPaths, 0, 0)
		t.putPaths(many[:len(many)/2])
		t.wantPaths()
		t.put(legacyQueryPathInfos)
		t.putPaths([]nix.StorePath{absent})
		t.wantString("")
		t.wantFree(l, 2)
	}
	t.wantEnd("")
}

// As many paths as there are can be copied by their names.
func TestManyNames(t0 *testing.T) {
	names := func(t *peer) {
		t.putUint(maxStrings + 1)
		for range maxStrings + 1 {
			t.putPath(pathA)
		}
	}
	t := talkWorker(t0, filled(), Options{}, 38)
	t.put(opQueryMissing)
	names(t)
	t.wantLast(0, 0, 0, 0, 0)
	t.put(opBuildPaths)
	names(t)
	t.put(0)
	t.wantLast(1)
	t.wantEnd("")

	t = talkLegacy(t0, filled(), Options{}, 7)
	t.put(legacyBuildPaths)
	names(t)
	t.put(0, 0, 0, 0, 0, 0)
	t.wantUint(0)
	t.wantEnd("")
}
