package cli

import (
	"fmt"
	"strings"
)

// zsh writes one function a command, each a call of _arguments, which knows all the rest.
func zsh(name string, commands []command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "#compdef %[1]s\n# Completion of %[1]s in zsh, written by: %[1]s completion zsh\n", name)
	fmt.Fprintf(&b, `
_%[1]s__names() { # KIND: what only the program knows
    local -a names
    names=(${(f)"$(command %[1]s %[2]s $1 -- ${words[2,-1]} 2>/dev/null)"})
    compadd -a names
}
`, name, Asker)
	for _, c := range commands {
		fmt.Fprintf(&b, "\n%s() {\n", zshFunction(c))
		if len(c.subcommands) > 0 {
			b.WriteString("    local curcontext=$curcontext state line\n    typeset -A opt_args\n")
		}
		b.WriteString("    _arguments -C -s")
		for _, f := range c.flags {
			b.WriteString(" \\\n        " + zshFlag(f))
		}
		for _, arg := range c.args {
			fmt.Fprintf(&b, " \\\n        %s", bashQuote("::"+zshEscape(arg.placeholder)+":"+zshAction(arg)))
		}
		if len(c.subcommands) == 0 {
			b.WriteString("\n}\n")
			continue
		}
		b.WriteString(" \\\n        ':command:->command' '*:: :->rest'\n    case $state in\n    command)\n        local -a commands=(\n")
		for _, sub := range c.subcommands {
			fmt.Fprintf(&b, "            %s\n", bashQuote(sub.name+":"+strings.ReplaceAll(sub.help, ":", `\:`)))
		}
		b.WriteString("        )\n        _describe command commands\n        ;;\n    rest)\n        case $line[1] in\n")
		for _, sub := range c.subcommands {
			fmt.Fprintf(&b, "        %s) %s ;;\n", sub.name, zshFunction(sub))
		}
		b.WriteString("        esac\n        ;;\n    esac\n}\n")
	}
	// The file is either autoloaded from $fpath, and is then the body of the function, or sourced.
	fmt.Fprintf(&b, "\nif [[ $funcstack[1] == _%[1]s ]]; then\n    _%[1]s \"$@\"\nelse\n    compdef _%[1]s %[1]s\nfi\n", name)
	return b.String()
}

func zshFunction(c command) string { return "_" + strings.ReplaceAll(c.path, " ", "_") }

// zshFlag returns the specs of a flag, one a name: '*--key=[help]:FILE:_files'.
func zshFlag(f flag) string {
	var specs []string
	for _, name := range f.names {
		spec := ""
		if f.list {
			spec = "*"
		} else if len(f.names) > 1 {
			spec = "(" + strings.Join(f.names, " ") + ")" // one excludes the other
		}
		spec += name
		if f.takes && strings.HasPrefix(name, "--") {
			spec += "="
		}
		spec += "[" + zshEscape(f.help) + "]"
		if f.takes {
			spec += ":" + zshEscape(f.value.placeholder) + ":" + zshAction(f.value)
		}
		specs = append(specs, bashQuote(spec))
	}
	return strings.Join(specs, " ")
}

func zshAction(v value) string {
	switch v.kind {
	case files:
		return "_files"
	case dirs:
		return "_files -/"
	case asked:
		return " _" + programMark + "__names " + v.words[0] // after a space nothing is put between the two words
	case words:
		return "(" + strings.Join(v.words, " ") + ")"
	}
	return " "
}

// zshEscape escapes what _arguments gives a meaning within a spec.
func zshEscape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `:`, `\:`, `[`, `\[`, `]`, `\]`).Replace(s)
}
