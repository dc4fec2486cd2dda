package main

import (
	"firn/internal/nixserve"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// programs are what the test binary is when it is run by these names.
var programs = map[string]func(){"firn": main, nixserve.Name: main}

// TestMain puts the programs into the PATH of all tests.
func TestMain(m *testing.M) {
	testscript.Main(m, programs)
}

// environment is that of a user with nothing set, and vars.
func environment(t *testing.T, vars ...string) []string {
	t.Helper()
	home := t.TempDir()
	return append([]string{
		"PATH=" + os.Getenv("PATH"),
		fmt.Sprintf("HOME=%s", home),
		fmt.Sprintf("FIRN_STATE=%s/state", home),
	}, vars...)
}

// freePort returns a port of 127.0.0.1 that is free, each once. It is below those that the kernel
// gives out by itself, so that no other server or connection gets it before it is used.
func freePort(t *testing.T) string {
	t.Helper()
	for range 1000 {
		port := strconv.Itoa(20_000 + rand.IntN(12_000))
		if _, given := givenPorts.LoadOrStore(port, true); given {
			continue
		}
		if l, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return ""
}

// givenPorts are those that freePort has returned.
var givenPorts sync.Map
