package server

import (
	"bytes"
	"encoding/binary"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"firn/internal/cache/cachetest"
	"firn/internal/decompress"
	"firn/nix"
)

// largeWindow returns plain as zstd that is not compressed and asks for a window of 128 MiB, as
// `zstd --long=27` does.
func largeWindow(plain []byte) []byte {
	const block = 1 << 10
	file := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3}
	for len(plain) > 0 {
		n := min(block, len(plain))
		file = binary.LittleEndian.AppendUint32(file, uint32(n)<<3)
		file = append(file[:len(file)-1], plain[:n]...)
		plain = plain[n:]
	}
	return append(file, 1, 0, 0) // the last block, empty
}

// compressed returns what a command makes of in.
func compressed(t *testing.T, in []byte, command ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return out
}

// An upload that waits for its place and then for memory waits no longer in all than Nix does.
func TestWaitsTogether(t *testing.T) {
	path := cachetest.NewPath(t, nix.DefaultStoreDir, "small", "contents")
	file := largeWindow(path.NAR)
	inUploadBubble(t, Options{Uploads: 1}, func(t *uploadTester) {
		if _, ok := t.server.memory.TryTakeN(decompress.Memory); !ok {
			t.Fatal("the memory was not free")
		}
		first, r := t.begin("/"+cachetest.URL(t.path.NAR, ""), int64(len(t.path.NAR)), as("push-main"))
		synctest.Wait()
		start := time.Now()
		second, r2 := t.begin("/"+cachetest.URL(file, ".zst"), int64(len(file)), as("push-main"))
		go second.Write(file)
		time.Sleep(firstPatience / 2)
		if _, err := first.Write(t.path.NAR); err != nil {
			t.Fatal(err)
		}
		t.wantAnswer(r, http.StatusCreated)
		first.Close()
		t.wantAnswer(r2, http.StatusServiceUnavailable)
		if took := time.Since(start); took != waitLimit {
			t.Errorf("it waited for %s, want %s", took, waitLimit)
		}
		second.Close()
	})
}

// A text that is uploaded neither waits for the memory of decoders of NARs, nor, while it holds memory
// itself, for that of decoders of texts.
func TestTextsDoNotWait(t *testing.T) {
	inUploadBubble(t, Options{}, func(t *uploadTester) {
		if _, ok := t.server.memory.TryTakeN(decompress.Memory); !ok {
			t.Fatal("the memory was not free")
		}
		put := func(file []byte, status int) {
			t.Helper()
			start := time.Now()
			conn, r := t.begin("/realisations/sha256:"+strings.Repeat("0", 64)+"!out.doi", int64(len(file)), as("push-main"), "Content-Encoding: zstd")
			defer conn.Close()
			go conn.Write(file)
			t.wantAnswer(r, status)
			if took := time.Since(start); took > time.Second {
				t.Errorf("it waited for %s", took)
			}
		}
		put(compressed(t.T, []byte("no realisation"), "zstd"), http.StatusBadRequest)

		// The first frame takes more bytes than a small text may have, and the second more memory to
		// decode than there is.
		first := compressed(t.T, bytes.Repeat([]byte{' '}, 2*firstText), "zstd", "-1", "--no-check")
		second := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 14 << 3, 1, 0, 0} // a window of 16 MiB, and nothing in it
		put(append(first, second...), http.StatusBadRequest)
		if _, ok := t.server.textDecoders.TryTakeN(3*maxTextDecoder + maxTextDecoder/2 + 1<<20); !ok {
			t.Fatal("the memory was not free")
		}
		put(append(first, second...), http.StatusServiceUnavailable)
	})
}
