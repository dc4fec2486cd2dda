package config

import (
	"fmt"
	"io"
	"strings"

	"github.com/BurntSushi/toml"
)

// exampleWidth is where the comments of an example are broken, in characters.
const exampleWidth = 100

// Example writes a configuration file with every setting and what it is for.
// Settings that were not set are commented out, so that the file says only what c was told, and defaults may still change.
func (c *Config) Example(w io.Writer, origins Origins) error {
	var b strings.Builder
	comment(&b, "The settings of firn, each with its default. Remove the # before one to change it. "+
		"firn config check FILE finds what is wrong in a file like this, firn config show what is in effect.")
	for _, s := range Settings() {
		b.WriteByte('\n')
		comment(&b, s.Help)
		line, err := c.Line(s)
		if err != nil {
			return err
		}
		if origins[s.Key] == fromDefault {
			b.WriteByte('#')
		}
		b.WriteString(line)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Line returns the line of a configuration file that says what c has for a setting.
func (c *Config) Line(s Setting) (string, error) {
	text, err := toml.Marshal(map[string]any{s.Key: c.field(s).Interface()})
	if err != nil {
		return "", fmt.Errorf("write example of %s: %w", s.Key, err)
	}
	return string(text), nil
}

// comment writes text as lines of a comment.
func comment(b *strings.Builder, text string) {
	line := "#"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > exampleWidth {
			b.WriteString(line + "\n")
			line = "#"
		}
		line += " " + word
	}
	b.WriteString(line + "\n")
}
