//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What the kernel knows of a running server. A server is a process with all its descendants: nginx answers from worker processes.

// descendants is pid and every process below it.
func descendants(pid int) ([]int, error) {
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", all[i]))
		if err != nil {
			return nil, err
		}
		for _, list := range lists {
			text, err := os.ReadFile(list)
			if err != nil {
				continue // a thread that has ended meanwhile
			}
			for _, field := range strings.Fields(string(text)) {
				child, err := strconv.Atoi(field)
				if err != nil {
					return nil, fmt.Errorf("read %s: %q", list, field)
				}
				all = append(all, child)
			}
		}
	}
	return all, nil
}

// cpuTime is the processor time that a server has used, user and system together.
// It is utime+stime of /proc/PID/stat, but asked for by clock_gettime(2), which gives nanoseconds instead of ticks of 10 ms.
func cpuTime(pid int) (time.Duration, error) {
	pids, err := descendants(pid)
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, p := range pids {
		// A process's clock is named by the complement of its pid and the kind of clock, CPUCLOCK_SCHED (linux/posix-timers.h).
		const clockSched = 2
		var t unix.Timespec
		if err := unix.ClockGettime(int32(^p)<<3|clockSched, &t); err != nil {
			return 0, fmt.Errorf("read CPU time of process %d: %w", p, err)
		}
		sum += time.Duration(t.Nano())
	}
	return sum, nil
}

// threadTime is the CPU time of the calling thread, which is the one that the client runs on.
func threadTime() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		return 0, fmt.Errorf("read CPU time of this thread: %w", err)
	}
	return time.Duration(t.Nano()), nil
}

// Memory is what a server keeps resident, in bytes.
// Pages that nginx's workers share are counted in each of them.
type Memory struct {
	Now  int64 // VmRSS
	Peak int64 // VmHWM, since the last resetPeak
}

func memoryOf(pid int) (Memory, error) {
	pids, err := descendants(pid)
	if err != nil {
		return Memory{}, err
	}
	var sum Memory
	for _, p := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p))
		if err != nil {
			return Memory{}, fmt.Errorf("read memory of process %d: %w", p, err)
		}
		m, err := parseMemory(text)
		if err != nil {
			return Memory{}, fmt.Errorf("read memory of process %d: %w", p, err)
		}
		sum.Now += m.Now
		sum.Peak += m.Peak
	}
	return sum, nil
}

// parseMemory reads the text of /proc/PID/status (proc_pid_status(5)).
func parseMemory(status []byte) (Memory, error) {
	var m Memory
	for line := range bytes.Lines(status) {
		key, value, _ := strings.Cut(string(line), ":")
		if key != "VmRSS" && key != "VmHWM" {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return Memory{}, fmt.Errorf("%s %q", key, value)
		}
		if key == "VmRSS" {
			m.Now = kib << 10
		} else {
			m.Peak = kib << 10
		}
	}
	if m.Now == 0 || m.Peak == 0 {
		return Memory{}, fmt.Errorf("no VmRSS and VmHWM in status")
	}
	return m, nil
}

// resetPeak makes the peak start again from what is resident now (proc_pid_clear_refs(5), value 5).
func resetPeak(pid int) error {
	pids, err := descendants(pid)
	if err != nil {
		return err
	}
	for _, p := range pids {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p), []byte("5"), 0); err != nil {
			return fmt.Errorf("reset peak memory: %w", err)
		}
	}
	return nil
}
