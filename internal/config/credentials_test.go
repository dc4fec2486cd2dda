package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"firn/internal/listen"
)

// credentials makes a directory of credentials, and returns how to look it up.
func credentials(t *testing.T, names ...string) (dir string, lookup LookupEnv) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o400); err != nil {
			t.Fatal(err)
		}
	}
	return dir, func(name string) (string, bool) { return dir, name == "CREDENTIALS_DIRECTORY" }
}

func TestCredentials(t *testing.T) {
	dir, lookup := credentials(t, "key", "key.2", "key.old.one", "tls-cert", "tls-key", "tls-cert.b", "tls-key.b", "authorities", "another")
	in := func(names ...string) (paths []string) {
		for _, name := range names {
			paths = append(paths, filepath.Join(dir, name))
		}
		return paths
	}
	c := &Config{Key: []string{"/etc/firn/secret", filepath.Join(dir, "another"), filepath.Join(dir, "key.2")}, ACMECA: filepath.Join(dir, "authorities")}
	origins := Origins{"key": "firn.toml:3", "tls-cert": fromDefault, "tls-key": fromDefault}
	if err := c.AddCredentials(lookup, origins); err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Key:     append([]string{"/etc/firn/secret"}, in("another", "key.2", "key", "key.old.one")...),
		TLSCert: in("tls-cert", "tls-cert.b"),
		TLSKey:  in("tls-key", "tls-key.b"),
		ACMECA:  filepath.Join(dir, "authorities"),
	}
	if diff := cmp.Diff(want, c, cmpopts.EquateComparable(listen.Address{})); diff != "" {
		t.Errorf("the settings are not as expected (-want +got):\n%s", diff)
	}
	from := Origins{"key": "firn.toml:3 and CREDENTIALS_DIRECTORY", "tls-cert": "CREDENTIALS_DIRECTORY", "tls-key": "CREDENTIALS_DIRECTORY"}
	if diff := cmp.Diff(from, origins); diff != "" {
		t.Errorf("the origins are not as expected (-want +got):\n%s", diff)
	}
}

func TestCredentialErrors(t *testing.T) {
	for _, test := range []struct {
		names []string
		want  string
	}{
		{[]string{"secret-key"}, "credential secret-key: there is no use for one of this name; name it key or key.ANYTHING, or tls-cert with tls-key, or have a setting name its file"},
		{[]string{"key."}, "credential key.: there is no use for one of this name; "},
		{[]string{"tls-cert.a", "tls-key"}, "credential tls-cert.a: its key is missing, the credential tls-key.a\ncredential tls-key: its certificate is missing, the credential tls-cert"},
	} {
		_, lookup := credentials(t, test.names...)
		if err := new(Config).AddCredentials(lookup, Origins{}); err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%v: %v, want %s", test.names, err, test.want)
		}
	}
	gone := func(string) (string, bool) { return filepath.Join(t.TempDir(), "gone"), true }
	if err := new(Config).AddCredentials(gone, Origins{}); err == nil || !strings.HasPrefix(err.Error(), "read credentials: ") {
		t.Errorf("a directory that is not there: %v", err)
	}
	if err := new(Config).AddCredentials(func(string) (string, bool) { return "", false }, Origins{}); err != nil {
		t.Errorf("no directory: %v", err)
	}
}

func TestDifferences(t *testing.T) {
	load := func(vars map[string]string) *Config {
		t.Helper()
		c, _, err := Load("", func(name string) (string, bool) { v, ok := vars[name]; return v, ok })
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a := load(map[string]string{"FIRN_STATE": "/s"})
	if got := a.Differences(load(map[string]string{"FIRN_STATE": "/s"})); got != nil {
		t.Errorf("between equal settings there are the differences %v", got)
	}
	b := load(map[string]string{"FIRN_STATE": "/s", "FIRN_LISTEN": ":1, :2", "FIRN_HTTP2": "false", "FIRN_PRIORITY": "9"})
	if diff := cmp.Diff([]string{"listen", "http2", "priority"}, a.Differences(b)); diff != "" {
		t.Errorf("the differences are (-want +got):\n%s", diff)
	}
}
