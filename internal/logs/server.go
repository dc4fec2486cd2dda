package logs

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"firn/internal/config"
)

// NewLogger returns the logger that the settings describe.
func NewLogger(c *config.Config, w io.Writer) *slog.Logger {
	return slog.New(NewHandler(w, HandlerOptions{
		Level:   c.LogLevel.Level(),
		JSON:    c.LogFormat == config.LogJSON,
		Journal: w == os.Stderr && IsJournal(os.Stderr, os.Getenv("JOURNAL_STREAM")),
	}))
}

// Server is what a server logs to.
type Server struct {
	Log      *slog.Logger
	Requests *Requests // nil: requests are not logged

	openFile func(path string) (*File, error)
	files    []*File
	signals  chan os.Signal
}

// OpenServer opens the logs that the settings describe, each with openFile. SIGUSR1 reopens them until they are closed.
func OpenServer(c *config.Config, openFile func(path string) (*File, error)) (*Server, error) {
	l := &Server{openFile: openFile, signals: make(chan os.Signal, 1)}
	l.Log = NewLogger(c, os.Stderr)
	target := "" // of the log: standard error
	if c.LogFile != "" {
		f, err := l.open(c.LogFile)
		if err != nil {
			return nil, err
		}
		if target = f.Path(); target != "" {
			l.Log = NewLogger(c, f)
		}
	}
	if c.AccessLog != "" {
		f, err := l.open(c.AccessLog)
		if err != nil {
			return nil, errors.Join(err, l.closeFiles())
		}
		format := Format(c.AccessLogFormat)
		if f.Path() == target && c.LogFormat == config.LogJSON {
			format = JSON // among records in JSON, other lines are of no use
		}
		l.Requests = NewRequests(f, RequestOptions{Format: format, Logger: l.Log})
	}
	signal.Notify(l.signals, syscall.SIGUSR1)
	go func() {
		for range l.signals {
			l.Reopen()
		}
	}()
	return l, nil
}

// open opens a file, once if both logs are to go there.
func (l *Server) open(path string) (*File, error) {
	f, err := l.openFile(path)
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

// ReopenAt has a further signal reopen the logs.
func (l *Server) ReopenAt(sig os.Signal) { signal.Notify(l.signals, sig) }

// Reopen reopens the files after they were renamed.
func (l *Server) Reopen() {
	for _, f := range l.files {
		if err := f.Reopen(); err != nil {
			l.Log.Error("a log could not be reopened", "error", err)
		}
	}
}

// Close writes what is left.
func (l *Server) Close() error {
	signal.Stop(l.signals)
	close(l.signals)
	if l.Requests != nil {
		l.Requests.Close()
	}
	return l.closeFiles()
}

func (l *Server) closeFiles() (err error) {
	for _, f := range l.files {
		err = errors.Join(err, f.Close())
	}
	return err
}
