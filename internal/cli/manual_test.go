package cli

import (
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

type readCommand struct {
	File string `arg:"" help:"What to read."`
	Loud bool   `help:"Say more."`
}

func (*readCommand) Help() string {
	return `Two words of it:

    prog key read \file
    .dotted

'Quoted' prose.`
}

func TestPages(t *testing.T) {
	var cli struct {
		Key struct {
			Read  readCommand `cmd:"" help:"Read a key."`
			Write struct{}    `cmd:"" help:"Write a key."`
		} `cmd:"" help:"Keys."`
		Secret struct{} `cmd:"" hidden:"" help:"Not for people."`
	}
	parser, err := kong.New(&cli, kong.Name("prog"), kong.Description("prog is a reader."))
	if err != nil {
		t.Fatal(err)
	}
	pages := Pages(parser.Model, "1.2-3", func(v *kong.Value) string { return "about " + v.Name }, func(n *kong.Node) More {
		return More{Exit: []Item{{"0", "All of " + n.Name + " went well."}}, Files: []Item{{"/etc/a-b", "A file."}}, SeeAlso: []string{"prog.conf"}}
	})
	if len(pages) != 3 {
		t.Errorf("there are %d pages, want those of the program and two commands", len(pages))
	}
	if want := "prog \\- a reader\n"; !strings.Contains(pages["man1/prog.1"], want) {
		t.Errorf("there is no %q in\n%s", want, pages["man1/prog.1"])
	}
	read := pages["man1/prog-key-read.1"]
	for _, want := range []string{
		".TH \"PROG\\-KEY\\-READ\" 1 \"\" \"prog 1.2\\-3\"",
		"prog\\-key\\-read \\- read a key\n",
		".B prog key read\n[\\fIflags\\fR]\n<file>\n",
		".RS 4\n.nf\nprog key read \\efile\n\\&.dotted\n.fi\n",
		"\n\\&'Quoted' prose.\n",
		".I FILE\nabout file\n",
		".SH EXIT STATUS\n.TP\n.B 0\nAll of read went well.\n.SH FILES\n.TP\n.B /etc/a\\-b\nA file.\n.SH SEE ALSO\n",
		".B \\-\\-loud\nabout loud\n",
		".BR prog (1),\n.BR prog-key-write (1),\n.BR prog.conf (5)\n",
	} {
		if !strings.Contains(read, want) {
			t.Errorf("the page lacks %q:\n%s", want, read)
		}
	}
	if program := pages["man1/prog.1"]; !strings.Contains(program, ".BR prog-key-read (1)\nRead a key\n") || strings.Contains(program, "secret") {
		t.Errorf("the page of the program:\n%s", program)
	}
}

func TestFile(t *testing.T) {
	f := File{
		Name:        "prog.conf",
		Summary:     "settings of prog",
		Description: "Like this:\n\n    loud = true",
		Settings:    []Item{{"loud-er", "Say more."}},
		Environment: []Item{{"PROG_*", "The same."}},
		Files:       []Item{{"/etc/prog.conf", "The file."}},
		SeeAlso:     []string{"prog", "prog-key-read"},
	}
	path, text := f.Page("prog", "1.2-3")
	if path != "man5/prog.conf.5" {
		t.Errorf("the page is %s", path)
	}
	want := `.TH "PROG.CONF" 5 "" "prog 1.2\-3" "File Formats"
.SH NAME
prog.conf \- settings of prog
.SH DESCRIPTION
.PP
Like this:
.PP
.RS 4
.nf
loud = true
.fi
.RE
.SH SETTINGS
.TP
.B loud\-er
Say more.
.SH ENVIRONMENT
.TP
.B PROG_*
The same.
.SH FILES
.TP
.B /etc/prog.conf
The file.
.SH SEE ALSO
.BR prog (1),
.BR prog-key-read (1)
`
	if text != want {
		t.Errorf("the page is\n%s\nwant\n%s", text, want)
	}
}
