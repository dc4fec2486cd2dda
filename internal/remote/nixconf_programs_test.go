//go:build programs

package remote

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

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
