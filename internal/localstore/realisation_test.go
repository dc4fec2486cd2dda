//go:build programs

package localstore

import (
	"crypto/sha256"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"firn/internal/cache"
	"firn/nix"
)

// realisationTables are the tables of both generations, with the columns and indices that Nix gives them.
var realisationTables = []string{
	`create table if not exists Realisations (id integer primary key autoincrement not null, drvPath text not null,
		outputName text not null, outputPath integer not null, signatures text,
		foreign key (outputPath) references ValidPaths(id) on delete cascade)`,
	`create index if not exists IndexRealisations on Realisations(drvPath, outputName)`,
	`create table if not exists RealisationsRefs (referrer integer not null, realisationReference integer,
		foreign key (referrer) references Realisations(id) on delete cascade,
		foreign key (realisationReference) references Realisations(id) on delete restrict)`,
	`create index if not exists IndexRealisationsRefs on RealisationsRefs(referrer)`,
	`create table if not exists BuildTraceV3 (id integer primary key autoincrement not null, drvPath text not null,
		outputName text not null, outputPath text not null, signatures text)`,
	`create index if not exists IndexBuildTraceV3 on BuildTraceV3(drvPath, outputName)`,
}

// A derivation that real Nix builds content-addressed has a realisation, in a table that Nix makes just then.
func TestRealisation(t *testing.T) {
	n := newNix(t)
	s := n.open()
	none := nix.RealisationID{DrvHash: nix.SHA256Sum(sha256.Sum256(nil)), Output: "out"}
	if _, err := s.Realisation(t.Context(), none); !errors.Is(err, cache.ErrNotFound) {
		t.Fatalf("without the table: %v, want ErrNotFound", err)
	}
	out := n.run("nix-build", "--no-out-link", "--expr", `derivation {
		name = "ca"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo built > $out" ];
		__contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; }`)
	var drvHash string
	db := n.sqlite("")
	defer db.Close()
	if err := db.QueryRow(`select drvPath from Realisations`).Scan(&drvHash); err != nil {
		t.Fatal(err)
	}
	id, err := nix.ParseRealisationID(drvHash + "!out")
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Realisation(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if r.OutPath.String() != out {
		t.Errorf("it was built to %v, want %v", r.OutPath, out)
	}
	if _, err := s.Realisation(t.Context(), none); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("an unknown one: %v, want ErrNotFound", err)
	}
}

func TestRealisationDependencies(t *testing.T) {
	n := newNix(t)
	path := n.add("file", "hello\n")
	sig := "test-1:" + "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=="
	first := nix.RealisationID{DrvHash: nix.SHA256Sum(sha256.Sum256([]byte("1"))), Output: "out"}
	second := nix.RealisationID{DrvHash: nix.SHA256Sum(sha256.Sum256([]byte("2"))), Output: "dev"}
	n.edit(realisationTables...)
	for _, id := range []nix.RealisationID{first, second} {
		n.edit(`insert into Realisations (drvPath, outputName, outputPath, signatures)
			select '` + drvHashText(id) + `', '` + id.Output + `', id, '` + sig + ` malformed' from ValidPaths`)
	}
	n.edit(`insert into RealisationsRefs values (1, 2)`)
	s := n.open()
	got, err := s.Realisation(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{second.String(): path.String()}, dependencyTexts(got)); diff != "" {
		t.Errorf("dependencies (-want +got):\n%s", diff)
	}
	if len(got.Signatures) != 1 || got.Signatures[0].String() != sig {
		t.Errorf("signatures %v, want %s", got.Signatures, sig)
	}
	n.edit(`update Realisations set drvPath = 'nonsense' where id = 2`)
	if _, err := s.Realisation(t.Context(), first); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("with a malformed dependency: %v, want ErrNotFound", err)
	}
}

func dependencyTexts(r *nix.Realisation) map[string]string {
	all := map[string]string{}
	for id, path := range r.Dependencies {
		all[id.String()] = path.String()
	}
	return all
}

func TestBuildTrace(t *testing.T) {
	n := newNix(t)
	path := n.add("file", "hello\n")
	drv := n.path(string(n.storeDir) + "/" + strings.Repeat("1", 32) + "-built.drv")
	n.edit(realisationTables...)
	s := n.open()
	for output, columns := range map[string][2]string{
		"out": {drv.Base(), path.String()},
		"dev": {drv.String(), path.Base()},
	} {
		n.edit(`insert into BuildTraceV3 (drvPath, outputName, outputPath) values ('` + columns[0] + `', '` + output + `', '` + columns[1] + `')`)
		got, err := s.BuildTrace(t.Context(), drv, output)
		if err != nil {
			t.Fatal(err)
		}
		if got.OutPath != path || got.Drv != drv || got.Output != output {
			t.Errorf("got %v for %v!%s, want %v", got, drv, output, path)
		}
	}
	if _, err := s.BuildTrace(t.Context(), drv, "doc"); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("an unknown output: %v, want ErrNotFound", err)
	}
	n.edit(`update BuildTraceV3 set outputPath = '../x'`)
	if _, err := s.BuildTrace(t.Context(), drv, "out"); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("a malformed path: %v, want ErrNotFound", err)
	}
}
