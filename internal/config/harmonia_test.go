package config

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// nothing is an environment in which nothing is set.
func nothing(string) (string, bool) { return "", false }

// Every example becomes the configuration beside it, and that is one of firn.
func TestFromHarmonia(t *testing.T) {
	examples, err := filepath.Glob("testdata/harmonia/*.toml")
	if err != nil || len(examples) == 0 {
		t.Fatal("no examples", err)
	}
	for _, path := range examples {
		name := strings.TrimSuffix(filepath.Base(path), ".toml")
		t.Run(name, func(t *testing.T) {
			lookup := nothing
			if name == "keys" {
				lookup = func(name string) (string, bool) {
					value, ok := map[string]string{"SIGN_KEY_PATHS": "/run/keys/c  /run/keys/d", "SIGN_KEY_PATH": "/run/keys/b"}[name]
					return value, ok
				}
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got, err := FromHarmonia("settings.toml", string(text), lookup)
			if err != nil {
				t.Fatal(err)
			}
			golden := "testdata/harmonia/" + name + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got, -update takes it over):\n%s", diff)
			}
			file := filepath.Join(t.TempDir(), "firn.toml")
			if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
				t.Fatal(err)
			}
			c, _, err := Load(file, nothing)
			if err == nil {
				c.State = "/state"
				err = c.Check()
			}
			if err != nil {
				t.Errorf("firn does not take it: %v", err)
			}
		})
	}
}

func TestConvertErrors(t *testing.T) {
	for text, want := range map[string]string{
		"bind = 5\n":             "f: toml: line 1 ",
		"# x\nbind = \"\n":       "f:2: ",
		"priority = -1\n":        "f: priority: -1 is not a number from 0 to 65535",
		"tls_key_path = \"k\"\n": "f: tls_cert_path and tls_key_path: there is one without the other",
		"bind='unix:/s'\ntls_key_path='k'\ntls_cert_path='c'": "f: bind: harmonia serves no Unix socket over TLS",
	} {
		if _, err := FromHarmonia("f", text, nothing); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// Whatever is in the file, what comes out is a file of comments and settings.
func FuzzConvert(f *testing.F) {
	f.Add("bind = \"unix:\\u0000\\n\"\n\"a\\nlisten\" = 1\n")
	f.Add("virtual_nix_store = \"/x\\n\"\nreal_nix_store = \"\\\"\"\nsign_key_path = \"\"\n")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := FromHarmonia("f\n", text, nothing)
		if err != nil {
			return
		}
		for line := range strings.Lines(got) {
			key, _, _ := strings.Cut(line, " ")
			switch key {
			case "#", "\n", "#\n", "listen", "https", "tls-cert", "tls-key", "key", "store", "priority", "compression", "compression-level":
			default:
				t.Fatalf("%q in\n%s", line, got)
			}
		}
	})
}
