package nixserve

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"

	"firn/internal/certs"
	"firn/internal/config"
	"firn/internal/localstore"
)

// parseNixServe returns what a command line comes to.
func parseNixServe(t *testing.T, args ...string) (*plan, error) {
	t.Helper()
	line := &struct {
		NixServe Command `cmd:""`
	}{}
	parser, err := kong.New(line)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse(append([]string{Name}, args...)); err != nil {
		return nil, err
	}
	return line.NixServe.plan(func(string) (string, bool) { return "", false })
}

// Addresses are read as Starman, plackup and nix-serve-ng read them.
func TestNixServeAddresses(t *testing.T) {
	t.Parallel()
	const cert, key = "--ssl-cert=/c", "--ssl-key=/k"
	for _, test := range []struct {
		args       []string
		plain, tls string
	}{
		{nil, ":5000", ""},
		{[]string{"--listen", ":5000"}, ":5000", ""},
		{[]string{"-l", "127.0.0.1:80", "--listen=[::1]:80", "--listen", "/run/s"}, "127.0.0.1:80 [::1]:80 unix:/run/s", ""},
		{[]string{"--listen", "*:8080"}, ":8080", ""},
		{[]string{"--host", "127.0.0.1", "-p", "80"}, "127.0.0.1:80", ""},
		{[]string{"-o", "::1", "--port=80"}, "[::1]:80", ""},
		{[]string{"--host", "!4"}, "0.0.0.0:5000", ""},
		{[]string{"-S", "/run/s", "--backlog", "5"}, "unix:/run/s", ""},
		{[]string{"--socket=/run/s", "--port", "7", "--listen", ":9"}, ":9", ""},
		{[]string{"--listen", "/run/a:b"}, "unix:/run/a:b", ""},
		{[]string{"--listen", ":443:ssl", "--listen", ":80", cert, key}, ":80", ":443"},
		{[]string{"--listen", ":443", "--enable-ssl", cert, key}, "", ":443"},
		{[]string{"--port", "443", "--tls-cert=/c", "--tls-key=/k"}, "", ":443"},
		{strings.Fields("-E deployment -s Starman -MFoo -I lib -L Delayed --max-requests 100 --preload-app --disable-keepalive --keepalive-timeout 5 " +
			"--read-timeout 5 --disable-proctitle --no-default-middleware --timeout 60 --quiet --verbose --log-format real-ip"), ":5000", ""},
	} {
		p, err := parseNixServe(t, test.args...)
		if err != nil {
			t.Errorf("%q: %v", test.args, err)
			continue
		}
		var plain, tls []string
		for _, a := range p.plain {
			plain = append(plain, a.String())
		}
		for _, a := range p.tls {
			tls = append(tls, a.String())
		}
		if got := [2]string{strings.Join(plain, " "), strings.Join(tls, " ")}; got != [2]string{test.plain, test.tls} {
			t.Errorf("%q: plain and TLS are %q", test.args, got)
		}
	}
	for _, test := range []struct{ args, want string }{
		{"--listen :443:ssl", "listen on :443:ssl: there is no certificate; name one with --ssl-cert and --ssl-key"},
		{"--ssl-cert /c", "TLS takes both --ssl-cert and --ssl-key"},
		{"--listen host:http", `address "host:http": the port is not a number from 0 to 65535`},
		{"--store ssh://host", `store "ssh://host": only stores of this machine are served`},
		{"--unknown", "unknown flag --unknown"},
	} {
		if _, err := parseNixServe(t, strings.Fields(test.args)...); err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.args, err, test.want)
		}
	}
}

// Stores are named as in NIX_REMOTE.
func TestStoreNamed(t *testing.T) {
	env := config.Nix{StateDir: "/state", DaemonSocket: "/socket"}
	own := localstore.Options{StateDir: "/state", DaemonSocket: "/socket"}
	for name, want := range map[string]localstore.Options{
		"":                                  own,
		"auto":                              own,
		"daemon":                            own,
		"auto?path-info-cache-size=0":       own,
		"local://":                          own,
		"unix://":                           own,
		"unix:///run/nix.sock":              {StateDir: "/state", DaemonSocket: "/run/nix.sock"},
		"/mnt":                              {Root: "/mnt"},
		"local?root=/mnt":                   {Root: "/mnt"},
		"local?root=/mnt%20x&log=/l":        {Root: "/mnt x", LogDir: "/l"},
		"local?store=/gnu/store&state=/gnu": {StoreDir: "/gnu/store", StateDir: "/gnu", DaemonSocket: "/socket"},
		"unix:///run/s?root=/mnt":           {Root: "/mnt", DaemonSocket: "/run/s"},
	} {
		got, err := storeNamed(name, env)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%q: %v (-want +got):\n%s", name, err, diff)
		}
	}
	for _, name := range []string{"ssh://host", "https://cache.example.org", "mnt", "local?root=mnt", "local?store=x", "s3://bucket", "local://host"} {
		if got, err := storeNamed(name, env); err == nil {
			t.Errorf("%q is %+v", name, got)
		}
	}
}

// A certificate may come through a pipe, from which nobody sends anything any more.
func TestNixServeKeyInPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	p := &plan{pairs: []certs.Pair{{Cert: path, Key: path}}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.warnOfUnreadable(slog.New(slog.DiscardHandler))
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("it waits for the pipe")
		if w, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil {
			w.Close()
		}
		<-done
	}
}
