//go:build programs

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// bash completes the names of caches, tokens and keys that there are, in the state that the command
// line names, and makes nothing.
func TestNames(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	a := &admin{t, nil, state}
	a.mustRun("token", "create", "ci", "--push", "main")
	a.mustRun("token", "create", "laptop@home", "--read", "main")
	a.addKey("builder", "main")
	key, _, _ := strings.Cut(a.mustRun("cache", "create", "team"), ":")
	config := filepath.Join(dir, "firn.toml")
	if err := os.WriteFile(config, []byte("state = '"+state+"'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	absent := filepath.Join(dir, "absent")
	script, err := exec.CommandContext(t.Context(), "firn", "completion", "bash").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		typed string
		want  []string
	}{
		{"cache show --state " + state + " ", []string{"main", "team"}},
		{"cache show --state = " + state + " t", []string{"team"}},
		{"cache set --config " + config + " main --drop-key ", []string{key}},
		{"path list --state " + state + " --cache ", []string{"main", "team"}},
		{"verify --state " + state + " --cache ", []string{"main", "team"}},
		{"token revoke --state " + state + " ", []string{"ci", "laptop@home"}},
		{"token create --state " + state + " --push ", []string{"main", "team"}},
		{"sshkey revoke --state " + state + " ", []string{"builder"}},
		{"cache show --state " + absent + " ", nil},
		{"cache show --state " + config + " ", nil},
	} {
		words := strings.Split("firn "+test.typed, " ")
		program := string(script) + "\nCOMP_WORDS=('" + strings.Join(words, "' '") + "')\n" +
			"COMP_CWORD=$((${#COMP_WORDS[@]} - 1))\n_firn\nprintf '%s\\n' ${COMPREPLY[@]+\"${COMPREPLY[@]}\"}"
		cmd := exec.CommandContext(t.Context(), "bash", "-eu", "-c", program)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir} // FIRN_STATE would win over the file
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		got := strings.Fields(string(out))
		slices.Sort(got)
		if diff := cmp.Diff(test.want, got); diff != "" && len(test.want)+len(got) > 0 {
			t.Errorf("%s (-want +got):\n%s", test.typed, diff)
		}
	}
	if _, err := os.Lstat(absent); err == nil {
		t.Error("completion has made a state directory")
	}
}
