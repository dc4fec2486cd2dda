// Package config is what a server is told: one struct, filled from a file, then from the environment, then from flags.
// It builds nothing.
//
// The struct is the only list of the settings. Each field gives one setting all of its names:
//
//	LogLevel LogLevel `toml:"log-level" default:"info" help:"…"`
//
// is the key log-level in the file, the variable FIRN_LOG_LEVEL and the flag --log-level.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"firn/internal/listen"
	"firn/nix"
)

// Config is what a server is told. Its tags are read here and by kong, which makes the flags of them:
// help and placeholder are for people, complete tells a shell what a value is.
type Config struct {
	Listen           []listen.Address `toml:"listen" default:"[::]:5000" sep:"none" placeholder:"ADDRESS" help:"Where to listen: HOST:PORT, :PORT or unix:PATH. May be given several times."`
	HTTPS            []listen.Address `toml:"https" sep:"none" placeholder:"ADDRESS" help:"Where to listen with TLS, such as :443. Default: :443 where there are certificates. May be given several times."`
	TLSCert          []string         `toml:"tls-cert" sep:"none" placeholder:"FILE" complete:"file" help:"PEM file of a certificate, followed by the intermediate ones. May be given several times: the host name that a client asks for chooses among them. Read again when the file changes."`
	TLSKey           []string         `toml:"tls-key" sep:"none" placeholder:"FILE" complete:"file" help:"PEM file of the key of a --tls-cert, in the same order."`
	ACME             string           `toml:"acme" placeholder:"EMAIL" help:"Get certificates from an ACME authority for the host names of all caches, and renew them. The mail address is sent to the authority, and giving it accepts the authority's terms. The authority must reach this server under these names, at port 443 or 80."`
	ACMEDirectory    string           `toml:"acme-directory" default:"https://acme-v02.api.letsencrypt.org/directory" placeholder:"URL" help:"The directory URL of the ACME authority."`
	ACMECA           string           `name:"acme-ca" toml:"acme-ca" placeholder:"FILE" complete:"file" help:"PEM file of the CA certificates that must have signed the ACME server's own TLS certificate. Default: the system's CA certificates."`
	ACMEChallenge    []ACMEChallenge  `toml:"acme-challenge" sep:"none" placeholder:"KIND" complete:"tls-alpn-01,http-01" help:"How to prove to the ACME authority that a name is ours: tls-alpn-01, at port 443, or http-01, at port 80. May be given twice. Default: tls-alpn-01, and http-01 too where a --listen address has port 80."`
	PlainHTTP        PlainHTTP        `toml:"plain-http" default:"serve" placeholder:"WHAT" complete:"serve,redirect" help:"What to do with requests over plain HTTP where there are certificates: serve them, or redirect them to HTTPS and refuse uploads, whose tokens would be sent unencrypted."`
	HTTP2            bool             `name:"http2" toml:"http2" default:"true" negatable:"" help:"Speak HTTP/2 over TLS."`
	ClientCerts      bool             `toml:"client-certs" default:"false" negatable:"" help:"Ask clients for a certificate. Its rights are those that firn token create --certificate gave it."`
	UnknownHost      UnknownHost      `toml:"unknown-host" default:"main" placeholder:"WHAT" complete:"main,refuse" help:"What to do with requests for a host name that no cache has: main answers them from the cache main, refuse refuses them."`
	TrustedProxy     []Proxy          `toml:"trusted-proxy" sep:"none" default:"local" placeholder:"WHO" complete:"local,unix,none" help:"Reverse proxies whose X-Forwarded-For (or Forwarded) header is trusted to name the real client: an address, a range such as 10.0.0.0/8, local for this machine, unix for Unix sockets, or none. May be given several times."`
	SocketMode       SocketMode       `toml:"socket-mode" default:"666" placeholder:"MODE" help:"The permissions of the Unix sockets of --listen, in octal."`
	SSH              []listen.Address `toml:"ssh" sep:"none" placeholder:"ADDRESS" help:"Where to serve ssh:// and ssh-ng://, such as :2222. May be given several times. Default: no SSH. firn sshkey says who may log in."`
	SSHStore         bool             `toml:"ssh-store" default:"false" negatable:"" help:"Add paths that are pushed over SSH to the Nix store of this machine, through the Nix daemon, instead of to the depot. It applies to caches that serve that store."`
	Key              []string         `toml:"key" sep:"none" placeholder:"FILE" complete:"file" help:"Sign the cache main with the secret key in FILE. May be given several times. Default: a key that the first start makes in the state directory."`
	Store            Store            `toml:"store" default:"auto" placeholder:"ROOT" complete:"dir" help:"Serve the Nix store below ROOT, laid out as nix --store ROOT does. auto: this machine's own store where there is one. off: no store."`
	Priority         Priority         `toml:"priority" default:"30" placeholder:"NUMBER" help:"The priority of the cache main: clients ask the cache with the lowest number first. cache.nixos.org has 40."`
	Compression      Compression      `toml:"compression" default:"none" placeholder:"FORMAT" complete:"none,zstd" help:"How to send NARs of the local store: none, or zstd, which compresses a NAR when it is first asked for, and keeps the result in the state directory. zstd is for slow links. Pushed paths are always kept and sent as zstd."`
	CompressionLevel Level            `toml:"compression-level" default:"3" placeholder:"LEVEL" help:"The zstd level for --compression, from 1 to 22. Four levels exist: 1-2, 3-5, 6-9 and 10-22."`
	CacheSize        Size             `toml:"cache-size" default:"10GiB" placeholder:"SIZE" help:"How much disk the compressed NARs of --compression may take. Those that were not used for the longest time are deleted first."`
	DepotLevel       DepotLevel       `toml:"depot-level" default:"1" placeholder:"LEVEL" help:"The zstd level for what is pushed, from 1 to 12. What is kept already stays as it is."`
	MaxNARSize       Size             `toml:"max-nar-size" default:"64GiB" placeholder:"SIZE" help:"The largest NAR that may be pushed, uncompressed."`
	State            string           `toml:"state" placeholder:"DIR" complete:"dir" help:"The state directory, with everything that firn keeps: what was pushed, caches, tokens and the key it made. Default: systemd's $STATE_DIRECTORY, else /var/lib/firn for root, else $XDG_STATE_HOME/firn."`
	LogLevel         LogLevel         `toml:"log-level" default:"info" placeholder:"LEVEL" complete:"debug,info,warn,error" help:"Log records of this level and above: debug, info, warn or error."`
	LogFormat        LogFormat        `toml:"log-format" default:"text" placeholder:"FORMAT" complete:"text,json" help:"Log as text or as JSON, one record a line."`
	LogFile          string           `toml:"log-file" placeholder:"FILE" complete:"file" help:"Log to FILE instead of standard error. SIGUSR1 opens it again."`
	AccessLog        string           `toml:"access-log" placeholder:"FILE" complete:"file" help:"Write a line for every HTTP request to FILE, or to stderr. SIGUSR1 opens the file again. Default: no access log."`
	AccessLogFormat  AccessLogFormat  `toml:"access-log-format" default:"combined" placeholder:"FORMAT" complete:"combined,json" help:"The format of these lines: combined, as Apache writes them, or json. They are always JSON where they go to the same place as a log with --log-format json."`
}

