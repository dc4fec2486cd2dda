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

// release is the version of a program that was not built from a checkout: go build -ldflags '-X main.release=1.2.3'.
var release string

// version returns the version that this program was given, or what the Go tool wrote into it: the tag, or the time and commit it was built from.
func version() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return info.Main.Version
}
