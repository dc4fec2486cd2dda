package remote

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// write writes files below a directory.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
}

// What Nix itself shows of its configuration is what is read here.
func TestAsNix(t *testing.T) {
	const system = `# a comment
substituters = https://cache.nixos.org/ http://one # and another
trusted-public-keys = a-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=
extra-trusted-public-keys = b-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=
include more/other.conf
!include absent.conf
netrc-file = /etc/one
`
	for name, test := range map[string]struct {
		files map[string]string
		vars  []string
	}{
		"nothing": {},
		"system":  {files: map[string]string{"etc/nix.conf": system, "etc/more/other.conf": "extra-substituters = http://two\ninclude deep.conf\n", "etc/more/deep.conf": "extra-substituters = http://three"}},
		"user": {files: map[string]string{
			"etc/nix.conf":               "extra-substituters = http://one\n",
			"home/.config/nix/nix.conf":  "extra-substituters = http://two\nnetrc-file = /home/netrc\n",
			"dirs/a/nix/nix.conf":        "netrc-file = /a\nsubstituters = http://a\n",
			"dirs/b/nix/nix.conf":        "netrc-file = /b\nsubstituters = http://b\nstore = /b\n",
			"home/.config/nix/other.com": "",
		}, vars: []string{"XDG_CONFIG_DIRS=DIR/dirs/a:DIR/dirs/b"}},
		"files of the user": {files: map[string]string{"x": "netrc-file = /x\n", "y": "netrc-file = /y\nextra-substituters = http://y\n"}, vars: []string{"NIX_USER_CONF_FILES=DIR/x:DIR/y"}},
		"variable":          {files: map[string]string{"etc/nix.conf": system, "etc/more/other.conf": ""}, vars: []string{"NIX_CONFIG=binary-caches = http://three\nextra-binary-cache-public-keys = c-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, test.files)
			vars := []string{"HOME=" + dir + "/home", "NIX_CONF_DIR=" + dir + "/etc", "XDG_CONFIG_DIRS=" + dir + "/none"}
			for _, v := range test.vars {
				vars = append(vars, strings.ReplaceAll(v, "DIR", dir))
			}
			conf, err := LoadNixConf(lookup(vars))
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{
				"netrc-file":          conf.Get("netrc-file", dir+"/etc/netrc"),
				"substituters":        strings.Join(conf.List("substituters", "https://cache.nixos.org/"), " "),
				"trusted-public-keys": strings.Join(conf.List("trusted-public-keys", "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="), " "),
			}
			cmd := exec.CommandContext(t.Context(), "nix", "--extra-experimental-features", "nix-command", "show-config")
			cmd.Env = append(vars, "PATH="+os.Getenv("PATH"))
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v; `make test` brings Nix", err)
			}
			want := map[string]string{}
			for line := range strings.Lines(string(out)) {
				key, value, _ := strings.Cut(strings.TrimSpace(line), " = ")
				if _, ok := got[key]; ok {
					want[key] = value
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-Nix +here:\n%s", diff)
			}
		})
	}
}

func lookup(vars []string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		value, found := "", false
		for _, v := range vars { // the last one counts
			if key, text, _ := strings.Cut(v, "="); key == name {
				value, found = text, true
			}
		}
		return value, found
	}
}

func TestBroken(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"no equals sign": {"substituters\n", "nix.conf:1: want NAME = VALUE"},
		"absent":         {"\ninclude absent\n", "nix.conf:2: open "},
		"itself":         {"include nix.conf\n", "more than 16 deep"},
		"large":          {"a = " + strings.Repeat("x", maxFile), "more than 1048576 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, map[string]string{"nix.conf": test.text})
			_, err := LoadNixConf(lookup([]string{"NIX_CONF_DIR=" + dir, "HOME=" + dir}))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want it to say %q", err, test.want)
			}
		})
	}
}
