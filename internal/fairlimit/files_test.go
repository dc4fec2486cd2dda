package fairlimit

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is open at once is never more than may be, and every kind of thing gets some.
func TestDivide(t *testing.T) {
	most := Files{Reserved: 256, Connections: 16384, Readers: 8192, Waiting: 8192, Uploads: 32, SmallUploads: 64, SSHLogins: 128, SSHConnections: 1024, SSHSessions: 256, Making: 64, IdlePacks: 128, IdleNARs: 1024}
	for files, want := range map[int]Files{
		256:     {Reserved: 64, Connections: 44, Readers: 22, Waiting: 22, Uploads: 8, SmallUploads: 11, SSHLogins: 8, SSHConnections: 16, SSHSessions: 8, Making: 4, IdlePacks: 8, IdleNARs: 16},
		1024:    {Reserved: 160, Connections: 224, Readers: 112, Waiting: 112, Uploads: 32, SmallUploads: 56, SSHLogins: 32, SSHConnections: 64, SSHSessions: 32, Making: 16, IdlePacks: 32, IdleNARs: 64},
		4096:    {Reserved: 256, Connections: 1184, Readers: 592, Waiting: 592, Uploads: 32, SmallUploads: 64, SSHLogins: 128, SSHConnections: 256, SSHSessions: 128, Making: 64, IdlePacks: 128, IdleNARs: 256},
		16384:   {Reserved: 256, Connections: 6432, Readers: 3216, Waiting: 3216, Uploads: 32, SmallUploads: 64, SSHLogins: 128, SSHConnections: 1024, SSHSessions: 256, Making: 64, IdlePacks: 128, IdleNARs: 1024},
		524288:  most,
		1 << 30: most,
	} {
		if diff := cmp.Diff(want, Divide(files)); diff != "" {
			t.Errorf("of %d files (-want +got):\n%s", files, diff)
		}
	}
	for files := 128; files < 600_000; files += 1 + files/50 {
		f, half := Divide(files), Divide(files/2)
		if f.Sum() > files {
			t.Errorf("of %d files %d are shared out: %+v", files, f.Sum(), f)
		}
		for what, counts := range map[string][2]int{
			"reserved": {half.Reserved, f.Reserved}, "connections": {half.Connections, f.Connections}, "readers": {half.Readers, f.Readers},
			"waiting": {half.Waiting, f.Waiting}, "uploads": {half.Uploads, f.Uploads}, "small uploads": {half.SmallUploads, f.SmallUploads}, "SSH log-ins": {half.SSHLogins, f.SSHLogins},
			"SSH connections": {half.SSHConnections, f.SSHConnections}, "SSH sessions": {half.SSHSessions, f.SSHSessions},
			"making": {half.Making, f.Making}, "idle packs": {half.IdlePacks, f.IdlePacks}, "idle NARs": {half.IdleNARs, f.IdleNARs},
		} {
			if counts[1] < 1 || counts[1] < counts[0] {
				t.Errorf("of %d files there are %d %s, and of half as many %d", files, counts[1], what, counts[0])
			}
		}
	}
}

// The handbook has the same numbers.
func TestHandbook(t *testing.T) {
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for line := range strings.Lines(string(text)) {
		digits := strings.ReplaceAll(line, ",", "")
		var files int
		if n, _ := fmt.Sscanf(digits, "| %d ", &files); n == 0 || strings.Count(line, "|") != 6 {
			continue
		}
		rows++
		f := Divide(files)
		want := fmt.Sprintf("| %d | %d | %d | %d %d %d |\n", f.Connections, (f.Connections+1)/2, f.Readers, f.SSHConnections, f.SSHSessions, f.SSHLogins)
		if !strings.HasSuffix(digits, want) {
			t.Errorf("docs/operations.md says %s, want %s", line, want)
		}
	}
	if rows != 5 {
		t.Errorf("docs/operations.md has %d rows of numbers of files, want 5", rows)
	}
}

// With half of all connections, one address leaves as many for the others, and its own can be read,
// and wait, at the same time.
func TestSharesOfOneAddress(t *testing.T) {
	for _, files := range []int{256, 1024, 4096, 16384, 524288} {
		f := Divide(files)
		for what, n := range map[string]int{"connections": f.Connections, "readers": f.Readers, "waiting": f.Waiting, "uploads": f.Uploads, "small uploads": f.SmallUploads} {
			s := New(n)
			got := 0
			for {
				if _, ok := s.TryTake("address"); !ok {
					break
				}
				got++
			}
			if got != (n+1)/2 {
				t.Errorf("of %d files: one address has %d of %d %s", files, got, n, what)
			}
		}
		if busy := (f.Readers + f.Waiting + f.Uploads + f.SmallUploads + 3) / 2; busy > f.Connections*4/5 {
			t.Errorf("of %d files: one client behind a proxy has %d of its %d connections at work", files, busy, f.Connections)
		}
	}
}
