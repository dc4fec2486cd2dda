package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// Sections of the manual.
const (
	commandSection = 1
	fileSection    = 5
)

// An Item is a term with what is said of it.
type Item struct{ Term, Text string }

// More is what a page has that the command line does not tell.
type More struct {
	Exit, Environment, Files []Item
	SeeAlso                  []string // pages of files, by name: "firn.toml"
}

// A File is a configuration file.
type File struct {
	Name        string // "firn.toml"
	Summary     string // what it is, in a few words
	Description string // paragraphs; those that are indented stay as they are
	Settings    []Item
	Environment []Item
	Files       []Item
	SeeAlso     []string // pages of commands, by name: "firn-serve"
}

// Page returns the path of the page below a directory of manuals, "man5/firn.toml.5", and its text
// in roff.
func (f File) Page(program, version string) (path, text string) {
	p := page{version: program + " " + version}
	p.title(f.Name, fileSection, "File Formats")
	p.heading("NAME")
	fmt.Fprintf(&p, "%s \\- %s\n", escape(f.Name), escape(f.Summary))
	p.heading("DESCRIPTION")
	p.prose(f.Description)
	p.list("SETTINGS", f.Settings)
	p.list("ENVIRONMENT", f.Environment)
	p.list("FILES", f.Files)
	p.seeAlso(f.SeeAlso, nil)
	return pagePath(f.Name, fileSection), p.String()
}

// pagePath returns the path of a page below a directory of manuals, where man looks for it.
func pagePath(name string, section int) string {
	return fmt.Sprintf("man%d/%s.%d", section, name, section)
}

// Pages returns the pages of the program and its commands in roff, by their paths below a directory
// of manuals: "man1/firn.1", "man1/firn-key-generate.1". describe returns the help of a flag or an
// argument, and more what else there is to say of a command.
func Pages(app *kong.Application, version string, describe func(*kong.Value) string, more func(*kong.Node) More) map[string]string {
	commands := app.Leaves(true)
	pages := map[string]string{}
	for _, c := range append(slices.Clone(commands), app.Node) {
		p := page{version: app.Name + " " + version, describe: describe}
		p.command(c)
		if c == app.Node {
			p.heading("COMMANDS")
			for _, below := range commands {
				p.item(".BR "+name(below)+" ("+fmt.Sprint(commandSection)+")", sentence(below.Help))
			}
		}
		m := more(c)
		p.list("EXIT STATUS", m.Exit)
		p.list("ENVIRONMENT", m.Environment)
		p.list("FILES", m.Files)
		p.seeAlso(besides(c, commands), m.SeeAlso)
		pages[pagePath(name(c), commandSection)] = p.String()
	}
	return pages
}

// name returns the name of the page of a node, "firn-key-generate".
func name(n *kong.Node) string {
	words := strings.Fields(n.Name)
	for up := n.Parent; up != nil; up = up.Parent {
		words = append([]string{up.Name}, words...)
	}
	return strings.Join(words, "-")
}

// A page is one in the making.
type page struct {
	strings.Builder
	version  string // of the program, with its name
	describe func(*kong.Value) string
}

// command writes what a command is, takes and does.
func (p *page) command(c *kong.Node) {
	words := strings.ReplaceAll(name(c), "-", " ")
	p.title(name(c), commandSection, "User Commands")
	p.heading("NAME")
	fmt.Fprintf(p, "%s \\- %s\n", escape(name(c)), escape(lower(strings.TrimPrefix(sentence(c.Help), name(c)+" is "))))
	p.heading("SYNOPSIS")
	fmt.Fprintf(p, ".B %s\n", escape(words))
	if len(c.Flags) > 0 && c.Parent != nil {
		p.WriteString("[\\fIflags\\fR]\n")
	}
	for _, arg := range c.Positional {
		fmt.Fprintf(p, "%s\n", escape(arg.Summary()))
	}
	if c.Parent == nil {
		p.WriteString("\\fIcommand\\fR [\\fIflags\\fR] [\\fIarguments\\fR]\n")
	}
	p.heading("DESCRIPTION")
	p.prose(c.Help)
	p.prose(c.Detail)
	if len(c.Positional) > 0 {
		p.heading("ARGUMENTS")
		for _, arg := range c.Positional {
			p.item(".I "+escape(strings.ToUpper(arg.Name)), p.describe(arg))
		}
	}
	p.heading("FLAGS")
	for _, group := range c.AllFlags(true) {
		for _, f := range group {
			p.item(".B "+escape(f.String()), p.describe(f.Value))
		}
	}
}

