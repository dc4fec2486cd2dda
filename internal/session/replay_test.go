package session_test

import (
	"bytes"
	"io/fs"
	"os"
	"path"
	"testing"

	"github.com/google/go-cmp/cmp"

	"firn/internal/testing/conversation"
)

// What real Nix said, recorded by TestConversations in e2e, gets the answers that it got then.
func TestConversations(t *testing.T) {
	recorded := os.DirFS("testdata/conversations")
	versions, err := fs.ReadDir(recorded, ".")
	if err != nil {
		t.Fatal(err)
	}
	if len(versions) < 3 {
		t.Errorf("there are conversations of %d versions of Nix, want three", len(versions))
	}
	dirs, err := fs.Glob(recorded, "*/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs { // each with a cache of its own
		t.Run(dir, func(t *testing.T) {
			t.Parallel()
			server, err := conversation.NewServer()
			if err != nil {
				t.Fatal(err)
			}
			files, err := fs.Glob(recorded, dir+"/*.txt")
			if err != nil || len(files) == 0 {
				t.Fatalf("no conversations, %v", err)
			}
			for _, file := range files { // in the order in which they were held
				text, err := fs.ReadFile(recorded, file)
				if err != nil {
					t.Fatal(err)
				}
				want, err := conversation.Parse(text)
				if err != nil {
					t.Fatalf("%s: %v", file, err)
				}
				if again := conversation.Format(want); !bytes.Equal(again, text) {
					t.Errorf("%s is not as it is written", file)
				}
				got := server.Replay(t.Context(), want)
				if diff := cmp.Diff(conversation.Lines(want.Said(false)), conversation.Lines(got.Said(false))); diff != "" {
					t.Errorf("%s (%s) is answered otherwise (-recorded +now):\n%s", path.Base(file), want.Title, diff)
				}
				if got.Error != want.Error {
					t.Errorf("%s ends with %q, want %q", path.Base(file), got.Error, want.Error)
				}
			}
		})
	}
}
