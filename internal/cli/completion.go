// Package cli makes completion scripts and manual pages from kong's model of a command line, so that they
// know every command, flag and argument, and say what --help says.
//
// The tag complete of a flag or an argument says what its value is: "file", "dir", words separated by
// commas, or "@" with the name of a kind of things that only the program knows, such as "@cache". The
// scripts ask the hidden command names for these, with all that was typed.
package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/alecthomas/kong"
)

// Shells are the shells that WriteCompletion knows.
func Shells() []string { return []string{"bash", "zsh", "fish"} }

// WriteCompletion writes the script for a shell.
func WriteCompletion(w io.Writer, shell string, app *kong.Application) error {
	script, ok := map[string]func(string, []command) string{"bash": bash, "zsh": zsh, "fish": fish}[shell]
	if !ok {
		return fmt.Errorf("there is no completion for the shell %q; there is for %s", shell, strings.Join(Shells(), ", "))
	}
	_, err := io.WriteString(w, strings.ReplaceAll(script(app.Name, walk(app.Node, nil)), programMark, app.Name))
	return err
}

// A command is one node of the command line, with what can follow it.
type command struct {
	path        string // "firn key generate"
	name        string // "generate"
	help        string // one sentence, without its full stop
	subcommands []command
	flags       []flag
	args        []value
}

type flag struct {
	names []string // "-h", "--help": the long name is the last
	help  string
	value value
	takes bool // takes a value
	list  bool // may be given several times
}

// value says what completes an argument or the value of a flag. The zero value is: nothing does.
type value struct {
	placeholder string
	kind        kind
	words       []string // of kind words; the kind of things, of kind asked
}

type kind int

const (
	nothing kind = iota
	words
	files
	dirs
	asked
)

// Asker is the hidden command that prints names, one a line: PROGRAM names KIND -- WORDS. It says
// nothing where it cannot.
const Asker = "names"

// programMark stands for the name of the program until a script is complete.
const programMark = "@PROGRAM@"

// walk lists a node and all below it, each after its parent. inherited are the flags of the nodes above.
func walk(node *kong.Node, inherited []flag) []command {
	c := command{path: node.FullPath(), name: node.Name, help: firstSentence(node.Help), flags: inherited}
	for _, f := range node.Flags {
		if !f.Hidden {
			c.flags = append(c.flags[:len(c.flags):len(c.flags)], newFlag(f))
		}
	}
	for _, arg := range node.Positional {
		c.args = append(c.args, newValue(arg, strings.ToUpper(arg.Name)))
	}
	var below []command
	for _, child := range node.Children {
		if child.Hidden {
			continue
		}
		commands := walk(child, c.flags)
		c.subcommands = append(c.subcommands, commands[0])
		below = append(below, commands...)
	}
	return append([]command{c}, below...)
}

func newFlag(f *kong.Flag) flag {
	var names []string
	if f.Short != 0 {
		names = append(names, "-"+string(f.Short))
	}
	return flag{
		names: append(names, "--"+f.Name),
		help:  firstSentence(f.Help),
		value: newValue(f.Value, f.FormatPlaceHolder()),
		takes: !f.IsBool() && !f.IsCounter(),
		list:  f.IsCumulative(),
	}
}

func newValue(v *kong.Value, placeholder string) value {
	result := value{placeholder: placeholder}
	switch tag := v.Tag.Get("complete"); {
	case tag == "file":
		result.kind = files
	case tag == "dir":
		result.kind = dirs
	case strings.HasPrefix(tag, "@"):
		result.kind, result.words = asked, []string{tag[1:]}
	case tag != "":
		result.kind, result.words = words, strings.Split(tag, ",")
	case v.Enum != "":
		result.kind, result.words = words, v.EnumSlice()
	}
	return result
}

// firstSentence returns the first sentence of a help text, without its full stop and in one line.
func firstSentence(help string) string {
	first, _, _ := strings.Cut(strings.Join(strings.Fields(help), " "), ". ")
	return strings.TrimSuffix(first, ".")
}