// title writes the line that begins a page.
func (p *page) title(name string, section int, manual string) {
	fmt.Fprintf(p, ".TH %s %d \"\" %s %s\n", quote(strings.ToUpper(name)), section, quote(p.version), quote(manual))
}

func (p *page) heading(text string) { fmt.Fprintf(p, ".SH %s\n", text) }

// item writes a term, a line of roff, and what is said of it.
func (p *page) item(term, text string) { fmt.Fprintf(p, ".TP\n%s\n%s\n", term, escape(text)) }

// list writes a part of items, if there are any.
func (p *page) list(heading string, items []Item) {
	if len(items) == 0 {
		return
	}
	p.heading(heading)
	for _, i := range items {
		p.item(".B "+escape(i.Term), i.Text)
	}
}

// prose writes paragraphs, and as they stand those that are indented.
func (p *page) prose(text string) {
	for paragraph := range strings.SplitSeq(strings.Trim(text, "\n"), "\n\n") {
		switch {
		case paragraph == "":
		case strings.HasPrefix(paragraph, "    "):
			p.WriteString(".PP\n.RS 4\n.nf\n")
			for line := range strings.SplitSeq(paragraph, "\n") {
				p.WriteString(escape(strings.TrimPrefix(line, "    ")) + "\n")
			}
			p.WriteString(".fi\n.RE\n")
		default:
			p.WriteString(".PP\n" + escape(paragraph) + "\n")
		}
	}
}

// besides returns the pages of the program, and of the commands beside this one.
func besides(c *kong.Node, commands []*kong.Node) (names []string) {
	if c.Parent == nil {
		return nil
	}
	root := c
	for root.Parent != nil {
		root = root.Parent
	}
	names = []string{root.Name}
	for _, other := range commands {
		if other != c && other.Parent == c.Parent && c.Parent != root {
			names = append(names, name(other))
		}
	}
	return names
}

// seeAlso names other pages: those of commands, and those of files.
func (p *page) seeAlso(commands, files []string) {
	var refs []string
	for _, name := range commands {
		refs = append(refs, fmt.Sprintf(".BR %s (%d)", name, commandSection))
	}
	for _, name := range files {
		refs = append(refs, fmt.Sprintf(".BR %s (%d)", name, fileSection))
	}
	if len(refs) > 0 {
		p.heading("SEE ALSO")
		p.WriteString(strings.Join(refs, ",\n") + "\n")
	}
}

// sentence returns a help text in one line, without its full stop.
func sentence(help string) string {
	return strings.TrimSuffix(strings.Join(strings.Fields(help), " "), ".")
}

// lower returns a text that begins with a small letter, unless it begins with a name.
func lower(text string) string {
	first, rest, _ := strings.Cut(text, " ")
	if first == strings.ToUpper(first) && len(first) > 1 {
		return text
	}
	return strings.TrimSpace(strings.ToLower(first) + " " + rest)
}

// escape returns text that roff sets as it is, line by line.
func escape(text string) string {
	text = strings.NewReplacer(`\`, `\e`, `-`, `\-`, "…", `\[u2026]`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}

// quote returns text as one argument of a roff request.
func quote(text string) string { return `"` + strings.ReplaceAll(escape(text), `"`, `\(dq`) + `"` }
