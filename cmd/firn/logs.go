package main

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"firn/internal/config"
	"firn/internal/logs"
	"firn/internal/process"
)

// newLogger returns the logger that the settings describe.
func newLogger(c *config.Config, w io.Writer) *slog.Logger {
	return slog.New(logs.NewHandler(w, logs.HandlerOptions{
		Level:   c.LogLevel.Level(),
		JSON:    c.LogFormat == config.LogJSON,
		Journal: w == os.Stderr && logs.IsJournal(os.Stderr, os.Getenv("JOURNAL_STREAM")),
	}))
}

// serverLogs are what a server logs to.
type serverLogs struct {
	log      *slog.Logger
	requests *logs.Requests // nil: requests are not logged

	user    *process.User // nil: this process stays who it is
	files   []*logs.File
	signals chan os.Signal
}

// openLogs opens the logs that the settings describe, for a process that is about to become user, if that is not nil. They are opened anew at SIGUSR1, until they are closed.
func openLogs(c *config.Config, user *process.User) (*serverLogs, error) {
	l := &serverLogs{user: user, signals: make(chan os.Signal, 1)}
	l.log = newLogger(c, os.Stderr)
	target := "" // of the log: standard error
	if c.LogFile != "" {
		f, err := l.open(c.LogFile)
		if err != nil {
			return nil, err
		}
		if target = f.Path(); target != "" {
			l.log = newLogger(c, f)
		}
	}
	if c.AccessLog != "" {
		f, err := l.open(c.AccessLog)
		if err != nil {
			return nil, errors.Join(err, l.closeFiles())
		}
		format := logs.Format(c.AccessLogFormat)
		if f.Path() == target && c.LogFormat == config.LogJSON {
			format = logs.JSON // among records in JSON, other lines are of no use
		}
		l.requests = logs.NewRequests(f, logs.RequestOptions{Format: format, Logger: l.log})
	}
	signal.Notify(l.signals, syscall.SIGUSR1)
	go func() {
		for range l.signals {
			l.reopen()
		}
	}()
	return l, nil
}

// open opens a file, once if both logs are to go there.
func (l *serverLogs) open(path string) (*logs.File, error) {
	var f *logs.File
	var err error
	if l.user != nil {
		f, err = logs.OpenFor(path, l.user.UID, l.user.GID)
	} else {
		f, err = logs.Open(path)
	}
	if err != nil {
		return nil, err
	}
	for _, other := range l.files {
		if other.Path() == f.Path() {
			return other, f.Close()
		}
	}
	l.files = append(l.files, f)
	return f, nil
}

// reopen opens the files anew, after they were renamed.
func (l *serverLogs) reopen() {
	for _, f := range l.files {
		if err := f.Reopen(); err != nil {
			l.log.Error("a log was not opened anew", "error", err)
		}
	}
}

// Close writes what is left.
func (l *serverLogs) Close() error {
	signal.Stop(l.signals)
	close(l.signals)
	if l.requests != nil {
		l.requests.Close()
	}
	return l.closeFiles()
}

func (l *serverLogs) closeFiles() (err error) {
	for _, f := range l.files {
		err = errors.Join(err, f.Close())
	}
	return err
}
