// Command packaging makes the packages of firn: Debian packages, and an image for containers.
//
//	cd packaging && go run . deb image
//
// The files appear in dist/. Equal commits give equal bytes: every time in a package is that of the commit
// (or SOURCE_DATE_EPOCH, where there is no git), and nothing of the machine that makes it goes in.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("packaging: ")
	dist := flag.String("dist", "../dist", "the `directory` that the packages appear in")
	arches := flag.String("arch", "amd64,arm64", "the `architectures`, by Go's names and separated by commas")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: go run . [flags] deb|image ...")
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *dist, strings.Split(*arches, ","), flag.Args()); err != nil {
		log.Fatal(err)
	}
}

// run makes each kind of package for the architectures, and prints the names of the files.
func run(ctx context.Context, dist string, arches, kinds []string) error {
	if len(kinds) == 0 {
		return errors.New("say what to make: deb or image")
	}
	work, err := os.MkdirTemp("", "firn-packaging")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := os.MkdirAll(dist, 0o755); err != nil {
		return err
	}
	r, err := newRelease(ctx, work, arches)
	if err != nil {
		return err
	}
	for _, kind := range kinds {
		switch kind {
		case "deb":
			for _, arch := range arches {
				err = errors.Join(err, r.writeDeb(dist, arch))
			}
		case "image":
			err = r.writeImage(dist, arches)
		default:
			err = fmt.Errorf("cannot make %q: want deb or image", kind)
		}
		if err != nil {
			return fmt.Errorf("make %s: %w", kind, err)
		}
	}
	return nil
}

// publish lets write make a file, which appears under its name when it is whole.
func publish(path string, write func(f *os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".packaging-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // it is gone already when all went well
	err = errors.Join(write(f), f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	fmt.Println(path)
	return nil
}
