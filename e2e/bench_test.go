package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The benchmark measures everything that its page shows, of two builds of firn.
func TestBenchmark(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	bench := exec.CommandContext(t.Context(), "go", "run", ".", "--quick", "--firn", firnPath, "--before", firnPath, "--results", dir)
	bench.Dir = "../bench"
	if text, err := bench.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	text, err := os.ReadFile(filepath.Join(dir, "results.json"))
	if err != nil {
		t.Fatal(err)
	}
	var results struct {
		Sections []struct {
			Title string
			Rows  []struct {
				What   string
				Bar    struct{ To string }
				Values map[string][]float64
			}
		}
	}
	if err := json.Unmarshal(text, &results); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(dir, "benchmarks.md"))
	if err != nil {
		t.Fatal(err)
	}
	if len(results.Sections) != 12 {
		t.Errorf("%d sections, want 12", len(results.Sections))
	}
	_, err = exec.LookPath("/usr/sbin/sshd")
	openSSH := err == nil
	for _, s := range results.Sections {
		if !strings.Contains(string(page), "\n## "+s.Title+"\n") {
			t.Errorf("the page has no section %s", s.Title)
		}
		for _, r := range s.Rows {
			of := []string{"firn", "before"}
			if r.Bar.To != "" && (openSSH || r.Bar.To != "OpenSSH and Nix") {
				of = append(of, r.Bar.To)
			}
			for _, column := range of {
				if xs := r.Values[column]; len(xs) != 1 || xs[0] <= 0 {
					t.Errorf("%s, %s: %s is %v", s.Title, r.What, column, xs)
				}
			}
		}
	}
}
