package remote

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	// maxFile bounds a file, in bytes.
	maxFile = 1 << 20
	// maxDepth bounds how deep files include each other.
	maxDepth = 16
)

// NixConf is what the configuration says. The zero value says nothing.
type NixConf struct {
	// Files are those that were read, in order; NIX_CONFIG is among them where it is set.
	Files []string

	values map[string]string
	extra  map[string][]string // of extra-…, since the value was last set
}

// aliases are the names that settings once had.
var aliases = map[string]string{
	"binary-caches":            "substituters",
	"binary-cache-public-keys": "trusted-public-keys",
}

// LoadNixConf reads nix.conf, the files of the user, and NIX_CONFIG, later ones winning. A file that is not there says nothing.
func LoadNixConf(lookup func(string) (string, bool)) (*NixConf, error) {
	c := &NixConf{values: map[string]string{}, extra: map[string][]string{}}
	get := func(name, otherwise string) string {
		if value, ok := lookup(name); ok && value != "" {
			return value
		}
		return otherwise
	}
	files := []string{filepath.Join(NixConfDir(lookup), "nix.conf")}
	home := get("HOME", "")
	var user []string // the first wins, so it is read last
	if list := get("NIX_USER_CONF_FILES", ""); list != "" {
		user = strings.Split(list, ":")
	} else {
		dirs := strings.Split(get("XDG_CONFIG_DIRS", "/etc/xdg"), ":")
		if config := get("XDG_CONFIG_HOME", ""); config != "" || home != "" {
			if config == "" {
				config = filepath.Join(home, ".config")
			}
			dirs = slices.Insert(dirs, 0, config)
		}
		for _, dir := range dirs {
			user = append(user, filepath.Join(dir, "nix/nix.conf"))
		}
	}
	slices.Reverse(user)
	for _, file := range append(files, user...) {
		if err := c.file(file, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	if text := get("NIX_CONFIG", ""); text != "" {
		if err := c.text("NIX_CONFIG", ".", text, 0); err != nil {
			return nil, err
		}
		c.Files = append(c.Files, "NIX_CONFIG")
	}
	return c, nil
}

// NixConfDir is the directory of the configuration of the whole machine.
func NixConfDir(lookup func(string) (string, bool)) string {
	if dir, _ := lookup("NIX_CONF_DIR"); dir != "" {
		return dir
	}
	return "/etc/nix"
}

func (c *NixConf) file(path string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("read %s: files include each other more than %d deep", path, maxDepth)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("more than %d bytes", maxFile)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	c.Files = append(c.Files, path)
	return c.text(path, filepath.Dir(path), string(text), depth)
}

// text reads the text of a file: words in lines, of which a # begins a comment.
func (c *NixConf) text(name, dir, text string, depth int) error {
	number := 0
	for line := range strings.Lines(text) {
		number++
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case len(words) == 2 && (words[0] == "include" || words[0] == "!include"):
			path := words[1]
			if !filepath.IsAbs(path) {
				path = filepath.Join(dir, path)
			}
			err := c.file(path, depth+1)
			if err != nil && !(words[0] == "!include" && errors.Is(err, fs.ErrNotExist)) {
				return fmt.Errorf("%s:%d: %v", name, number, err) // not %w: a file that is not there is an error here
			}
		case len(words) >= 2 && words[1] == "=":
			c.set(words[0], strings.Join(words[2:], " "))
		default:
			return fmt.Errorf("%s:%d: want NAME = VALUE", name, number)
		}
	}
	return nil
}

func (c *NixConf) set(name, value string) {
	plain, extra := strings.CutPrefix(name, "extra-")
	if other, ok := aliases[plain]; ok {
		plain = other
	}
	if extra {
		c.extra[plain] = append(c.extra[plain], value)
		return
	}
	c.values[plain] = value
	delete(c.extra, plain)
}

// Get returns a setting that is one value, or what it is by default.
func (c *NixConf) Get(name, byDefault string) string {
	if value, ok := c.values[name]; ok {
		return value
	}
	return byDefault
}

// List returns a setting that is a list, with what extra-… adds, or what it is by default.
func (c *NixConf) List(name string, byDefault ...string) []string {
	list := byDefault
	if value, ok := c.values[name]; ok {
		list = strings.Fields(value)
	}
	for _, more := range c.extra[name] {
		list = append(slices.Clip(list), strings.Fields(more)...)
	}
	return list
}
