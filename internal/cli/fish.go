package cli

import (
	"fmt"
	"strings"
)

// fish writes one line a completion, each under the condition that its command is the one typed so far.
func fish(name string, commands []command) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Completion of %[1]s in fish, written by: %[1]s completion fish

function __%[1]s_at --description 'Tell whether the command typed so far is the one given'
    set -l path %[1]s
    for word in (commandline -opc)[2..]
        switch "$path $word"
            case`, name)
	for _, c := range commands[1:] {
		b.WriteString(" " + fishQuote(c.path))
	}
	b.WriteString(`
                set path "$path $word"
        end
    end
    test "$path" = "$argv"
end

`)
	fmt.Fprintf(&b, "complete -c %s -f\n", name)
	for _, c := range commands {
		at := fmt.Sprintf("complete -c %s -n %s", name, fishQuote("__"+name+"_at "+c.path))
		for _, sub := range c.subcommands {
			fmt.Fprintf(&b, "%s -a %s -d %s\n", at, sub.name, fishQuote(sub.help))
		}
		for _, f := range c.flags {
			b.WriteString(at)
			for _, n := range f.names {
				if long, ok := strings.CutPrefix(n, "--"); ok {
					b.WriteString(" -l " + long)
				} else {
					b.WriteString(" -s " + n[1:])
				}
			}
			switch {
			case f.takes && f.value.kind == files:
				b.WriteString(" -r") // a value is needed
			case f.takes:
				b.WriteString(" -x") // and it is no file
			}
			fmt.Fprintf(&b, "%s -d %s\n", fishValue(f.value), fishQuote(f.help))
		}
		// fish does not count arguments, so that all of a command's are offered at once.
		seen := map[string]bool{}
		for _, arg := range c.args {
			if offer := fishValue(arg); offer != "" && !seen[offer] {
				seen[offer] = true
				fmt.Fprintf(&b, "%s%s\n", at, offer)
			}
		}
	}
	return b.String()
}

func fishValue(v value) string {
	switch v.kind {
	case files:
		return " -F"
	case dirs:
		return " -a " + fishQuote("(__fish_complete_directories)")
	case words:
		return " -a " + fishQuote(strings.Join(v.words, " "))
	case asked:
		return " -a " + fishQuote("(command "+programMark+" "+Asker+" "+v.words[0]+" -- (commandline -opc)[2..] 2>/dev/null)")
	}
	return ""
}

// fishQuote quotes a word for fish.
func fishQuote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}
