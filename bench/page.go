//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// page is docs/benchmarks.md: the bars first, then all tables, then what stands in the way of each bar that was missed, then the method.
func (r *Report) page() ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(r.NotesDir, "notes.md"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	notes := parseNotes(string(text))
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Benchmarks\n\n<!-- Written by `make bench`; what it says of bars that were missed is from bench/notes.md. -->\n\n")
	fmt.Fprintf(&b, "%s\n\n", r.summary())
	fmt.Fprintf(&b, "![Times and rates of all servers](benchmarks.svg)\n\n")
	fmt.Fprintf(&b, "| | |\n|---|---|\n| machine | %s |\n| date | %s |\n| command | `%s` |\n| took | %v |\n\n", r.Machine, r.Date.UTC().Format(time.DateOnly), r.Command, r.Took.Round(time.Second))
	fmt.Fprintf(&b, "## What firn must reach\n\n")
	fmt.Fprintf(&b, "*The least* is what this machine gives a program that does the least it can, in the same runs: a loop in Go that sends files and speaks hardly any HTTP, and, of pushes, a server that keeps nothing.\n\n")
	for i, g := range barGroups(r.Samples) {
		if i > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "### %s\n\n", g.title)
		writeMarkdown(&b, barRows(g))
	}
	for _, remark := range r.Remarks {
		fmt.Fprintf(&b, "\n%s\n", remark)
	}
	if missed := r.missed(notes); missed != "" {
		fmt.Fprintf(&b, "\n## What stands in the way\n%s", missed)
	}
	for _, s := range r.sections() {
		fmt.Fprintf(&b, "\n## %s\n\n", s.title)
		writeMarkdown(&b, s.rows)
	}
	b.WriteString(r.method())
	if general := notes[""]; general != "" {
		fmt.Fprintf(&b, "\n## Reading the numbers\n\n%s\n", general)
	}
	return b.Bytes(), nil
}

// summary says what was compared with what, and how many bars were reached.
func (r *Report) summary() string {
	var b strings.Builder
	const mib = 1 << 20
	if r.Runs > 0 {
		fmt.Fprintf(&b, "firn serves %d store paths (%d MiB of NARs) from a live store and from a depot; nginx serves the same NARs as flat files that `nix copy` wrote.\n", len(r.Closure), narBytes(r.Closure)/mib)
		fmt.Fprintf(&b, "Numbers are medians of %d runs, with the lowest and the highest in brackets, and × the median of the ratios to the first column in the same run.\n", r.Runs)
	}
	if len(r.Copied) > 0 {
		fmt.Fprintf(&b, "What is pushed, and copied over SSH, are %d paths of the store (%d MiB) that look like the whole, in %d rounds.\n", len(r.Copied), narBytes(r.Copied)/mib, r.copyRounds())
	}
	count := make(map[Verdict]int)
	for _, bar := range bars(r.Samples) {
		count[bar.Verdict]++
	}
	fmt.Fprintf(&b, "Of the bars below %d are reached and %d missed", count[Pass], count[Fail])
	if n := count[NotMeasured]; n > 0 {
		fmt.Fprintf(&b, "; %d were not measured", n)
	}
	b.WriteString(".")
	return b.String()
}

// copyRounds is how often was measured what is copied.
func (r *Report) copyRounds() int {
	return max(len(r.Samples.of(nixFiles, metricPush.Key)), len(r.Samples.of(sshNix, metricSSH("push", sshSchemes[0]).Key)))
}

