//go:build programs

package cli

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Each row is what a person typed before pressing TAB, "|" standing between words, and what bash then offers.
func TestBash(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a.secret", "a b", "sub/x"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all := []string{"a b", "a.secret", "sub"}
	serveFlags := []string{"--cache", "--help", "--key", "--level", "--listen", "--state", "--verbose", "-h", "-s", "-v"}
	tests := []struct {
		typed string
		want  []string
	}{
		{"tool|", []string{"completion", "key", "serve"}},
		{"tool|s", []string{"serve"}},
		{"tool|-v|s", []string{"serve"}},
		{"tool|x", nil},
		{"tool|hidden|", nil},
		{"tool|--v", []string{"--verbose"}},
		{"tool|key|", []string{"generate", "public", "revoke"}},
		{"tool|serve|--cache|", []string{"cache-of-serve---cache-", "two"}},
		{"tool|serve|--state|x|--cache|t", []string{"two"}},
		{"tool|key|revoke|k", []string{"key-of-key-revoke-k"}},
		{"tool|key|revoke|a|", nil},
		{"tool|key|g", []string{"generate"}},
		{"tool|key|generate|", nil},
		{"tool|key|generate|name|", all},
		{"tool|key|generate|name|a.", []string{"a.secret"}},
		{"tool|key|generate|name|a|", nil},
		{"tool|key|generate|key|", all}, // an argument that is called like a command
		{"tool|key|public|", []string{"sub"}},
		{"tool|key|public|--", []string{"--help", "--verbose"}},
		{"tool|completion|", []string{"bash", "fish"}},
		{"tool|serve|", nil},
		{"tool|serve|-", serveFlags},
		{"tool|serve|--key|", all},
		{"tool|serve|--key|sub/", []string{"sub/x"}},
		{"tool|serve|--key|=|", all},
		{"tool|serve|--key|=", all},
		{"tool|serve|--key|a|--le", []string{"--level"}},
		{"tool|serve|--key|=|a|--level|", []string{"debug", "info"}},
		{"tool|serve|--level|=|d", []string{"debug"}},
		{"tool|serve|--state|", []string{"sub"}},
		{"tool|serve|-s|", []string{"sub"}},
		{"tool|serve|--listen|", nil},
		{"tool|serve|--listen|-", nil},
		{"tool|serve|--listen|key|-", serveFlags}, // a value that is called like a command
	}
	var program strings.Builder
	program.WriteString("set -eu\n" + script(t, "bash"))
	// What the program says, as far as this goes.
	fake := filepath.Join(t.TempDir(), "tool")
	if err := os.WriteFile(fake, []byte("#!/bin/sh\necho no >&2\n[ \"$1 $3\" = 'names --' ] || exit 1\nkind=$2\nshift 3\necho \"$kind-of-$(echo \"$*\" | tr ' ' -)\"\necho two\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	program.WriteString("PATH=" + bashQuote(filepath.Dir(fake)) + ":$PATH\n")
	for _, test := range tests {
		var quoted []string
		typed := strings.Split(test.typed, "|")
		for _, word := range typed {
			quoted = append(quoted, bashQuote(word))
		}
		fmt.Fprintf(&program, "COMP_WORDS=(%s) COMP_CWORD=%d\n_tool\nprintf '%%s\\t' ${COMPREPLY[@]+\"${COMPREPLY[@]}\"}; echo\n",
			strings.Join(quoted, " "), len(typed)-1)
	}
	lines := strings.Split(run(t, dir, program.String(), "bash"), "\n")
	for i, test := range tests {
		got := strings.FieldsFunc(lines[i], func(r rune) bool { return r == '\t' })
		slices.Sort(got)
		if diff := cmp.Diff(test.want, got); diff != "" && len(test.want)+len(got) > 0 {
			t.Errorf("%s (-want +got):\n%s", test.typed, diff)
		}
	}
}

// The shells that are here must at least understand their scripts. bash always is: the Makefile needs it.
func TestSyntax(t *testing.T) {
	for _, shell := range Shells() {
		if _, err := exec.LookPath(shell); err != nil && shell != "bash" {
			continue
		}
		run(t, t.TempDir(), script(t, shell), shell, "-n", "/dev/stdin")
	}
}

func run(t *testing.T, dir, stdin string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	if stderr.Len() > 0 {
		t.Errorf("%s: %s", strings.Join(args, " "), &stderr)
	}
	return string(out)
}
