package main

import (
	"slices"
	"testing"

	"github.com/alecthomas/kong"

	"firn/internal/config"
)

// Every setting is a flag of the name that it has everywhere else.
func TestFlagsOfSettings(t *testing.T) {
	parser, err := kong.New(&commandLine{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, n := range parser.Model.Children {
		if n.Name == "serve" {
			for _, f := range n.Flags {
				names = append(names, "--"+f.Name)
			}
		}
	}
	for _, s := range config.Settings() {
		if !slices.Contains(names, s.Flag()) {
			t.Errorf("firn serve has no %s: %q", s.Flag(), names)
		}
	}
}
