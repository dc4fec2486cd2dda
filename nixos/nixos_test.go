//go:build programs

// Package nixos tests the module, the package and the flake for NixOS, on a machine that has Nix and systemd but no nixpkgs:
// testdata has a stand-in for what they use of it.
package nixos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "write what is evaluated into testdata/examples")

// firnDir has bin/firn, the program of this tree.
var firnDir string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		var err error
		if firnDir, err = os.MkdirTemp("", "firn-nixos"); err != nil {
			fmt.Println(err)
			return 1
		}
		defer os.RemoveAll(firnDir)
		out, err := exec.Command("go", "build", "-o", filepath.Join(firnDir, "bin", "firn"), "firn/cmd/firn").CombinedOutput()
		if err != nil {
			fmt.Printf("build firn: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// Each example has a configuration, and what becomes of it on the machine or the error that NixOS stops with.
// FIRN_NIXPKGS_LIB=DIR evaluates with the lib of a real nixpkgs.
func TestExamples(t *testing.T) {
	examples, err := filepath.Glob("testdata/examples/*.txtar")
	if err != nil || len(examples) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, path := range examples {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			t.Parallel()
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]string{}
			for _, f := range archive.Files {
				want[f.Name] = string(f.Data)
			}
			configuration := want["configuration.nix"]
			got, err := evaluate(t, configuration)
			if err == nil && got["firn.toml"] != "" {
				check(t, got)
			} else if err != nil {
				got = map[string]string{"error": evaluationError(err)}
			}
			got["configuration.nix"] = configuration
			if *update {
				archive.Files = nil
				for _, name := range slices.Sorted(maps.Keys(got)) {
					archive.Files = append(archive.Files, txtar.File{Name: name, Data: []byte(got[name])})
				}
				if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s is not what comes of it; go test ./nixos -update writes that (-want +got):\n%s", path, diff)
			}
		})
	}
}

// evaluate returns the files that a configuration makes on the machine.
func evaluate(t *testing.T, configuration string) (map[string]string, error) {
	t.Helper()
	args := []string{"--eval", "--strict", "--json", "testdata/nixos.nix", "--arg", "configuration", write(t, "configuration.nix", configuration)}
	if lib := os.Getenv("FIRN_NIXPKGS_LIB"); lib != "" {
		args = append(args, "--arg", "lib", "import "+lib)
	}
	out, err := nix(t, "nix-instantiate", args...)
	if err != nil {
		return nil, err
	}
	var files map[string]string
	if err := json.Unmarshal(out, &files); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	for name, text := range files {
		if strings.HasSuffix(name, ".json") {
			var indented bytes.Buffer
			if err := json.Indent(&indented, []byte(text), "", "  "); err != nil {
				t.Fatal(err)
			}
			text = indented.String()
		}
		files[name] = strings.TrimRight(text, "\n") + "\n"
	}
	return files, nil
}

// evaluationError returns what a person is told, without the trace that Nix puts around it, which changes with its version.
func evaluationError(err error) string {
	_, text, _ := strings.Cut(err.Error(), "error: ")
	text, _, _ = strings.Cut(text, "\n(use '--show-trace'")
	var lines []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "at /") {
			break
		}
		lines = append(lines, strings.TrimSpace(line))
	}
	return strings.TrimSpace(strings.Join(lines, "\n")) + "\n"
}

// packagedUnits has the units of the package, which NixOS lays what the module says over.
const packagedUnits = "../packaging/systemd"

// mostExposed bounds what systemd finds a service exposed to, in tenths: it goes from 0 to 100.
const mostExposed = "20"

// check has firn and systemd read the files.
func check(t *testing.T, files map[string]string) {
	t.Helper()
	checkSettings(t, files)

	// systemd looks whether the programs are there.
	dir := t.TempDir()
	programs := strings.NewReplacer(storePath("firn-caches"), filepath.Join(dir, "caches"), "/usr/bin/firn", filepath.Join(firnDir, "bin", "firn"))
	put := func(name, text string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(programs.Replace(text)), mode); err != nil {
			t.Fatal(err)
		}
	}
	put("caches", "#!/bin/sh\n", 0o755)
	var units []string // in dir
	for name, text := range files {
		unit, _, dropIn := strings.Cut(name, ".d/")
		if !slices.Contains([]string{".service", ".socket", ".timer"}, filepath.Ext(unit)) {
			continue
		}
		put(name, text, 0o644)
		if dropIn {
			packaged, err := os.ReadFile(filepath.Join(packagedUnits, unit))
			if err != nil {
				t.Fatal(err)
			}
			put(unit, string(packaged), 0o644)
		}
		units = append(units, filepath.Join(dir, unit))
	}
	if out := run(t, "systemd-analyze", append([]string{"--no-pager", "verify", "--man=no"}, units...)...); len(out) > 0 {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	for _, unit := range units {
		if filepath.Ext(unit) == ".service" {
			run(t, "systemd-analyze", "--no-pager", "security", "--offline=true", "--threshold="+mostExposed, unit)
		}
	}
}

// checkSettings has firn read the settings, with the credentials that its service has.
func checkSettings(t *testing.T, files map[string]string) {
	t.Helper()
	firn, dir := filepath.Join(firnDir, "bin", "firn"), t.TempDir()
	for _, match := range regexp.MustCompile(`(?m)^LoadCredential=([^:]+):`).FindAllStringSubmatch(files["firn.service.d/overrides.conf"], -1) {
		path := filepath.Join(dir, match[1])
		if strings.HasPrefix(match[1], "key.") {
			run(t, firn, "key", "generate", match[1], path, filepath.Join(t.TempDir(), "public"))
		} else if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const credentials = "/run/credentials/firn.service"
	cmd := exec.CommandContext(t.Context(), firn, "config", "check", write(t, "firn.toml", strings.ReplaceAll(files["firn.toml"], credentials, dir)))
	cmd.Env = append(os.Environ(), "CREDENTIALS_DIRECTORY="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("firn config check: %v\n%s", err, out)
	}
}

// storePath is where the stand-in says that something is.
func storePath(name string) string {
	return "/nix/store/" + strings.Repeat("0", 32) + "-" + name
}

// commandTimeout bounds one command.
const commandTimeout = 2 * time.Minute

// nix runs a command of Nix with a store of its own. The error has what it says.
func nix(t *testing.T, name string, args ...string) (stdout []byte, err error) {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "NIX_STORE_DIR="+dir+"/store", "NIX_STATE_DIR="+dir+"/var", "NIX_LOG_DIR="+dir+"/log",
		"NIX_CONF_DIR="+dir, "NIX_USER_CONF_FILES=/dev/null", "NIX_PATH=", "HOME="+dir, "NIX_CONFIG=sandbox = false\nbuild-users-group =\nsubstituters =")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%s: %w\n%s", name, err, strings.ReplaceAll(string(exit.Stderr), dir+"/store", "/nix/store"))
	}
	return out, err
}

// run runs a command that has to succeed, and returns all that it says.
func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// write writes a file of its own.
func write(t *testing.T, name, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
