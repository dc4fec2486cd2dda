//go:build linux

package main

import (
	"fmt"
	"strings"
	"time"
)

// What is measured comes in stages, each of some rounds. A round begins only where it, and one round of every later stage, ends within the limit.

// stage is a part of the whole, and how long it takes where the bars are set: on two cores of a server.
type stage struct {
	name   string
	rounds int
	once   time.Duration // whatever the number of rounds
	round  time.Duration // each of them
}

func (s stage) whole() time.Duration { return s.once + time.Duration(s.rounds)*s.round }

// The names of stages.
const (
	stageServing   = "serving"
	stagePushes    = "pushes"
	stageSSH       = "copies over SSH"
	stageDatabases = "large databases"
	stageEnd       = "removing what was written"
)

// plan is the stages in the order in which they come.
type plan struct {
	begin  time.Time
	limit  time.Duration
	stages []stage
}

// makePlan says what takes how long. Of a quick run little is left but what does not depend on sizes.
func makePlan(opts Options, e *entrants, begin time.Time) *plan {
	const perServer, perServerQuick = 4200 * time.Millisecond, 1500 * time.Millisecond
	p := &plan{begin: begin, limit: opts.Limit}
	add := func(wanted bool, s stage, quickOnce, quickRound time.Duration) {
		if opts.Quick {
			s.once, s.round = quickOnce, quickRound
		}
		if wanted {
			p.stages = append(p.stages, s)
		}
	}
	servers := time.Duration(len(e.specs))
	add(servers > 0, stage{stageServing, opts.Runs, 9 * servers * time.Second, servers * perServer}, servers*time.Second, servers*perServerQuick)
	add(e.push, stage{stagePushes, opts.copyRounds(), 12 * time.Second, 27 * time.Second}, 2*time.Second, 6*time.Second)
	add(e.ssh, stage{stageSSH, opts.copyRounds(), 6 * time.Second, 25 * time.Second}, 5*time.Second, 12*time.Second)
	add(e.databases || e.catalog, stage{stageDatabases, 1, 0, 20 * time.Second}, 0, 15*time.Second)
	add(true, stage{stageEnd, 1, 0, 8 * time.Second}, 0, time.Second)
	return p
}

// String is an estimate of the whole.
func (p *plan) String() string {
	var sum time.Duration
	var words []string
	for _, s := range p.stages {
		sum += s.whole()
		text := fmt.Sprintf("%s %.0f s", s.name, s.whole().Seconds())
		if s.rounds > 1 {
			text += fmt.Sprintf(" in %d rounds", s.rounds)
		}
		words = append(words, text)
	}
	return fmt.Sprintf("about %v on two cores once everything is prepared (%s)", sum.Round(time.Second), strings.Join(words, ", "))
}

// another tells whether one more round of a stage may begin, the longest of which so far took so long. The first always may.
func (p *plan) another(name string, done int, longest time.Duration) bool {
	var rest time.Duration
	after := false
	for _, s := range p.stages {
		if after {
			rest += s.once + s.round
		}
		if s.name == name {
			if done >= s.rounds {
				return false
			}
			after = true
		}
	}
	return done == 0 || time.Since(p.begin)+longest+rest <= p.limit
}

// rounds makes the rounds of a stage, as many as there is time for, and says so where these are fewer than were planned.
func (b *shootout) rounds(name string, round func(i int) error) error {
	var longest time.Duration
	done := 0
	for ; b.plan.another(name, done, longest); done++ {
		started := time.Now()
		if err := round(done); err != nil {
			return err
		}
		longest = max(longest, time.Since(started))
	}
	for _, s := range b.plan.stages {
		if s.name == name && done < s.rounds {
			b.remark("%s: %d of %d rounds were made, as another would have ended after %v.", capital(name), done, s.rounds, b.plan.limit)
		}
	}
	return nil
}

// remark keeps something that the reader of the numbers must know.
func (b *shootout) remark(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	b.remarks = append(b.remarks, text)
	b.progress("%s", text)
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
