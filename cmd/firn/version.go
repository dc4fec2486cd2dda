package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/alecthomas/kong"
)

type versionCommand struct{}

func (*versionCommand) Help() string {
	return `Examples:

    firn version`
}

func (*versionCommand) Run(k *kong.Context) error {
	_, err := fmt.Fprintf(k.Stdout, "firn %s %s %s/%s\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}

// version returns what the Go tool wrote into this program: the tag, or the time and commit it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return info.Main.Version
}