// Check finds what no single value shows.
func (c *Config) Check() error {
	if len(c.Listen) == 0 && len(c.HTTPS) == 0 {
		return errors.New("listen: there is no address to listen on")
	}
	for _, path := range c.Key {
		if path == "" {
			return errors.New("key: the path of a key file is empty")
		}
		if _, err := nix.ParseSecretKey(path); err == nil {
			return errors.New("key: this is a secret key itself; want the path of a file that holds it")
		}
	}
	if err := c.checkTLS(); err != nil {
		return err
	}
	if c.SSHStore && c.Store != StoreAuto {
		return errors.New("ssh-store: it is for this machine's own store, which another one, or none, is served instead of")
	}
	if c.State == "" {
		return errors.New("state: there is no directory; name one with --state, or set HOME")
	}
	return nil
}

// A Store says which store is served: StoreAuto, StoreOff, or the root of one.
type Store string

const (
	StoreAuto Store = "auto" // this machine's own, where there is one
	StoreOff  Store = "off"  // none
)

// Root returns the root of the store when it is not this machine's own.
func (s Store) Root() (root string, ok bool) { return string(s), s != StoreAuto && s != StoreOff }

// UnmarshalText reads "auto", "off" or the path of a directory.
func (s *Store) UnmarshalText(text []byte) error {
	switch {
	case len(text) == 0:
		return errors.New("want the root of a store, auto or off")
	case strings.Contains(string(text), "://"), slices.Contains([]string{"daemon", "local"}, string(text)):
		return fmt.Errorf("%q is a store URL; want the root of a store on this machine, auto or off", text)
	}
	*s = Store(text)
	return nil
}

// Priority is what clients that know several caches order them by.
type Priority uint16

// UnmarshalText reads a decimal number.
func (p *Priority) UnmarshalText(text []byte) error { return number(p, text, 0, math.MaxUint16) }

// LogLevel is the least level that is logged.
type LogLevel string

// UnmarshalText reads a level by its name.
func (l *LogLevel) UnmarshalText(text []byte) error {
	return oneOf(l, text, "debug", "info", "warn", "error")
}

// Level returns the level as slog has it.
func (l LogLevel) Level() slog.Level {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l)); err != nil {
		return slog.LevelInfo
	}
	return level
}

// LogFormat is how records are written.
type LogFormat string

const (
	LogText LogFormat = "text"
	LogJSON LogFormat = "json"
)

