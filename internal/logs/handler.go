package logs

import (
	"context"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// HandlerOptions are options of NewHandler.
type HandlerOptions struct {
	Level slog.Level
	JSON  bool // one object a line

	// Journal puts the priority in front of every line, as systemd's journal reads it (sd-daemon(3)), and
	// leaves out the time, which the journal adds.
	Journal bool
}

// NewHandler returns a handler that writes records to w, one a line.
func NewHandler(w io.Writer, opts HandlerOptions) slog.Handler {
	slogOpts := &slog.HandlerOptions{Level: opts.Level}
	if opts.Journal {
		slogOpts.ReplaceAttr = withoutTime
	}
	handler := func(w io.Writer) slog.Handler {
		if opts.JSON {
			return slog.NewJSONHandler(w, slogOpts)
		}
		return slog.NewTextHandler(w, slogOpts)
	}
	if !opts.Journal {
		return handler(w)
	}
	// From syslog(3): debug, info, warning and error.
	return ranked{handler(&ranks{w, "<7>"}), handler(&ranks{w, "<6>"}), handler(&ranks{w, "<4>"}), handler(&ranks{w, "<3>"})}
}

func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// ranks writes lines with their priority in front.
type ranks struct {
	w    io.Writer
	rank string
}

func (r *ranks) Write(line []byte) (int, error) {
	n, err := r.w.Write(append([]byte(r.rank), line...))
	return max(0, n-len(r.rank)), err
}

// ranked has a handler for each of slog's levels.
type ranked [4]slog.Handler

func (h ranked) Enabled(ctx context.Context, level slog.Level) bool { return h[0].Enabled(ctx, level) }

func (h ranked) Handle(ctx context.Context, r slog.Record) error {
	const between = slog.LevelInfo - slog.LevelDebug // two levels
	i := (r.Level - slog.LevelDebug) / between
	return h[min(max(0, int(i)), len(h)-1)].Handle(ctx, r)
}

func (h ranked) WithAttrs(attrs []slog.Attr) slog.Handler {
	for i := range h {
		h[i] = h[i].WithAttrs(attrs)
	}
	return h
}

func (h ranked) WithGroup(name string) slog.Handler {
	for i := range h {
		h[i] = h[i].WithGroup(name)
	}
	return h
}

// IsJournal reports whether a file is systemd's journal. It compares the file with the variable
// JOURNAL_STREAM (systemd.exec(5)), as standard error may have been redirected since.
func IsJournal(f *os.File, stream string) bool {
	device, inode, ok := strings.Cut(stream, ":")
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && device == strconv.FormatUint(uint64(stat.Dev), 10) && inode == strconv.FormatUint(stat.Ino, 10)
}
