package config

import (
	"encoding"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// maxFile bounds what is read of a configuration file, in bytes.
const maxFile = 64 << 10

// maxWrong bounds how many wrong keys of a file are told, as finding the line of each takes a parse of the whole:
// a file with more is no configuration of ours.
const maxWrong = 20

// Origins tells, for the key of each setting, where its value comes from:
// "default", "firn.toml:3", "FIRN_LISTEN" or "--listen".
type Origins map[string]string

// fromDefault is the origin of a setting that was not set.
const fromDefault = "default"

// Load returns the settings of the environment, over those of the file at path, over the defaults.
// An empty path is no file. Errors name the file and the line, or the variable.
func Load(path string, lookup LookupEnv) (*Config, Origins, error) {
	c, origins := &Config{}, Origins{}
	for _, s := range Settings() {
		origins[s.Key] = fromDefault
		if err := c.set(s, strings.Fields(s.Default)); err != nil {
			return nil, nil, fmt.Errorf("default of %s: %w", s.Key, err)
		}
	}
	c.State = stateDir(lookup, os.Getuid())
	if path != "" {
		if err := c.loadFile(path, origins); err != nil {
			return nil, nil, err
		}
	}
	if err := c.loadEnvironment(lookup, origins); err != nil {
		return nil, nil, err
	}
	return c, origins, nil
}

func (c *Config) loadFile(path string, origins Origins) error {
	text, err := readFile(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	var file map[string]any
	meta, err := toml.Decode(text, &file)
	if err != nil {
		return syntaxError(path, err)
	}
	settings := map[string]Setting{}
	for _, s := range Settings() {
		settings[s.Key] = s
	}
	var wrong []error // all of them at once: a person mends a file in one go
	seen := map[string]bool{}
	for _, key := range meta.Keys() {
		if seen[key[0]] {
			continue // within a table that was refused as a whole
		}
		if len(wrong) == maxWrong {
			wrong = append(wrong, fmt.Errorf("%s: and more that is wrong", path))
			break
		}
		seen[key[0]] = true
		place := path
		if line := lineOf(text, key); line > 0 {
			place = fmt.Sprintf("%s:%d", path, line)
		}
		if s, ok := settings[key[0]]; !ok {
			wrong = append(wrong, fmt.Errorf("%s: unknown key %s", place, key))
		} else {
			values, err := c.texts(s, file[s.Key])
			if err == nil {
				err = c.set(s, values)
			}
			if err != nil {
				wrong = append(wrong, fmt.Errorf("%s: %s: %w", place, key, err))
			}
			origins[s.Key] = place
		}
	}
	return errors.Join(wrong...)
}

// texts returns the text forms of a TOML value, once its type is known to be that of the setting.
func (c *Config) texts(s Setting, value any) ([]string, error) {
	if s.List {
		items, ok := value.([]any)
		texts := make([]string, len(items))
		for i, item := range items {
			if texts[i], ok = item.(string); !ok {
				break
			}
		}
		if !ok {
			return nil, errors.New("want a list of strings")
		}
		return texts, nil
	}
	if c.field(s).CanUint() {
		n, ok := value.(int64)
		if !ok {
			return nil, errors.New("want a number")
		}
		return []string{strconv.FormatInt(n, 10)}, nil
	}
	if c.field(s).Kind() == reflect.Bool {
		on, ok := value.(bool)
		if !ok {
			return nil, errors.New("want true or false")
		}
		return []string{strconv.FormatBool(on)}, nil
	}
	text, ok := value.(string)
	if !ok {
		return nil, errors.New("want a string")
	}
	return []string{text}, nil
}

func readFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("longer than %d bytes", maxFile)}
	}
	return string(text), err
}

// syntaxError says where err is in the form that people and editors know, FILE:LINE: MESSAGE.
func syntaxError(path string, err error) error {
	var parse toml.ParseError
	if !errors.As(err, &parse) {
		return fmt.Errorf("%s: %w", path, err)
	}
	return fmt.Errorf("%s:%d: %s", path, parse.Position.Line, parse.Message)
}

// lineOf returns the line of a key in a file that has it, 0 if it cannot tell, as of a key with a comma.
// The library knows the position of every key and tells it in errors alone;
// so the file is decoded once more, into a struct that refuses just this key.
func lineOf(text string, key toml.Key) int {
	target := reflect.TypeFor[refusal]()
	for _, part := range slices.Backward(key) {
		target = reflect.StructOf([]reflect.StructField{{
			Name: "Field",
			Type: target,
			Tag:  reflect.StructTag("toml:" + strconv.Quote(part)),
		}})
	}
	_, err := toml.Decode(text, reflect.New(target).Interface())
	var parse toml.ParseError
	errors.As(err, &parse)
	return parse.Position.Line
}

// refusal cannot be decoded.
type refusal struct{}

func (*refusal) UnmarshalTOML(any) error { return errors.New("refused") }

func (c *Config) loadEnvironment(lookup LookupEnv, origins Origins) error {
	// Nix's own variable, as nix-serve has it, names one file and gives way to ours.
	if path, _ := lookup("NIX_SECRET_KEY_FILE"); path != "" {
		c.Key, origins["key"] = []string{path}, "NIX_SECRET_KEY_FILE"
	}
	for _, s := range Settings() {
		value, _ := lookup(s.Variable())
		if strings.TrimSpace(value) == "" {
			continue
		}
		values := []string{value}
		if s.List {
			values = splitList(value)
		}
		if err := c.set(s, values); err != nil {
			return fmt.Errorf("%s: %w", s.Variable(), err)
		}
		origins[s.Key] = s.Variable()
	}
	return nil
}

// splitList splits the value of a variable that is a list, at commas and line ends.
func splitList(value string) (items []string) {
	for item := range strings.FieldsFuncSeq(value, func(r rune) bool { return r == ',' || r == '\n' }) {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

func (c *Config) field(s Setting) reflect.Value { return reflect.ValueOf(c).Elem().Field(s.index) }

// set gives a setting its values as text: any number of a list, at most one of all others.
func (c *Config) set(s Setting, values []string) error {
	field := c.field(s)
	if !s.List {
		for _, value := range values {
			if err := setText(field, value); err != nil {
				return err
			}
		}
		return nil
	}
	list := reflect.MakeSlice(field.Type(), len(values), len(values))
	for i, value := range values {
		if err := setText(list.Index(i), value); err != nil {
			return err
		}
	}
	field.Set(list)
	return nil
}

func setText(field reflect.Value, text string) error {
	if u, ok := field.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return u.UnmarshalText([]byte(text))
	}
	if field.Kind() == reflect.Bool {
		on, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q is not true or false", text)
		}
		field.SetBool(on)
		return nil
	}
	field.SetString(text)
	return nil
}

// Values returns the settings in effect, in their order.
func (c *Config) Values() []Value {
	var values []Value
	for _, s := range Settings() {
		values = append(values, Value{s.Key, c.field(s).Interface()})
	}
	return values
}

// A Value is a setting that is in effect.
type Value struct {
	Key   string
	Value any
}

// Show writes the settings in effect as a configuration file that says where each value comes from.
func (c *Config) Show(w io.Writer, origins Origins) error {
	for _, s := range Settings() {
		text, err := toml.Marshal(map[string]any{s.Key: c.field(s).Interface()})
		if err != nil {
			return fmt.Errorf("show %s: %w", s.Key, err)
		}
		if _, err := fmt.Fprintf(w, "%s # %s\n", strings.TrimSuffix(string(text), "\n"), origins[s.Key]); err != nil {
			return err
		}
	}
	return nil
}
