package nixserve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// The process that runs detached inherits the end of a pipe to the one that started it, and a variable that says so.
const (
	pipeVariable = "FIRN_DETACHED"
	pipeFD       = 3 // the first of ExtraFiles

	ready = "ready\n" // on the pipe; anything else is why it is not
)

// maxWhy bounds what is read of that, in bytes.
const maxWhy = 64 << 10

// Detach runs this program again with the same arguments, in a session of its own, without terminal, standard input and output.
// It returns nil as soon as that process is ready, which goes on when this one ends, and else an error with what it said.
//
// A program in Go has several threads from the start, of which fork copies one; so it is a new process and not a copy.
func Detach(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("run in the background: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("run in the background: %w", err)
	}
	defer r.Close()
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Args[0] = os.Args[0] // which may say what is wanted
	cmd.Env = append(os.Environ(), pipeVariable+"="+strconv.Itoa(os.Getpid()))
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("run in the background: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	said, err := io.ReadAll(io.LimitReader(r, maxWhy))
	switch {
	case err == nil && string(said) == ready:
		return cmd.Process.Release()
	case err == nil && len(said) > 0:
		err = errors.New(strings.TrimSuffix(string(said), "\n"))
		cmd.Wait() // it has said why
		return err
	case err == nil:
		if err = cmd.Wait(); err == nil {
			err = errors.New("exit status 0") // it was told to end
		}
	}
	return fmt.Errorf("run in the background: it ended before it was ready: %w", err)
}

// A Starter is the process that has called Detach. The nil Starter is none, and is told nothing.
type Starter struct {
	pipe      *os.File
	inherited []int // descriptors that this process inherited from the one that started the other
}

// Started returns the process that has started this one by Detach, nil if none has.
func Started() *Starter {
	parent := os.Getenv(pipeVariable)
	os.Unsetenv(pipeVariable) // it is not for processes that this one starts
	if parent != strconv.Itoa(os.Getppid()) {
		return nil // an environment that was copied
	}
	s := &Starter{inherited: inherited()}
	for _, fd := range s.inherited {
		syscall.CloseOnExec(fd)
	}
	s.pipe = os.NewFile(pipeFD, "pipe to the starter")
	syscall.CloseOnExec(pipeFD)
	return s
}

// inherited returns the open descriptors above that of the pipe that other processes would inherit, too:
// Go opens none of this kind, so that they were open when this program began. Where that cannot be told there are none.
func inherited() (fds []int) {
	entries, _ := os.ReadDir("/dev/fd")
	for _, entry := range entries {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil || fd <= pipeFD {
			continue
		}
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0)
		if errno == 0 && flags&syscall.FD_CLOEXEC == 0 {
			fds = append(fds, fd)
		}
	}
	return fds
}

// Ready lets Detach return. An error says that it did not wait.
//
// It closes what was open in the process that called Detach: another process may wait for a pipe to end, or for a lock.
// Until then it can be opened, as /dev/fd/63: a shell gives files by such names.
func (s *Starter) Ready() error {
	if s != nil {
		for _, fd := range s.inherited {
			syscall.Close(fd)
		}
		s.inherited = nil
	}
	return s.tell(ready)
}

// Failed lets Detach return with an error. After Ready it does nothing.
func (s *Starter) Failed(err error) { _ = s.tell(err.Error() + "\n") }

func (s *Starter) tell(text string) error {
	if s == nil || s.pipe == nil {
		return nil
	}
	_, err := io.WriteString(s.pipe, text)
	err = errors.Join(err, s.pipe.Close())
	s.pipe = nil
	if err != nil {
		return fmt.Errorf("tell the process that started this one: %w", err)
	}
	return nil
}