// missed lists the bars that were missed, each section of them with what the notes say.
func (r *Report) missed(notes map[string]string) string {
	var order []string
	list := make(map[string]string)
	for _, bar := range bars(r.Samples) {
		if bar.Verdict != Fail {
			continue
		}
		if list[bar.Note] == "" {
			order = append(order, bar.Note)
		}
		list[bar.Note] += fmt.Sprintf("* %s: %s (bar %s%s)\n", bar.What, bar.Value, bar.Limit, prefixed("; the least ", bar.Nearest))
	}
	var b strings.Builder
	for _, section := range order {
		fmt.Fprintf(&b, "\n%s", list[section])
		if note := notes[section]; section != "" && note != "" {
			fmt.Fprintf(&b, "\n%s\n", note)
		}
	}
	return b.String()
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

// parseNotes splits notes at their headings. What comes before the first is under "".
func parseNotes(text string) map[string]string {
	notes := make(map[string]string)
	name := ""
	for line := range strings.Lines(text) {
		if heading, ok := strings.CutPrefix(line, "## "); ok {
			name = strings.TrimSpace(heading)
			continue
		}
		notes[name] += line
	}
	for name, note := range notes {
		notes[name] = strings.TrimSpace(note)
	}
	return notes
}

// method describes what was done.
func (r *Report) method() string {
	discard := "The bodies of NARs are dropped by the kernel (`recv` with `MSG_TRUNC`) instead of being copied, so that nearly all the time measured is the server's own, as if the client were another machine."
	if r.Discard == DiscardCopy {
		discard = "The bodies of NARs are read into memory and forgotten, as any program must that wants the bytes."
	}
	return `
## Method

After [cache-shootout](https://github.com/Mic92/cache-shootout): all narinfos in sequence over one kept-alive connection; all NARs over 1, 4, 16 and 64 connections, bodies discarded; everything warm.
Besides: narinfo requests per second on 64 connections, for paths that are there and for paths that are not; the time until the first byte of a range of 4 KiB at the end of the largest NAR;
and what it costs the machine: CPU time (user and system) of the server for all narinfos and all NARs once, and resident memory of its processes.

* Requests per second, and memory with NARs in flight, are left out of servers whose narinfos and NARs come about as another's do.
* The servers take turns, measurement by measurement, in an order that rotates; the others are idle meanwhile.
* Before anything is measured, every NAR is read from every server, decompressed and compared with the NAR hash that Nix knows; every later answer must have the same status and length.
* One client for all: a single thread with an epoll loop that knows as much HTTP as it needs. It shares the machine with the servers. ` + discard + `
* nginx is Debian's, with a worker for each core, ` + "`sendfile` and `tcp_nopush`" + ` on and no logs. Its narinfos are signed like firn's.
* Servers and client have a higher priority than other work of the machine (niceness -10), where the caller may set that.
* *bare Go* is the limit of this machine for a program in Go: a loop that sends the flat files with ` + "`sendfile`" + `, one goroutine a connection, and no HTTP library.
* *256 NARs in flight* are first held half sent for a second, then sent as fast as it goes.
* Nothing is removed until all was measured, and the disk has nothing left to write before each thing that is timed.
* Pushes are *nix copy* from the store, to an empty firn, to a server that keeps nothing (*nowhere*), and to Nix's own files with zstd, in turns; with zstd, Nix compresses on all cores wherever it copies to.
  What is pushed, and copied over SSH, is a part of the closure: paths in the order of their hashes, each with all that it refers to,
  where its class of sizes (up to 64 KiB, 1 MiB, 16 MiB, and larger) has not had its share of the bytes yet. ` + "`--whole`" + ` takes the whole.
* The 16 uploads of 1 GB at once hang up after a quarter, when firn needs no more memory than at the end.
* The depot that firn serves from, and whose size is looked at, has two generations of the whole closure. ` + "`firn import`" + ` took them over from flat files, with the verification that a push has. What firn keeps includes its catalog.
  *Rebuilt* is the second generation, which differs in its path hashes, and in the references to them inside files.
* Over SSH the same Nix copies to and from firn, and to and from itself behind Debian's sshd, where it writes the paths to an empty store and registers them;
  both with their own defaults, so with the cipher that their server and OpenSSH's client agree on. The 8 pushes at once are of two generations, by both protocols, each by two clients.
  *Nowhere* is a program behind the same sshd that reads what comes and keeps nothing.
* Catalogs are filled with paths as if these had been pushed. After each start, 10,000 narinfos from all over the catalog are asked for, each once,
  so that none is in firn's memory; then as many that are not there. The files of the database are in the memory of the machine.
* Ratios are judged with the two digits that are printed.
`
}
