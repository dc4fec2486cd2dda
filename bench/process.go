//go:build linux

package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// What the kernel knows of a server. A server is a process with its children: nginx answers from
// worker processes.

// family returns a process and its children.
func family(pid int) (procfs.Procs, error) {
	all, err := procfs.AllProcs()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(p procfs.Proc) bool {
		stat, err := p.Stat() // an error is of a process that has ended
		return p.PID != pid && (err != nil || stat.PPID != pid)
	}), nil
}

// cpuTime returns the processor time that a server has used, user and system together. It is
// utime+stime of /proc/PID/stat, but asked for by clock_gettime(2), which gives nanoseconds instead
// of ticks of 10 ms.
func cpuTime(pid int) (time.Duration, error) {
	procs, err := family(pid)
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, p := range procs {
		// A process's clock is named by the complement of its pid and the kind of clock,
		// CPUCLOCK_SCHED (linux/posix-timers.h).
		const clockSched = 2
		var t unix.Timespec
		if err := unix.ClockGettime(int32(^p.PID)<<3|clockSched, &t); err != nil {
			return 0, fmt.Errorf("read CPU time of process %d: %w", p.PID, err)
		}
		sum += time.Duration(t.Nano())
	}
	return sum, nil
}

// memoryOf returns what a server keeps resident now, and what it kept resident at most, in bytes.
// Pages that nginx's workers share are counted in each of them.
func memoryOf(pid int) (now, peak float64, err error) {
	procs, err := family(pid)
	if err != nil {
		return 0, 0, err
	}
	for _, p := range procs {
		status, err := p.NewStatus()
		if err != nil {
			return 0, 0, fmt.Errorf("read memory of process %d: %w", p.PID, err)
		}
		now += float64(status.VmRSS)
		peak += float64(status.VmHWM)
	}
	return now, peak, nil
}
