package main

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"firn/nix"
)

// The bar of an import moves with the bytes of a path, and not at the end of the path only.
func TestImportBar(t *testing.T) {
	var nar []byte
	for _, s := range []string{"nix-archive-1", "(", "type", "regular", "contents", strings.Repeat("firn", 1<<20), ")"} {
		nar = binary.LittleEndian.AppendUint64(nar, uint64(len(s)))
		nar = append(nar, s...)
		nar = append(nar, make([]byte, -len(s)&7)...)
	}
	const path = "/nix/store/1b9p07z77phvv2hf6gm9f28syp39f1ag-large"
	info := fmt.Sprintf("StorePath: %s\nURL: nar/large.nar\nCompression: none\nNarHash: %s\nNarSize: %d\nReferences: \n",
		path, nix.SHA256Sum(sha256.Sum256(nar)), len(nar))

	shown := newLogBuffer()
	// Neither 0 nor 100 %, and no path is done.
	moving := regexp.MustCompile(`importing \[#+\.+\] +[1-9]\d? % of 4\.0 MiB, 0 of 1 path, `)
	var moved atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, ".narinfo"):
			fmt.Fprint(w, info)
		case strings.HasSuffix(r.URL.Path, "large.nar"):
			// Slowly, until the bar has moved.
			const pieces = 100
			for i := range pieces {
				w.Write(nar[len(nar)*i/pieces : len(nar)*(i+1)/pieces])
				if moving.MatchString(shown.String()) {
					moved.Store(true)
				} else if !moved.Load() {
					w.(http.Flusher).Flush()
					time.Sleep(50 * time.Millisecond)
				}
			}
		default:
			fmt.Fprint(w, "StoreDir: /nix/store\n")
		}
	}))
	defer server.Close()
	cmd := exec.CommandContext(t.Context(), "script", "--quiet", "--return", "--flush", "--command", "firn import "+server.URL+" "+path, os.DevNull)
	cmd.Env = environment(t, "TERM=xterm")
	cmd.Stdout, cmd.Stderr = shown, shown
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, shown.String())
	}
	if !moved.Load() || !strings.Contains(shown.String(), "imported 1 path of 1") {
		t.Errorf("the bar did not move:\n%q", shown.String())
	}
}
