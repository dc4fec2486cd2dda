//go:build programs

package nar_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"firn/nix/nar/nartest"
)

// TestHTTP sends NARs as a server does, to many clients at once.
func TestHTTP(t *testing.T) {
	objects := append(manyFiles(200, 20_000), file("e", noise(3_000_000, 1)), file("f", noise(128<<10, 2)), dir("g"), program("g/h", noise(200_000, 3)))
	path := objects.make(t, filepath.Join(t.TempDir(), "tree"))
	want := nartest.Dump(t, path)
	l := layout(t, path)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-nix-nar")
		w.Header().Set("Content-Length", strconv.FormatInt(l.Size(), 10))
		if err := l.WriteRange(r.Context(), w, path, 0, l.Size()); err != nil {
			t.Error(err)
		}
	}))
	defer server.Close()
	defer server.Client().CloseIdleConnections()
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			got := make([]byte, len(want))
			for range 3 {
				resp, err := server.Client().Get(server.URL)
				if err != nil {
					t.Error(err)
					return
				}
				clear(got)
				_, err = io.ReadFull(resp.Body, got)
				resp.Body.Close()
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("got other bytes than those wanted: %v", err)
				}
			}
		})
	}
	clients.Wait()
}