// UnmarshalText reads a format by its name.
func (f *LogFormat) UnmarshalText(text []byte) error { return oneOf(f, text, LogText, LogJSON) }

// AccessLogFormat is how the line of a request is written.
type AccessLogFormat string

const (
	AccessCombined AccessLogFormat = "combined"
	AccessJSON     AccessLogFormat = "json"
)

// UnmarshalText reads a format by its name.
func (f *AccessLogFormat) UnmarshalText(text []byte) error {
	return oneOf(f, text, AccessCombined, AccessJSON)
}

func oneOf[T ~string](dst *T, text []byte, names ...T) error {
	if !slices.Contains(names, T(text)) {
		return fmt.Errorf("%q is not one of %q", text, names)
	}
	*dst = T(text)
	return nil
}

// number reads a decimal number from least to most.
func number[T ~uint8 | ~uint16](dst *T, text []byte, least, most T) error {
	n, err := strconv.ParseUint(string(text), 10, 16)
	if err != nil || n < uint64(least) || n > uint64(most) {
		return fmt.Errorf("%q is not a number from %d to %d", text, least, most)
	}
	*dst = T(n)
	return nil
}

// A Setting is one field of Config with its names.
type Setting struct {
	Key     string // in the file, and of the flag: "log-level"
	Default string // "" when there is none or when it depends on the machine
	Help    string
	List    bool // may have several values
	index   int  // of the field
}

// Flag returns the name of the flag, "--log-level".
func (s Setting) Flag() string { return "--" + s.Key }

// Variable returns the name of the environment variable, "FIRN_LOG_LEVEL".
func (s Setting) Variable() string {
	return "FIRN_" + strings.ToUpper(strings.ReplaceAll(s.Key, "-", "_"))
}

// Settings lists the settings in the order of the fields of Config.
func Settings() []Setting {
	var settings []Setting
	for i, f := range reflect.VisibleFields(reflect.TypeFor[Config]()) {
		settings = append(settings, Setting{
			Key:     f.Tag.Get("toml"),
			Default: f.Tag.Get("default"),
			Help:    f.Tag.Get("help"),
			List:    f.Type.Kind() == reflect.Slice,
			index:   i,
		})
	}
	return settings
}

// Differences returns the keys of the settings in which another configuration differs.
func (c *Config) Differences(other *Config) (keys []string) {
	for _, s := range Settings() {
		if !reflect.DeepEqual(c.field(s).Interface(), other.field(s).Interface()) {
			keys = append(keys, s.Key)
		}
	}
	return keys
}

// Nix is what Nix's own environment variables say of this machine's store. Empty: Nix's default.
type Nix struct {
	StoreDir     nix.StoreDir // NIX_STORE_DIR
	StateDir     string       // NIX_STATE_DIR
	LogDir       string       // NIX_LOG_DIR
	DaemonSocket string       // NIX_DAEMON_SOCKET_PATH
}

// NixEnvironment reads Nix's own variables as Nix does: an empty one counts as not there,
// a path that is not absolute is an error, and any other is brought into its shortest form.
func NixEnvironment(lookup LookupEnv) (Nix, error) {
	var wrong []error
	get := func(name string) string {
		path, _ := lookup(name)
		if path == "" {
			return ""
		}
		if !filepath.IsAbs(path) {
			wrong = append(wrong, fmt.Errorf("%s: %q is not an absolute path", name, path))
		}
		return filepath.Clean(path)
	}
	env := Nix{StateDir: get("NIX_STATE_DIR"), LogDir: get("NIX_LOG_DIR"), DaemonSocket: get("NIX_DAEMON_SOCKET_PATH")}
	if dir := get("NIX_STORE_DIR"); filepath.IsAbs(dir) {
		var err error
		if env.StoreDir, err = nix.ParseStoreDir(dir); err != nil {
			wrong = append(wrong, fmt.Errorf("NIX_STORE_DIR: %w", err))
		}
	}
	if err := errors.Join(wrong...); err != nil {
		return Nix{}, err
	}
	return env, nil
}

// stateDir returns the default state directory, "" when this user has none.
func stateDir(lookup LookupEnv, uid int) string {
	if dirs, _ := lookup("STATE_DIRECTORY"); dirs != "" {
		dir, _, _ := strings.Cut(dirs, ":") // systemd.exec(5): several are separated by colons
		return dir
	}
	if uid == 0 {
		return "/var/lib/firn"
	}
	if dir, _ := lookup("XDG_STATE_HOME"); filepath.IsAbs(dir) { // the specification says to ignore others
		return filepath.Join(dir, "firn")
	}
	if home, _ := lookup("HOME"); home != "" {
		return filepath.Join(home, ".local", "state", "firn")
	}
	return ""
}

// LookupEnv is os.LookupEnv, or what stands for it in a test.
type LookupEnv func(name string) (value string, ok bool)

var _ LookupEnv = os.LookupEnv
