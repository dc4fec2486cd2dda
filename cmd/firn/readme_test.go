package main

import (
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// The walk of the README works as it stands: its blocks marked sh run in one shell, from the root of the repository,
// with a store of their own and on a port that is free.
func TestReadme(t *testing.T) {
	needNix(t)
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	script.WriteString("trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n") // a failed walk leaves no server
	for _, block := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		script.WriteString(block[1])
	}
	const address = "127.0.0.1:5000"
	if n := strings.Count(script.String(), address); n < 4 {
		t.Fatalf("the walk has %s %d times, want it to serve there and to ask there:\n%s", address, n, &script)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := l.Addr().String()
	l.Close()

	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "bash", "-euxo", "pipefail", "-c", strings.ReplaceAll(script.String(), address, free))
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "TMPDIR="+dir,
		"NIX_STORE_DIR="+dir+"/store", "NIX_STATE_DIR="+dir+"/var", "NIX_LOG_DIR="+dir+"/log")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("the walk failed: %v\n%s", err, out)
	}
	if !strings.Contains(string(out), "\nSig: demo-1:") {
		t.Errorf("the walk shows no signature:\n%s", out)
	}
}
