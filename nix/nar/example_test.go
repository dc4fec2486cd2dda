package nar_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"

	"firn/nix/nar"
)

func Example() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "hello"), []byte("Hello, world!\n"), 0o644); err != nil {
		log.Fatal(err)
	}

	ctx := context.Background()
	layout, err := nar.NewLayout(ctx, dir)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", layout.Listing().AppendJSON(nil))

	var archive bytes.Buffer
	if err := layout.WriteRange(ctx, &archive, dir, 0, layout.Size()); err != nil {
		log.Fatal(err)
	}
	r := nar.NewReader(&archive)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			log.Fatal(err)
		}
		contents, err := io.ReadAll(r)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s %q %q\n", h.Type, h.Path, contents)
	}
	// Output:
	// {"version":1,"root":{"type":"directory","entries":{"hello":{"type":"regular","size":14,"executable":false,"narOffset":232}}}}
	// directory "" ""
	// regular "hello" "Hello, world!\n"
}
