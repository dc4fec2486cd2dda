package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
)

// licenseFiles are the names of files that hold the terms under which a module may be given on.
var licenseFiles = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|authors|patents)([.-].*)?$`)

// writeLicenses writes the terms of every module that is linked into the program, and of Go's own library:
// most ask that everyone who gets the program gets them too.
func (r *release) writeLicenses(ctx context.Context, info *debug.BuildInfo) error {
	goroot, err := output(ctx, "go", "env", "GOROOT")
	if err != nil {
		return err
	}
	listed, err := output(ctx, "go", "-C", repository, "list", "-m", "-f", "{{.Path}} {{.Dir}}", "all")
	if err != nil {
		return err
	}
	dirs := map[string]string{}
	for line := range strings.Lines(string(listed)) {
		module, dir, _ := strings.Cut(strings.TrimSpace(line), " ")
		dirs[module] = dir
	}
	var b bytes.Buffer
	b.WriteString("firn is one program with the Go modules below linked into it. Their terms:\n")
	if err := appendLicenses(&b, "Go "+info.GoVersion, strings.TrimSpace(string(goroot))); err != nil {
		return err
	}
	for _, dep := range info.Deps {
		if err := appendLicenses(&b, dep.Path+" "+dep.Version, dirs[dep.Path]); err != nil {
			return err
		}
	}
	return writeGzip(r.path("licenses.gz"), b.Bytes())
}

// appendLicenses appends the terms of the module in dir, which must have some.
func appendLicenses(b *bytes.Buffer, module, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("find the license of %s: %w", module, err)
	}
	found := false
	for _, e := range entries {
		if !e.Type().IsRegular() || !licenseFiles.MatchString(e.Name()) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return fmt.Errorf("read the license of %s: %w", module, err)
		}
		found = true
		fmt.Fprintf(b, "\n%s\n%s: %s\n\n%s\n", strings.Repeat("=", 78), module, e.Name(), bytes.TrimSpace(text))
	}
	if !found {
		return fmt.Errorf("find the license of %s: no such file in %s", module, dir)
	}
	return nil
}
