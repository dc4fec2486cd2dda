package nixserve

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"

	"firn/internal/certs"
	"firn/internal/config"
	"firn/internal/listen"
	"firn/internal/localstore"
	"firn/nix"
)

// ignored are flags that say how the programs do their work which this one takes the place of. They are taken, and have no effect.
type ignored struct {
	Workers           string   `placeholder:"N" help:"One process answers all."`
	Backlog           string   `placeholder:"N" help:"It is what the system allows."`
	MaxRequests       string   `placeholder:"N" help:"No process has to be replaced."`
	Timeout           string   `placeholder:"SECONDS" help:"Clients are waited for as long as they take something."`
	ReadTimeout       string   `placeholder:"SECONDS" help:"Likewise."`
	KeepaliveTimeout  string   `placeholder:"SECONDS" help:"Connections may wait for three minutes."`
	DisableKeepalive  bool     `help:"Clients that cannot keep a connection say so."`
	DisableProctitle  bool     `help:"The process has one name."`
	PreloadApp        bool     `help:"There is nothing to load."`
	EnableSSL         bool     `name:"enable-ssl" help:"A certificate does."`
	LogFormat         string   `placeholder:"FORMAT" help:"See --access-log."`
	Quiet             bool     `help:"Requests are logged with --access-log only."`
	Verbose           bool     `help:"See --access-log."`
	Env               string   `short:"E" placeholder:"NAME" help:"There are no environments of Plack."`
	Server            string   `short:"s" placeholder:"NAME" help:"There are no servers of Plack."`
	Loader            string   `short:"L" placeholder:"NAME" help:"There are no loaders of Plack."`
	Modules           []string `name:"module" short:"M" sep:"none" placeholder:"NAME" help:"There are no modules of Perl."`
	Includes          []string `name:"include" short:"I" sep:"none" placeholder:"DIR" help:"There are no modules of Perl."`
	DefaultMiddleware bool     `negatable:"" help:"There is none."`
}

// plan makes of flags and variables what they come to, and opens nothing.
func (c *Command) plan(lookup config.LookupEnv) (*plan, error) {
	p := &plan{priority: c.Priority}
	p.logs = config.Config{LogLevel: "info", LogFormat: config.LogText, AccessLogFormat: config.AccessCombined, LogFile: c.ErrorLog, AccessLog: c.AccessLog}
	if err := c.addresses(p); err != nil {
		return nil, err
	}
	env, err := config.NixEnvironment(lookup)
	if err != nil {
		return nil, err
	}
	name := c.Store
	if name == "" {
		name, _ = lookup("NIX_REMOTE")
	}
	if p.store, err = storeNamed(name, env); err != nil {
		return nil, err
	}
	key, _ := lookup("NIX_SECRET_KEY_FILE")
	for _, path := range []struct {
		to   *string
		path string
	}{{&p.keyFile, key}, {&p.pidFile, c.PID}} {
		if *path.to, err = absolute(path.path); err != nil {
			return nil, err
		}
	}
	p.user, err = FindUser(c.User, c.Group)
	return p, err
}

// absolute returns a path that stays right when the working directory changes; an empty one stays empty.
func absolute(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	return filepath.Abs(path)
}

// addresses finds out where to listen, and whether with TLS: where :ssl says so, or else everywhere if there is a certificate.
func (c *Command) addresses(p *plan) error {
	names := c.Listen
	switch {
	case len(names) > 0:
	case c.Socket != "":
		names = []string{c.Socket}
	default:
		names = []string{net.JoinHostPort(strings.Trim(c.Host, "[]"), strconv.Itoa(int(c.Port)))}
	}
	if (c.SSLCert == "") != (c.SSLKey == "") {
		return errors.New("TLS takes both --ssl-cert and --ssl-key")
	}
	if c.SSLCert != "" {
		cert, err := absolute(c.SSLCert)
		if err != nil {
			return err
		}
		key, err := absolute(c.SSLKey)
		if err != nil {
			return err
		}
		p.pairs = []certs.Pair{{Cert: cert, Key: key}}
	}
	for _, name := range names {
		bare, ssl := strings.CutSuffix(name, ":ssl")
		address, err := address(bare)
		switch {
		case err != nil:
			return err
		case ssl && len(p.pairs) == 0:
			return fmt.Errorf("listen on %s: there is no certificate; name one with --ssl-cert and --ssl-key", name)
		case ssl:
			p.tls = append(p.tls, address)
		default:
			p.plain = append(p.plain, address)
		}
	}
	if len(p.pairs) > 0 && len(p.tls) == 0 {
		p.plain, p.tls = nil, p.plain
	}
	return nil
}

// address reads HOST:PORT, :PORT, or the path of a socket. Hosts may be written as nix-serve-ng has them.
func address(name string) (listen.Address, error) {
	i := strings.LastIndexByte(name, ':')
	if i < 0 || strings.ContainsRune(name, '/') {
		path, err := absolute(strings.TrimPrefix(name, "unix:"))
		if err != nil {
			return listen.Address{}, err
		}
		return listen.ParseAddress("unix:" + path)
	}
	host, port := name[:i], name[i:]
	switch host {
	case "*", "*4", "*6", "!6":
		host = ""
	case "!4":
		host = "0.0.0.0"
	}
	if strings.ContainsRune(host, ':') && !strings.HasPrefix(host, "[") {
		host = "[" + host + "]"
	}
	return listen.ParseAddress(host + port)
}

// storeNamed returns the store of this machine that Nix knows by this name, as in NIX_REMOTE. env says where it is by default.
func storeNamed(name string, env config.Nix) (localstore.Options, error) {
	o := localstore.Options{StoreDir: env.StoreDir, StateDir: env.StateDir, LogDir: env.LogDir, DaemonSocket: env.DaemonSocket}
	bare, query, _ := strings.Cut(name, "?")
	params, err := url.ParseQuery(query)
	if err != nil {
		return o, fmt.Errorf("store %q: %w", name, err)
	}
	root := params.Get("root")
	scheme, path, hasScheme := strings.Cut(bare, "://")
	switch {
	case hasScheme && scheme == "unix" && path != "":
		o.DaemonSocket = path
	case hasScheme && path != "" || hasScheme && scheme != "local" && scheme != "daemon" && scheme != "unix" && scheme != "auto":
		return o, fmt.Errorf("store %q: only stores of this machine are served: daemon, local?root=DIR, unix://PATH, or a directory", name)
	case filepath.IsAbs(bare):
		root = bare
	case hasScheme, bare == "", bare == "auto", bare == "daemon", bare == "local":
	default:
		return o, fmt.Errorf("store %q: want daemon, local?root=DIR, unix://PATH, or an absolute path", name)
	}
	if root != "" { // Nix's own variables are about this machine's own store
		socket := o.DaemonSocket
		o = localstore.Options{Root: root, StoreDir: env.StoreDir}
		if scheme == "unix" {
			o.DaemonSocket = socket
		}
	}
	if dir := params.Get("store"); dir != "" {
		if o.StoreDir, err = nix.ParseStoreDir(dir); err != nil {
			return o, fmt.Errorf("store %q: %w", name, err)
		}
	}
	for param, to := range map[string]*string{"state": &o.StateDir, "log": &o.LogDir} {
		if dir := params.Get(param); dir != "" {
			*to = dir
		}
	}
	if !filepath.IsAbs(root) && root != "" {
		return o, fmt.Errorf("store %q: the root is not an absolute path", name)
	}
	return o, nil
}
