package server

import (
	"encoding/binary"
	"net/http"
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
		if took := time.Since(start); took != turnLimit {
			t.Errorf("it waited for %s, want %s", took, turnLimit)
		}
		second.Close()
	})
}
