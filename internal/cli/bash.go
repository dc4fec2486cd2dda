package cli

import (
	"fmt"
	"strings"
)

// bash writes one function that first walks the words before the cursor, to learn the command, the number of its arguments
// and whether a flag waits for its value, and then offers what fits. It runs with bash 3.2, as macOS has it, and needs no other file.
func bash(name string, commands []command) string {
	var b strings.Builder
	fn := "_" + name
	fmt.Fprintf(&b, `# Completion of %[1]s in bash, written by: %[1]s completion bash

%[2]s_offer() { # ACTION...: adds what compgen prints, a word a line
    local line
    while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen "$@" -- "$cur")
}

%[2]s_names() { # KIND: what only the program knows
    %[2]s_offer -W "$(command %[1]s `+Asker+` "$1" -- "${COMP_WORDS[@]:1}" 2>/dev/null)"
}

%[2]s_paths() { # -f or -d
    compopt -o filenames 2>/dev/null || true # bash 3.2 has none
    %[2]s_offer "$1"
}

%[2]s() {
    local cur=${COMP_WORDS[COMP_CWORD]} path=%[1]s flag='' args=0 i word
    COMPREPLY=()
    [[ $cur == = ]] && cur='' # readline splits --flag=value at the sign
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        [[ $word == = ]] && continue
        if [[ -n $flag ]]; then
            flag=''
            continue
        fi
        case "$path $word" in
`, name, fn)
	for _, c := range commands {
		for _, sub := range c.subcommands {
			fmt.Fprintf(&b, "            %s) path=%s ;;\n", bashQuote(sub.path), bashQuote(sub.path))
		}
	}
	for _, c := range commands {
		if patterns := valueFlags(c); patterns != "" {
			fmt.Fprintf(&b, "            %s) flag=$word ;;\n", patterns)
		}
	}
	b.WriteString(`            *" -"*) ;;
            *) args=$((args + 1)) ;;
        esac
    done
    if [[ -n $flag ]]; then
        case "$path $flag" in
`)
	for _, c := range commands {
		for _, f := range c.flags {
			if f.takes && f.value.kind != nothing {
				fmt.Fprintf(&b, "            %s) %s ;;\n", patterns(c, f), bashOffer(fn, f.value))
			}
		}
	}
	b.WriteString(`        esac
        return
    fi
    if [[ $cur == -* ]]; then
        case "$path" in
`)
	for _, c := range commands {
		var names []string
		for _, f := range c.flags {
			names = append(names, f.names...)
		}
		if len(names) > 0 {
			fmt.Fprintf(&b, "            %s) %s_offer -W %s ;;\n", bashQuote(c.path), fn, bashQuote(strings.Join(names, " ")))
		}
	}
	b.WriteString(`        esac
        return
    fi
    case "$path $args" in
`)
	for _, c := range commands {
		if len(c.subcommands) > 0 {
			var names []string
			for _, sub := range c.subcommands {
				names = append(names, sub.name)
			}
			fmt.Fprintf(&b, "        %s) %s ;;\n", bashQuote(c.path+" 0"), bashOffer(fn, value{kind: words, words: names}))
		}
		for i, arg := range c.args {
			if arg.kind != nothing {
				fmt.Fprintf(&b, "        %s) %s ;;\n", bashQuote(fmt.Sprintf("%s %d", c.path, i)), bashOffer(fn, arg))
			}
		}
	}
	fmt.Fprintf(&b, "    esac\n}\n\ncomplete -F %s %s\n", fn, name)
	return b.String()
}

func bashOffer(fn string, v value) string {
	switch v.kind {
	case files:
		return fn + "_paths -f"
	case dirs:
		return fn + "_paths -d"
	case asked:
		return fn + "_names " + v.words[0]
	default:
		return fn + "_offer -W " + bashQuote(strings.Join(v.words, " "))
	}
}

// valueFlags returns the pattern of a case that matches the flags of a command that take a value.
func valueFlags(c command) string {
	var all []string
	for _, f := range c.flags {
		if f.takes {
			all = append(all, patterns(c, f))
		}
	}
	return strings.Join(all, " | ")
}

func patterns(c command, f flag) string {
	var all []string
	for _, name := range f.names {
		all = append(all, bashQuote(c.path+" "+name))
	}
	return strings.Join(all, " | ")
}

// quote quotes a word for bash and zsh.
func bashQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
