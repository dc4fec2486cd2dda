package conversation

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Whatever was said is the same when it has been written down and read.
func FuzzFormat(f *testing.F) {
	for _, seed := range []string{"", "\x05", "\x05\x00\x00\x00\x00\x00\x00\x00hello\x00\x00\x00", "\x02\x00\x00\x00\x00\x00\x00\x00\"\n\x00\x00\x00\x00\x00\x01"} {
		f.Add([]byte(seed), []byte("xxxxxxxx\x00"))
	}
	f.Fuzz(func(t *testing.T, question, answer []byte) {
		want := &Conversation{Title: "title", Command: "nix-daemon --stdio", Error: "failed"}
		want.add(true, question)
		want.add(false, answer)
		want.add(true, question)
		got, err := Parse(Format(want))
		if err != nil {
			t.Fatal(err)
		}
		for _, client := range []bool{true, false} {
			if !bytes.Equal(got.Said(client), want.Said(client)) {
				t.Errorf("said %q, read %q", want.Said(client), got.Said(client))
			}
		}
	})
}

func TestLines(t *testing.T) {
	text := []byte("\x07\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00hello\x00\x00\x00cxin\x00\x00\x00\x00half")
	want := []string{"7", "1", `"hello"`, "0x6e697863", `bytes "half"`}
	if diff := cmp.Diff(want, Lines(text)); diff != "" {
		t.Error(diff)
	}
}
