package remote

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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
