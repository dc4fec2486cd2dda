package localstore

import (
	"context"
	"database/sql"
	"encoding/binary"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"firn/nix"
)

func (n *nixStore) sqlite(query string) *sql.DB {
	n.t.Helper()
	db, err := sql.Open("sqlite", "file:"+n.dbPath()+query)
	if err != nil {
		n.t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	return db
}

func (n *nixStore) dbPath() string { return filepath.Join(n.stateDir, "db/db.sqlite") }

// fillDatabase adds any number of rows that Nix could have made.
func fillDatabase(t testing.TB, n *nixStore, paths, references int) {
	t.Helper()
	db := n.sqlite("?_pragma=synchronous(off)")
	defer db.Close()
	ctx := context.Background()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	path, err := tx.Prepare(`insert into ValidPaths (path, hash, registrationTime, deriver, narSize, sigs) values (?, ?, 1700000000, ?, 123456, ?)`)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := tx.Prepare(`insert or ignore into Refs values (?, ?)`)
	if err != nil {
		t.Fatal(err)
	}
	sig := "cache.example.org-1:" + strings.Repeat("A", 86) + "=="
	for i := range paths {
		base := string(n.storeDir) + "/" + generatedHash(i).String() + "-generated-"
		hash := "sha256:" + strings.Repeat("0123456789abcdef", 4)
		result, err := path.Exec(base+strconv.Itoa(i), hash, base+strconv.Itoa(i)+".drv", sig)
		if err != nil {
			t.Fatal(err)
		}
		id, err := result.LastInsertId()
		if err != nil {
			t.Fatal(err)
		}
		for j := range int64(references) {
			if _, err := ref.Exec(id, max(1, id-j*j)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
}

// generatedHash is the path hash of the i-th generated path: as scattered as a real one.
func generatedHash(i int) nix.PathHash {
	var h nix.PathHash
	x := uint64(i)
	for at := 0; at+8 <= len(h); at += 8 {
		x += 0x9e3779b97f4a7c15 // splitmix64
		z := (x ^ x>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		binary.BigEndian.PutUint64(h[at:], z^z>>31)
	}
	return h
}
