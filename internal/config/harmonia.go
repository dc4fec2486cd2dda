package config

import (
	"errors"
	"fmt"
	"math"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// harmoniaSettings are the keys of harmonia's file, those of earlier versions too. What is not in the file is nil.
type harmoniaSettings struct {
	Bind              *string       `toml:"bind"`
	Workers           *int64        `toml:"workers"`
	MaxConnectionRate *int64        `toml:"max_connection_rate"`
	MaxConnections    *int64        `toml:"max_connections"`
	Priority          *int64        `toml:"priority"`
	VirtualNixStore   *string       `toml:"virtual_nix_store"`
	RealNixStore      *string       `toml:"real_nix_store"`
	NixDBPath         *string       `toml:"nix_db_path"`
	DaemonSocket      *string       `toml:"daemon_socket"`
	PoolSize          *int64        `toml:"pool_size"`
	EnableCompression *bool         `toml:"enable_compression"`
	SignKeyPath       *string       `toml:"sign_key_path"`
	SignKeyPaths      []string      `toml:"sign_key_paths"`
	TLSCertPath       *string       `toml:"tls_cert_path"`
	TLSKeyPath        *string       `toml:"tls_key_path"`
	Zstd              *harmoniaZstd `toml:"zstd"`
}

type harmoniaZstd struct {
	Level        *int64 `toml:"level"`
	LongDistance *bool  `toml:"long_distance_matching"`
	WindowLog    *int64 `toml:"window_log"`
	MaxEncoders  *int64 `toml:"max_ldm_encoders_per_worker"`
}

const (
	defaultBind  = "[::]:5000"
	defaultStore = "/nix/store"
)

// FromHarmonia reads the text of a configuration file, which is named in errors and in what it returns: one of firn, with a comment for
// all that has no counterpart there, and why. lookup has the variables that harmonia reads as well.
func FromHarmonia(name, text string, lookup func(string) (string, bool)) (string, error) {
	var s harmoniaSettings
	meta, err := toml.Decode(text, &s)
	if err != nil {
		var parse toml.ParseError
		if errors.As(err, &parse) {
			return "", fmt.Errorf("%s:%d: %s", name, parse.Position.Line, parse.Message)
		}
		return "", fmt.Errorf("%s: %w", name, err)
	}
	c := &converter{}
	for _, step := range []func(*harmoniaSettings) error{c.listen, c.keys(lookup), c.store, c.priority, c.compression} {
		if err := step(&s); err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
	}
	c.others(&s)
	for _, key := range meta.Undecoded() {
		c.note("%s: this is no setting of harmonia that is known here.", key)
	}
	return c.text(name), nil
}

// A converter gathers what the configuration of firn says.
type converter struct {
	lines []string
	notes []string
}

// set adds a setting, and from which of harmonia's it comes.
func (c *converter) set(key, value, from string) {
	c.lines = append(c.lines, fmt.Sprintf("%s = %s # %s", key, value, from))
}

// note adds a comment on what has no counterpart.
func (c *converter) note(format string, args ...any) {
	c.notes = append(c.notes, fmt.Sprintf(format, args...))
}

func (c *converter) text(name string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# What %s says to harmonia, for firn serve --config.\n\n", oneLine(name))
	for _, line := range c.lines {
		b.WriteString(line + "\n")
	}
	if len(c.notes) > 0 {
		b.WriteString("\n# What else there is to know:\n#\n")
	}
	for _, note := range c.notes {
		fmt.Fprintf(&b, "# * %s\n", oneLine(note))
	}
	return b.String()
}

// oneLine keeps what comes from the file from ending a comment.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// quote returns a TOML string.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// list returns a TOML list of strings.
func list(items ...string) string {
	quoted := make([]string, len(items))
	for i, item := range items {
		quoted[i] = quote(item)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

func value(s *string, fallback string) string {
	if s == nil {
		return fallback
	}
	return *s
}

// listen takes over where harmonia listens: in one place, with TLS or without.
func (c *converter) listen(s *harmoniaSettings) error {
	bind, from := value(s.Bind, defaultBind), "bind"
	if s.Bind == nil {
		from = "harmonia's default"
	}
	unix, isUnix := strings.CutPrefix(bind, "unix:")
	if isUnix {
		unix = "unix:" + strings.TrimPrefix(unix, "//")
	}
	cert, key := value(s.TLSCertPath, ""), value(s.TLSKeyPath, "")
	switch {
	case (cert == "") != (key == ""):
		return errors.New("tls_cert_path and tls_key_path: there is one without the other")
	case cert == "" && isUnix:
		c.set("listen", list(unix), from)
	case cert == "":
		c.set("listen", list(bind), from)
	case isUnix:
		return errors.New("bind: harmonia serves no Unix socket over TLS")
	default:
		c.set("listen", "[]", "TLS only")
		c.set("https", list(bind), from)
		c.set("tls-cert", list(cert), "tls_cert_path")
		c.set("tls-key", list(key), "tls_key_path")
	}
	return nil
}

// keys takes over the signing keys: those of the file, and of the variables in which systemd units have them.
func (c *converter) keys(lookup func(string) (string, bool)) func(*harmoniaSettings) error {
	return func(s *harmoniaSettings) error {
		paths, from := slices.Clone(s.SignKeyPaths), []string(nil)
		if len(paths) > 0 {
			from = append(from, "sign_key_paths")
		}
		add := func(name string, more ...string) {
			if len(more) > 0 {
				paths, from = append(paths, more...), append(from, name)
			}
		}
		if s.SignKeyPath != nil {
			add("sign_key_path", *s.SignKeyPath)
		}
		if path, ok := lookup("SIGN_KEY_PATH"); ok {
			add("$SIGN_KEY_PATH", path)
		}
		many, _ := lookup("SIGN_KEY_PATHS")
		add("$SIGN_KEY_PATHS", strings.Fields(many)...)
		if len(paths) == 0 {
			c.note("harmonia signs nothing without sign_key_paths (or the variable SIGN_KEY_PATHS, which is read here too if it is set). firn makes a key at its first start, and signs with it.")
			return nil
		}
		c.set("key", list(paths...), strings.Join(from, ", "))
		return nil
	}
}

// store takes over which store is served.
func (c *converter) store(s *harmoniaSettings) error {
	virtual := value(s.VirtualNixStore, defaultStore)
	physical := value(s.RealNixStore, virtual)
	root, below := strings.CutSuffix(path.Clean(physical), defaultStore)
	switch {
	case virtual != defaultStore && physical == virtual:
		c.note("virtual_nix_store = %s: start firn with the variable NIX_STORE_DIR=%s, as Nix itself on that machine.", quote(virtual), virtual)
	case physical == virtual:
	case virtual == defaultStore && below && root != "" && filepath.IsAbs(root):
		c.set("store", quote(root), "real_nix_store")
	default:
		c.note("real_nix_store = %s: firn serves %s from a root, as `nix --store ROOT` lays it out: ROOT/nix/store with ROOT/nix/var/nix. Move the store there, and set store to ROOT.", quote(physical), virtual)
	}
	database := path.Join(path.Dir(path.Clean(physical)), "var/nix/db/db.sqlite")
	if path.Clean(value(s.NixDBPath, database)) == database {
		return nil
	}
	if state, ok := strings.CutSuffix(path.Clean(*s.NixDBPath), "/db/db.sqlite"); ok && physical == virtual {
		c.note("nix_db_path = %s: start firn with the variable NIX_STATE_DIR=%s, as Nix itself on that machine.", quote(*s.NixDBPath), state)
	} else {
		c.note("nix_db_path = %s: firn reads the database that belongs to the store, here %s.", quote(*s.NixDBPath), database)
	}
	return nil
}

func (c *converter) priority(s *harmoniaSettings) error {
	switch {
	case s.Priority == nil: // 30, as firn's
	case *s.Priority < 0 || *s.Priority > math.MaxUint16:
		return fmt.Errorf("priority: %d is not a number from 0 to %d", *s.Priority, math.MaxUint16)
	default:
		c.set("priority", strconv.FormatInt(*s.Priority, 10), "priority")
	}
	return nil
}

// maxLevel is the highest level of zstd.
const maxLevel = 22

func (c *converter) compression(s *harmoniaSettings) error {
	const way = "harmonia compresses an answer while it sends it, each time anew, and such a download cannot be resumed. firn compresses a NAR once and keeps it, on disk, within cache-size"
	on := s.EnableCompression != nil && *s.EnableCompression
	if !on && s.Zstd != nil && s.Zstd.Level != nil {
		c.note("zstd.level = %d: that is compression-level, where there is compression.", *s.Zstd.Level)
	}
	switch {
	case s.EnableCompression == nil:
		c.note(`enable_compression: in late versions of harmonia it is on by default. %s; over slow links say so with compression = "zstd".`, way)
		return nil
	case !on:
		c.set("compression", quote("none"), "enable_compression")
		return nil
	}
	c.set("compression", quote("zstd"), "enable_compression")
	c.note("enable_compression: %s.", way)
	if s.Zstd == nil || s.Zstd.Level == nil {
		return nil
	}
	if level := *s.Zstd.Level; 1 <= level && level <= maxLevel {
		c.set("compression-level", strconv.FormatInt(level, 10), "zstd.level")
	} else {
		c.note("zstd.level = %d: firn has the levels from 1 to %d.", level, maxLevel)
	}
	return nil
}

// others says what becomes of the rest.
func (c *converter) others(s *harmoniaSettings) {
	number := func(key string, n *int64, why string) {
		if n != nil {
			c.note("%s = %d: %s", key, *n, why)
		}
	}
	number("workers", s.Workers, "firn is one process that uses all processors; the variable GOMAXPROCS bounds them.")
	number("max_connection_rate", s.MaxConnectionRate, "firn bounds what connections may cost, and not how fast they come: see Limits in docs/operations.md.")
	number("max_connections", s.MaxConnections, "firn bounds the connections of one address by itself: see Limits in docs/operations.md.")
	number("pool_size", s.PoolSize, "firn reads the database and needs no pool of connections to the Nix daemon.")
	if s.DaemonSocket != nil {
		c.note("daemon_socket = %s: start firn with the variable NIX_DAEMON_SOCKET_PATH=%s, if that is not the usual place.", quote(*s.DaemonSocket), *s.DaemonSocket)
	}
	if s.Zstd == nil {
		return
	}
	if s.Zstd.LongDistance != nil {
		c.note("zstd.long_distance_matching = %t: firn decides that itself.", *s.Zstd.LongDistance)
	}
	number("zstd.window_log", s.Zstd.WindowLog, "firn decides that itself.")
	number("zstd.max_ldm_encoders_per_worker", s.Zstd.MaxEncoders, "firn bounds its memory itself.")
}
