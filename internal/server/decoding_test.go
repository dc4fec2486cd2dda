package server

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"firn/internal/cache"
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

// An answer to a client that sends slowly.
type slowAnswer struct {
	status     int
	retryAfter string
	text       string
}

// slowly begins an upload and goes on with it at 5 KB a second, which is enough not to be cut. The
// answer comes through the channel.
func (t *uploadTester) slowly(file []byte, headers ...string) <-chan slowAnswer {
	t.Helper()
	conn, r := t.begin("/"+cachetest.URL(file, ".zst"), int64(len(file)), headers...)
	t.Cleanup(func() { conn.Close() })
	go func() {
		for len(file) > 0 {
			n, err := conn.Write(file[:min(5000, len(file))])
			if err != nil {
				return
			}
			file = file[n:]
			select {
			case <-t.Context().Done():
				return
			case <-time.After(time.Second):
			}
		}
	}()
	answers := make(chan slowAnswer, 1)
	go func() {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return // the test has ended
		}
		text, _ := io.ReadAll(resp.Body)
		answers <- slowAnswer{resp.StatusCode, resp.Header.Get("Retry-After"), string(text)}
	}()
	return answers
}

// TestDecoderMemoryIsShared: slow uploads with the largest windows, of one token, one address or of
// ten of both, have no upload of others wait, nor a small one of their own; and none has more than
// half of the memory.
func TestDecoderMemoryIsShared(t *testing.T) {
	path := cachetest.NewPath(t, nix.DefaultStoreDir, "small", "contents")
	others := cachetest.NewPath(t, nix.DefaultStoreDir, "other", "other contents")
	slow := largeWindow(cachetest.NewPath(t, nix.DefaultStoreDir, "slow", strings.Repeat("x", 8<<20)).NAR)
	large := largeWindow(others.NAR)
	xz, zstd := compressed(t, path.NAR, "xz", "-6"), compressed(t, path.NAR, "zstd", "-3")
	const there = "X-Forwarded-For: 198.51.100.1"
	for name, c := range map[string]struct {
		token, address string // of slow ones; {} stands for another number in each
		held           []string
		beside         [][]string // headers of clients that do not wait
		large          bool       // whether the first of these gets as much as a slow one, too
	}{
		"of one token":   {"slow-0", "192.0.2.{}", []string{"principal slow-0"}, [][]string{{as("good"), there}, {as("slow-0"), there}}, true},
		"of one address": {"slow-{}", "192.0.2.1", []string{"address 192.0.2.1"}, [][]string{{as("good"), there}, {as("good"), "X-Forwarded-For: 192.0.2.1"}}, true},
		"of one of both": {"slow-0", "192.0.2.1", []string{"principal slow-0", "address 192.0.2.1"},
			[][]string{{as("good"), there}, {as("slow-0"), "X-Forwarded-For: 192.0.2.1"}}, true},
		"of ten of both": {"slow-{}", "192.0.2.{}", nil, [][]string{{as("good"), there}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			inUploadBubble(t, Options{}, func(t *uploadTester) {
				push := map[string]cache.Rights{"main": cache.Read | cache.Push}
				access := guard{"good": {"good", push}}
				var answers []<-chan slowAnswer
				for i := range 10 {
					number := fmt.Sprint(i)
					access["slow-"+number] = holder{"slow-" + number, push}
					t.server.access = access
					answers = append(answers, t.slowly(slow,
						as(strings.ReplaceAll(c.token, "{}", number)), "X-Forwarded-For: "+strings.ReplaceAll(c.address, "{}", number)))
					synctest.Wait()
				}
				start := time.Now()
				for _, owner := range c.held {
					if held := t.server.memory.Held(owner); held == 0 || held > decompress.Memory/2 {
						t.Errorf("%s has %d bytes, want some, and no more than half of %d", owner, held, decompress.Memory)
					}
				}
				send := func(target string, file []byte, status int, headers ...string) {
					t.Helper()
					conn, r := t.begin(target, int64(len(file)), headers...)
					defer conn.Close()
					if _, err := conn.Write(file); err != nil {
						t.Fatal(err)
					}
					t.wantAnswer(r, status)
				}
				for i, headers := range c.beside {
					status := []int{http.StatusCreated, http.StatusNoContent}[min(i, 1)]
					send("/"+cachetest.URL(xz, ".xz"), xz, status, headers...)
					send("/"+cachetest.URL(zstd, ".zst"), zstd, status, headers...)
					text := (&nix.NARInfo{PathInfo: *path.Info, URL: cachetest.URL(xz, ".xz"), Compression: nix.XZ,
						FileHash: nix.SHA256Sum(sha256.Sum256(xz)), FileSize: int64(len(xz))}).AppendText(nil)
					send("/"+path.Info.Path.Hash().String()+".narinfo", compressed(t.T, text, "xz"), status, append(headers, "Content-Encoding: xz")...)
					send("/log/"+absentHash+"-x.drv", compressed(t.T, []byte("a log\n"), "zstd"), http.StatusNoContent, append(headers, "Content-Encoding: zstd")...)
				}
				if c.large {
					send("/"+cachetest.URL(large, ".zst"), large, http.StatusCreated, c.beside[0]...)
				}
				if took := time.Since(start); took > time.Second {
					t.Errorf("uploads beside the slow ones waited for %s", took)
				}

				// Those that wait are told in the end, and when to come again.
				refused := 0
				time.Sleep(waitLimit - time.Since(start) + time.Second)
				synctest.Wait()
				for _, answer := range answers {
					select {
					case a := <-answer:
						if a.status != http.StatusServiceUnavailable || a.retryAfter == "" || !strings.Contains(a.text, "memory") {
							t.Errorf("a slow one is told %+v", a)
						}
						refused++
					default:
					}
				}
				if refused < 7 {
					t.Errorf("%d of ten were refused, want seven to nine", refused)
				}
			})
		})
	}
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
