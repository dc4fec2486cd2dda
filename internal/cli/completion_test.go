package cli

import (
	"bytes"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// grammar has one of everything that is completed.
type grammar struct {
	Verbose bool `short:"v" help:"Say more: it's [all] of it. And this is not shown."`
	Serve   struct {
		Key    []string `complete:"file" placeholder:"FILE" sep:"none" help:"A file."`
		State  string   `short:"s" complete:"dir" help:"A directory."`
		Level  string   `complete:"debug,info" placeholder:"LEVEL" help:"Words."`
		Listen string   `help:"Anything."`
		Cache  string   `complete:"@cache" help:"What the program knows."`
		Secret string   `hidden:""`
	} `cmd:"" help:"Serve."`
	Key struct {
		Generate struct {
			Name   string `arg:""`
			Secret string `arg:"" complete:"file"`
		} `cmd:"" help:"Make a key."`
		Revoke struct {
			Name string `arg:"" complete:"@key"`
		} `cmd:"" help:"Take a key away."`
		Public struct {
			Secret string `arg:"" complete:"dir"`
		} `cmd:"" help:"Show a key."`
	} `cmd:"" help:"Keys: make, show."`
	Completion struct {
		Shell string `arg:"" enum:"bash,fish"`
	} `cmd:"" help:"Complete."`
	Hidden struct{} `cmd:"" hidden:""`
}

func script(t *testing.T, shell string) string {
	t.Helper()
	parser, err := kong.New(&grammar{}, kong.Name("tool"))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := WriteCompletion(&b, shell, parser.Model); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestContents(t *testing.T) {
	for shell, wants := range map[string][]string{
		"bash": {"complete -F _tool tool"},
		"zsh": {
			"#compdef tool\n",
			`'(-v --verbose)-v[Say more\: it'\''s \[all\] of it]' '(-v --verbose)--verbose[Say more\: it'\''s \[all\] of it]'`,
			`'*--key=[A file]:FILE:_files'`,
			`'--level=[Words]:LEVEL:(debug info)'`,
			`'key:Keys\: make, show'`,
			`'--cache=[What the program knows]:STRING: _tool__names cache'`,
			`command tool names $1 -- `,
		},
		"fish": {
			`complete -c tool -n '__tool_at tool' -a key -d 'Keys: make, show'`,
			`complete -c tool -n '__tool_at tool serve' -l key -r -F -d 'A file'`,
			`complete -c tool -n '__tool_at tool serve' -l cache -x -a '(command tool names cache -- (commandline -opc)[2..] 2>/dev/null)' -d`,
			`complete -c tool -n '__tool_at tool serve' -s v -l verbose -d 'Say more: it\'s [all] of it'`,
		},
	} {
		text := script(t, shell)
		for _, want := range wants {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in the script for %s:\n%s", want, shell, text)
			}
		}
		if strings.Contains(text, "hidden") || strings.Contains(text, "--secret") {
			t.Errorf("the script for %s shows what is hidden", shell)
		}
	}
	if err := WriteCompletion(&bytes.Buffer{}, "csh", nil); err == nil {
		t.Error("a script for csh: no error")
	}
}
