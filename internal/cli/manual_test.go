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
		return More{Exit: []Item{{"0", "All of " + n.Name + " went well."}}, Files: []Item{{"/etc/a-b", "A file."}}}
	})
	if len(pages) != 3 {
		t.Errorf("there are %d pages, want those of the program and two commands", len(pages))
	}
	if want := "prog \\- a reader\n"; !strings.Contains(pages["prog.1"], want) {
		t.Errorf("there is no %q in\n%s", want, pages["prog.1"])
	}
	read := pages["prog-key-read.1"]
	for _, want := range []string{
		".TH \"PROG\\-KEY\\-READ\" 1 \"\" \"firn 1.2\\-3\"",
		"prog\\-key\\-read \\- read a key\n",
		".B prog key read\n[\\fIflags\\fR]\n<file>\n",
		".RS 4\n.nf\nprog key read \\efile\n\\&.dotted\n.fi\n",
		"\n\\&'Quoted' prose.\n",
		".I FILE\nabout file\n",
		".SH EXIT STATUS\n.TP\n.B 0\nAll of read went well.\n.SH FILES\n.TP\n.B /etc/a\\-b\nA file.\n.SH SEE ALSO\n",
		".B \\-\\-loud\nabout loud\n",
		".BR prog (1),\n.BR prog-key-write (1)\n",
	} {
		if !strings.Contains(read, want) {
			t.Errorf("the page lacks %q:\n%s", want, read)
		}
	}
	if program := pages["prog.1"]; !strings.Contains(program, ".BR prog-key-read (1)\nRead a key\n") || strings.Contains(program, "secret") {
		t.Errorf("the page of the program:\n%s", program)
	}
}
