package config

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"firn/internal/listen"
	"firn/nix"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// env is an environment.
type env map[string]string

func (e env) lookup(name string) (string, bool) {
	value, ok := e[name]
	return value, ok
}

func TestPrecedence(t *testing.T) {
	base := env{"STATE_DIRECTORY": "/var/lib/private/firn:/elsewhere"}
	defaults := Config{
		Listen: addresses(t, "[::]:5000"), Store: StoreAuto, Priority: 30,
		Compression: CompressionNone, CompressionLevel: 3, CacheSize: "10GiB", DepotLevel: 1, MaxNARSize: "64GiB",
		ACMEDirectory: "https://acme-v02.api.letsencrypt.org/directory", PlainHTTP: PlainServe, HTTP2: true,
		UnknownHost: UnknownMain, TrustedProxy: []Proxy{ProxyLocal}, SocketMode: "666",
		State: "/var/lib/private/firn", LogLevel: "info", LogFormat: LogText,
		AccessLogFormat: AccessCombined,
	}
	from := func(edit func(*Config)) Config { c := defaults; edit(&c); return c }
	for _, test := range []struct {
		name    string
		file    string
		env     env
		want    Config
		origins Origins // the ones that are not "default"
	}{
		{name: "defaults", want: defaults},
		{
			name: "file",
			file: "listen = [\":1\", \"unix:/s\"]\nkey = ['/a', '/b,c']\nstore = \"/mnt\"\npriority = 0\nstate = '/state'\nlog-level = 'debug'\nlog-format = 'json'\n" +
				"compression = 'zstd'\ncompression-level = 19\ncache-size = '500MB'\ndepot-level = 12\nmax-nar-size = '1GB'\n" +
				"ssh = [':22']\nssh-store = false\n" +
				"https = [':443']\ntls-cert = ['/c']\ntls-key = ['/k']\nacme = 'a@b'\nacme-directory = 'https://ca/dir'\nacme-ca = '/ca'\n" +
				"acme-challenge = ['http-01']\nplain-http = 'redirect'\nhttp2 = false\nclient-certs = true\nunknown-host = 'refuse'\n" +
				"trusted-proxy = ['10.0.0.0/8', 'unix']\nsocket-mode = '0660'\n",
			want: Config{
				HTTPS: addresses(t, ":443"), TLSCert: []string{"/c"}, TLSKey: []string{"/k"}, ACME: "a@b", ACMEDirectory: "https://ca/dir", ACMECA: "/ca",
				ACMEChallenge: []ACMEChallenge{ChallengeHTTP}, PlainHTTP: PlainRedirect, ClientCerts: true, UnknownHost: UnknownRefuse,
				TrustedProxy: []Proxy{"10.0.0.0/8", ProxyUnix}, SocketMode: "0660",
				Listen: addresses(t, ":1", "unix:/s"), Key: []string{"/a", "/b,c"}, Store: "/mnt", Priority: 0,
				Compression: CompressionZstd, CompressionLevel: 19, CacheSize: "500MB", DepotLevel: 12, MaxNARSize: "1GB",
				State: "/state", LogLevel: "debug", LogFormat: LogJSON,
				AccessLogFormat: AccessCombined,
				SSH:             addresses(t, ":22"),
			},
			origins: Origins{
				"ssh": "FILE:13", "ssh-store": "FILE:14",
				"https": "FILE:15", "tls-cert": "FILE:16", "tls-key": "FILE:17", "acme": "FILE:18", "acme-directory": "FILE:19", "acme-ca": "FILE:20",
				"acme-challenge": "FILE:21", "plain-http": "FILE:22", "http2": "FILE:23", "client-certs": "FILE:24", "unknown-host": "FILE:25",
				"trusted-proxy": "FILE:26", "socket-mode": "FILE:27",
				"listen": "FILE:1", "key": "FILE:2", "store": "FILE:3", "priority": "FILE:4",
				"state": "FILE:5", "log-level": "FILE:6", "log-format": "FILE:7",
				"compression": "FILE:8", "compression-level": "FILE:9", "cache-size": "FILE:10",
				"depot-level": "FILE:11", "max-nar-size": "FILE:12",
			},
		},
		{
			name: "a switch", file: "ssh-store = false\n", env: env{"FIRN_SSH_STORE": "true"},
			want:    from(func(c *Config) { c.State, c.SSHStore = "/var/lib/private/firn", true }),
			origins: Origins{"ssh-store": "FIRN_SSH_STORE"},
		},
		{
			name: "environment",
			env: env{
				"FIRN_LISTEN": ":1, unix:/s", "FIRN_KEY": "/a\n/b c\n", "FIRN_STORE": "off", "FIRN_PRIORITY": "65535",
				"FIRN_STATE": "/state", "FIRN_LOG_LEVEL": "error", "FIRN_LOG_FORMAT": "json",
				"FIRN_COMPRESSION": "zstd", "FIRN_COMPRESSION_LEVEL": "1", "FIRN_CACHE_SIZE": "1 TiB",
				"FIRN_DEPOT_LEVEL": "1", "FIRN_MAX_NAR_SIZE": "64MiB",
				"FIRN_ACME_DIRECTORY": "https://acme/dir", "FIRN_TRUSTED_PROXY": "10.0.0.1,2001:db8::/32",
			},
			want: Config{
				Listen: addresses(t, ":1", "unix:/s"), Key: []string{"/a", "/b c"}, Store: StoreOff, Priority: 65535,
				ACMEDirectory: "https://acme/dir", PlainHTTP: PlainServe, HTTP2: true, UnknownHost: UnknownMain,
				TrustedProxy: []Proxy{"10.0.0.1", "2001:db8::/32"}, SocketMode: "666",
				Compression: CompressionZstd, CompressionLevel: 1, CacheSize: "1 TiB", DepotLevel: 1, MaxNARSize: "64MiB",
				State: "/state", LogLevel: "error", LogFormat: LogJSON,
				AccessLogFormat: AccessCombined,
			},
			origins: Origins{
				"listen": "FIRN_LISTEN", "key": "FIRN_KEY", "store": "FIRN_STORE", "priority": "FIRN_PRIORITY",
				"state": "FIRN_STATE", "log-level": "FIRN_LOG_LEVEL", "log-format": "FIRN_LOG_FORMAT",
				"compression": "FIRN_COMPRESSION", "compression-level": "FIRN_COMPRESSION_LEVEL", "cache-size": "FIRN_CACHE_SIZE",
				"depot-level": "FIRN_DEPOT_LEVEL", "max-nar-size": "FIRN_MAX_NAR_SIZE",
				"acme-directory": "FIRN_ACME_DIRECTORY", "trusted-proxy": "FIRN_TRUSTED_PROXY",
			},
		},
		{
			name:    "environment over file",
			file:    "listen = [':1', ':2']\npriority = 10\nkey = ['/file']\n",
			env:     env{"FIRN_LISTEN": ":3", "NIX_SECRET_KEY_FILE": "/nix,key"},
			want:    from(func(c *Config) { c.Listen, c.Priority, c.Key = addresses(t, ":3"), 10, []string{"/nix,key"} }),
			origins: Origins{"listen": "FIRN_LISTEN", "priority": "FILE:2", "key": "NIX_SECRET_KEY_FILE"},
		},
		{
			name:    "our variable over Nix's",
			env:     env{"FIRN_KEY": "/ours", "NIX_SECRET_KEY_FILE": "/nix"},
			want:    from(func(c *Config) { c.Key = []string{"/ours"} }),
			origins: Origins{"key": "FIRN_KEY"},
		},
		{
			name:    "an empty variable is none",
			file:    "priority = 10\n",
			env:     env{"FIRN_PRIORITY": "", "FIRN_LISTEN": " \n", "NIX_SECRET_KEY_FILE": ""},
			want:    from(func(c *Config) { c.Priority = 10 }),
			origins: Origins{"priority": "FILE:1"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			path, vars := "", maps.Clone(base)
			if test.file != "" {
				path = write(t, test.file)
			}
			maps.Copy(vars, test.env)
			got, origins, err := Load(path, vars.lookup)
			if err != nil {
				t.Fatal(err)
			}
			if err := got.Check(); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(&test.want, got, cmp.AllowUnexported(listen.Address{}), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
			want := Origins{}
			for _, s := range Settings() {
				want[s.Key] = "default"
				if origin, ok := test.origins[s.Key]; ok {
					want[s.Key] = strings.Replace(origin, "FILE:", path+":", 1)
				}
			}
			if diff := cmp.Diff(want, origins); diff != "" {
				t.Errorf("origins (-want +got):\n%s", diff)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	for _, test := range []struct {
		name, file string
		env        env
		want       string
	}{
		{name: "unknown keys", file: "# c\nprioirty = 3\nListen = []\n[table]\nx = 1\n",
			want: "FILE:2: unknown key prioirty\nFILE:3: unknown key Listen\nFILE:4: unknown key table"},
		{name: "a key with a comma", file: "\n'a,b' = 1\n", want: `FILE: unknown key "a,b"`},
		{name: "a dotted key", file: "\na.b = 1\na.c = 1\n", want: "FILE:2: unknown key a.b"},
		{name: "switches", file: "ssh-store = 1\n", want: "FILE:1: ssh-store: want true or false"},
		{name: "a switch in the environment", env: env{"FIRN_SSH_STORE": "maybe"}, want: `FIRN_SSH_STORE: "maybe" is not true or false`},
		{name: "types", file: "listen = ':1'\nstore = 5\npriority = '30'\nkey = ['a', 3]\nstate = true\n",
			want: "FILE:1: listen: want a list of strings\nFILE:2: store: want a string\nFILE:3: priority: want a number\n" +
				"FILE:4: key: want a list of strings\nFILE:5: state: want a string"},
		{name: "tables", file: "[listen]\na = 1\n[[key]]\nb = 2\n",
			want: "FILE:1: listen: want a list of strings\nFILE:3: key: want a list of strings"},
		{name: "values", file: "priority = -1\nlog-level = 'loud'\nlisten = ['5000']\nstore = 'https://cache.nixos.org'\n",
			want: "FILE:1: priority: \"-1\" is not a number from 0 to 65535\n" +
				"FILE:2: log-level: \"loud\" is not one of [\"debug\" \"info\" \"warn\" \"error\"]\n" +
				"FILE:3: listen: address \"5000\": want HOST:PORT, :PORT or unix:PATH\n" +
				"FILE:4: store: \"https://cache.nixos.org\" is a store URL; want the root of a store on this machine, auto or off"},
		{name: "compression", file: "compression = 'xz'\ncompression-level = 0\ncache-size = 'big'\n",
			want: "FILE:1: compression: \"xz\" is not one of [\"none\" \"zstd\"]\n" +
				"FILE:2: compression-level: \"0\" is not a number from 1 to 22\n" +
				"FILE:3: cache-size: \"big\" is not a size such as 10GiB or 500MB"},
		{name: "little size", file: "cache-size = '1MB'\n", want: "FILE:1: cache-size: 1MB is less than 64 MiB"},
		{name: "depot", file: "depot-level = 13\nmax-nar-size = '64MB'\n",
			want: "FILE:1: depot-level: \"13\" is not a number from 1 to 12\nFILE:2: max-nar-size: 64MB is less than 64 MiB"},
		{name: "network", file: "socket-mode = '999'\nplain-http = 'x'\ntrusted-proxy = ['10.0.0.0/99']\nacme-challenge = ['dns-01']\n",
			want: "FILE:1: socket-mode: \"999\" is not a mode such as 660\nFILE:2: plain-http: \"x\" is not one of [\"serve\" \"redirect\"]\n" +
				"FILE:3: trusted-proxy: \"10.0.0.0/99\" is not an address or a range such as 10.0.0.0/8, and none of local, unix and none\n" +
				"FILE:4: acme-challenge: \"dns-01\" is not one of [\"tls-alpn-01\" \"http-01\"]"},
		{name: "syntax", file: "priority = 1\nlisten = [\n", want: "FILE:2: unexpected EOF; expected value"},
		{name: "twice", file: "priority = 1\npriority = 2\n", want: "FILE:2: Key 'priority' has already been defined."},
		{name: "too long", file: strings.Repeat("#", maxFile+1), want: "read configuration: read FILE: longer than 65536 bytes"},
		{name: "variable", env: env{"FIRN_PRIORITY": "high"}, want: `FIRN_PRIORITY: "high" is not a number from 0 to 65535`},
		{name: "list variable", env: env{"FIRN_LISTEN": ":1,2"}, want: `FIRN_LISTEN: address "2": want HOST:PORT, :PORT or unix:PATH`},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := ""
			if test.file != "" {
				path = write(t, test.file)
			}
			c, _, err := Load(path, test.env.lookup)
			if err == nil {
				t.Fatalf("no error: %+v", c)
			}
			if diff := cmp.Diff(strings.ReplaceAll(test.want, "FILE", path), err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
	if _, _, err := Load(filepath.Join(t.TempDir(), "absent"), env{}.lookup); err == nil {
		t.Error("an absent file: no error")
	}
}

// A file of another program is refused soon, and in few lines.
func TestManyErrors(t *testing.T) {
	var text strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&text, "k%d = 1\n", i)
	}
	path := write(t, text.String())
	_, _, err := Load(path, env{}.lookup)
	if err == nil {
		t.Fatal("no error")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != maxWrong+1 || lines[0] != path+":1: unknown key k0" || lines[maxWrong] != path+": and more that is wrong" {
		t.Errorf("the error has %d lines:\n%v", len(lines), err)
	}
}

func TestCheck(t *testing.T) {
	for want, edit := range map[string]func(*Config){
		"listen: there is no address to listen on": func(c *Config) { c.Listen = nil },
		"key: the path of a key file is empty":     func(c *Config) { c.Key = []string{"a", ""} },
		"key: this is a secret key itself; want the path of a file that holds it": func(c *Config) {
			c.Key = []string{"k-1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8DoQe/884Qvh1w3RjnS8CZZ+TWMJulDV8d3IZkElUxuA=="}
		},
		"ssh-store: it is for this machine's own store, which another one, or none, is served instead of": func(c *Config) { c.SSHStore, c.Store = true, StoreOff },
		"state: there is no directory; name one with --state, or set HOME":                                func(c *Config) { c.State = "" },
	} {
		c, _, err := Load("", env{"STATE_DIRECTORY": "/s"}.lookup)
		if err != nil {
			t.Fatal(err)
		}
		edit(c)
		if err := c.Check(); err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}

func TestStateDir(t *testing.T) {
	for _, test := range []struct {
		env  env
		uid  int
		want string
	}{
		{env{"STATE_DIRECTORY": "/a:/b", "HOME": "/root"}, 0, "/a"},
		{env{"XDG_STATE_HOME": "/x", "HOME": "/root"}, 0, "/var/lib/firn"},
		{env{"XDG_STATE_HOME": "/x", "HOME": "/home/u"}, 1000, "/x/firn"},
		{env{"XDG_STATE_HOME": "relative", "HOME": "/home/u"}, 1000, "/home/u/.local/state/firn"},
		{env{"HOME": "/home/u"}, 1000, "/home/u/.local/state/firn"},
		{env{}, 1000, ""},
	} {
		if got := stateDir(test.env.lookup, test.uid); got != test.want {
			t.Errorf("stateDir(%v, %d) = %q, want %q", test.env, test.uid, got, test.want)
		}
	}
}

func TestNixEnvironment(t *testing.T) {
	got, err := NixEnvironment(env{
		"NIX_STORE_DIR": "/gnu/store", "NIX_STATE_DIR": "/gnu/var", "NIX_LOG_DIR": "/gnu/log", "NIX_DAEMON_SOCKET_PATH": "/gnu/s",
	}.lookup)
	if err != nil {
		t.Fatal(err)
	}
	want := Nix{StoreDir: nix.StoreDir("/gnu/store"), StateDir: "/gnu/var", LogDir: "/gnu/log", DaemonSocket: "/gnu/s"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Nix's environment (-want +got):\n%s", diff)
	}
	if got, err := NixEnvironment(env{"NIX_STORE_DIR": "/gnu//store/", "NIX_STATE_DIR": ""}.lookup); err != nil || got != (Nix{StoreDir: "/gnu/store"}) {
		t.Errorf("paths that are not in their shortest form: %+v, %v", got, err)
	}
	_, err = NixEnvironment(env{"NIX_STORE_DIR": "store", "NIX_STATE_DIR": "../var", "NIX_LOG_DIR": "/log"}.lookup)
	if want := "NIX_STATE_DIR: \"../var\" is not an absolute path\nNIX_STORE_DIR: \"store\" is not an absolute path"; err == nil || err.Error() != want {
		t.Errorf("relative paths: %v, want %s", err, want)
	}
	if _, err := NixEnvironment(env{"NIX_STORE_DIR": "/"}.lookup); err == nil || !strings.HasPrefix(err.Error(), "NIX_STORE_DIR: ") {
		t.Errorf("a NIX_STORE_DIR of /: %v", err)
	}
}

// What Show writes is a configuration file of the same settings.
func TestShowLoads(t *testing.T) {
	vars := env{"FIRN_LISTEN": ":1,unix:/a b", "FIRN_KEY": "/quo\"te", "STATE_DIRECTORY": "/s"}
	want, origins, err := Load("", vars.lookup)
	if err != nil {
		t.Fatal(err)
	}
	var shown strings.Builder
	if err := want.Show(&shown, origins); err != nil {
		t.Fatal(err)
	}
	if line := `listen = [":1", "unix:/a b"] # FIRN_LISTEN` + "\n"; !strings.Contains(shown.String(), line) {
		t.Errorf("no line %q in\n%s", line, &shown)
	}
	got, _, err := Load(write(t, shown.String()), env{}.lookup)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(listen.Address{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("listen = [\":1\"]\npriority = 3\n")
	f.Add("[table]\n'a,b'.c = [{ d = 1 }]\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, origins, err := Load(write(t, text), env{"STATE_DIRECTORY": "/s"}.lookup)
		if err != nil {
			return
		}
		var shown strings.Builder
		if err := c.Show(&shown, origins); err != nil {
			t.Error(err)
		}
	})
}

func write(t *testing.T, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "firn.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func addresses(t *testing.T, texts ...string) (list []listen.Address) {
	t.Helper()
	for _, text := range texts {
		a, err := listen.ParseAddress(text)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, a)
	}
	return list
}
