package nar_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"firn/nix/nar"
)

// list returns the listing of a tree.
func list(tb testing.TB, t tree) *nar.Listing {
	tb.Helper()
	_, headers, err := readTree(bytes.NewReader(t.nar(tb)))
	if err != nil {
		tb.Fatal(err)
	}
	return &nar.Listing{Entries: headers}
}

func TestListingJSON(t *testing.T) {
	for name, c := range map[string]struct {
		tree tree
		want string
	}{
		"file":    {tree{file("", "hello\n")}, `{"type":"regular","size":6,"executable":false,"narOffset":96}`},
		"program": {tree{program("", "hello\n")}, `{"type":"regular","size":6,"executable":true,"narOffset":128}`},
		"symlink": {tree{link("", "a\"b")}, `{"type":"symlink","target":"a\"b"}`},
		"empty":   {tree{dir("")}, `{"type":"directory","entries":{}}`},
		"directories": {
			tree{dir(""), dir("a"), dir("a/b"), link("a/c", "x"), dir("d"), link("e", "y")},
			`{"type":"directory","entries":{"a":{"type":"directory","entries":{"b":{"type":"directory","entries":{}},"c":{"type":"symlink","target":"x"}}},` +
				`"d":{"type":"directory","entries":{}},"e":{"type":"symlink","target":"y"}}}`,
		},
		"characters": {
			tree{dir(""), link("\x01\n\\", "t"), link("<&>", "t"), link("\u00e9\u2028\U0001f600", "t")},
			`{"type":"directory","entries":{"\u0001\u000a\\":{"type":"symlink","target":"t"},"<&>":{"type":"symlink","target":"t"},"` + "\u00e9\u2028\U0001f600" + `":{"type":"symlink","target":"t"}}}`,
		},
		"no UTF-8": {
			tree{dir(""), link("a\x80\x80", "\xff")},
			`{"type":"directory","entries":{"a` + "\ufffd\ufffd" + `":{"type":"symlink","target":"` + "\ufffd" + `"}}}`,
		},
		"clash of two": {
			tree{dir(""), link("a\x80", "1"), link("a\xff", "2"), link("b", "3")},
			`{"type":"directory","entries":{"a` + "\ufffd" + `":{"type":"symlink","target":"1"},"b":{"type":"symlink","target":"3"}}}`,
		},
		"clash with one that keeps its name": {
			tree{dir(""), dir("a\x80"), link("a\x80/b", "1"), dir("a\ufffd"), link("a\ufffd/b", "2"), dir("a\xff"), link("a\xff/c", "3")},
			`{"type":"directory","entries":{"a` + "\ufffd" + `":{"type":"directory","entries":{"b":{"type":"symlink","target":"2"}}}}}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := list(t, c.tree).AppendJSON([]byte("> "))
			if diff := cmp.Diff(`> {"version":1,"root":`+c.want+`}`, string(got)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if !json.Valid(got[2:]) {
				t.Error("it is no JSON")
			}
		})
	}
}

// TestListingParse: what is written is read again.
func TestListingParse(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		want := list(t, trees.Draw(r, "tree"))
		text, err := json.Marshal(want)
		if err != nil {
			r.Fatal(err)
		}
		var got nar.Listing
		if err := json.Unmarshal(text, &got); err != nil {
			r.Fatal(err)
		}
		for i, h := range want.Entries {
			if !utf8.ValidString(h.Path) {
				return // names that JSON cannot hold are the business of TestListingJSON
			}
			want.Entries[i].Target = strings.ToValidUTF8(h.Target, string(utf8.RuneError))
		}
		if diff := cmp.Diff(want, &got); diff != "" {
			r.Fatalf("-want +got:\n%s", diff)
		}
	})
}

func TestParseListingTolerates(t *testing.T) {
	const text = ` {"root": {"entries": {
		"b": {"narOffset": 400, "size": 3, "type": "regular"},
		"a-": {"target": "b", "type": "symlink", "new": [{"x": [1, 2]}]},
		"a": {"entries": {"c": {"executable": true, "size": 0, "type": "regular"}}, "type": "directory"}
	}, "type": "directory"}, "version": 1, "new": {"y": null}} `
	got, err := nar.ParseListing([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := &nar.Listing{Entries: []nar.Header{
		{Type: nar.TypeDirectory},
		{Path: "a", Type: nar.TypeDirectory},
		{Path: "a/c", Type: nar.TypeRegular, Executable: true},
		{Path: "a-", Type: nar.TypeSymlink, Target: "b"},
		{Path: "b", Type: nar.TypeRegular, Size: 3, Offset: 400},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestParseListingRefuses(t *testing.T) {
	const leaf = `{"type":"symlink","target":"t"}`
	entries := func(s string) string {
		return `{"version":1,"root":{"type":"directory","entries":{` + s + `}}}`
	}
	root := func(s string) string { return `{"version":1,"root":` + s + `}` }
	for text, msg := range map[string]string{
		``:                                    "unexpected EOF",
		`null`:                                "has to be",
		`[]`:                                  "has to be",
		`{}`:                                  "version is 0",
		`{"version":1}`:                       "no root",
		`{"version":2,"root":` + leaf + `}`:   "version is 2",
		`{"version":1.5,"root":` + leaf + `}`: "invalid syntax",
		`{"version":1,"root":` + leaf + `}x`:  "behind its end",
		`{"version":1,"root":` + leaf + `}{}`: "behind its end",
		`{"version":1,"root":` + leaf:         "unexpected EOF",
		`{"version":1,"root":` + leaf + `,"root":` + leaf + `}`: "two roots",
		root(`null`):                              "has to be",
		root(`{}`):                                "lacks a field",
		root(`{"type":"directory"}`):              "lacks a field",
		root(`{"type":"fifo"}`):                   `"fifo"`,
		root(`{"type":"directory","entries":[]}`): "has to be",
		root(`{"type":"directory","entries":{},"size":1}`):                      "not of its type",
		root(`{"type":"regular"}`):                                              "lacks a field",
		root(`{"type":"regular","size":null}`):                                  "has to be",
		root(`{"type":"regular","size":-1}`):                                    "not of its type",
		root(`{"type":"regular","size":1e3}`):                                   "invalid syntax",
		root(`{"type":"regular","size":9223372036854775808}`):                   "out of range",
		root(`{"type":"regular","size":1,"narOffset":-1}`):                      "not of its type",
		root(`{"type":"regular","size":1,"executable":"yes"}`):                  "has to be",
		root(`{"type":"regular","size":1,"size":1}`):                            "two fields",
		root(`{"type":"symlink","target":""}`):                                  "empty",
		root(`{"type":"symlink","target":"a\u0000"}`):                           "zero byte",
		root(`{"type":"symlink","target":"` + strings.Repeat("t", 4096) + `"}`): "4096 bytes",
		entries(`"":` + leaf):                                                   "empty",
		entries(`".":` + leaf):                                                  `"."`,
		entries(`"..":` + leaf):                                                 `".."`,
		entries(`"a/b":` + leaf):                                                "slash",
		entries(`"a\u0000":` + leaf):                                            "zero byte",
		entries(`"` + strings.Repeat("n", 256) + `":` + leaf):                   "256 bytes",
		entries(`"a":` + leaf + `,"b":` + leaf + `,"a":` + leaf):                "two entries",
		root(strings.Repeat(`{"type":"directory","entries":{"d":`, 64) + leaf + strings.Repeat(`}}`, 64)): "deeper than 63",
		root(strings.Repeat(`{"x":`, 1_000_000)):                                                          "",
		root(strings.Repeat(`[`, 1_000_000)):                                                              "has to be",
	} {
		_, err := nar.ParseListing([]byte(text))
		if err == nil || !strings.Contains(err.Error(), msg) {
			t.Errorf("%.200s: got %v, want %q in it", text, err, msg)
		}
	}
}

// FuzzParseListing: what is parsed can be written, and parsed again as the same.
func FuzzParseListing(f *testing.F) {
	for _, v := range vectors {
		f.Add(list(f, v.tree).AppendJSON(nil))
	}
	for _, t := range accepted {
		f.Add(list(f, t).AppendJSON(nil))
	}
	f.Add([]byte(`{"root":{"entries":{"b":{"size":3,"type":"regular"},"a":{"target":"\ud800","type":"symlink","new":[{}]}},"type":"directory"},"version":1}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		first, err := nar.ParseListing(text)
		if err != nil {
			return
		}
		again := first.AppendJSON(nil)
		second, err := nar.ParseListing(again)
		if err != nil {
			t.Fatalf("parse the listing that was written: %v\n%s", err, again)
		}
		if diff := cmp.Diff(first, second); diff != "" {
			t.Fatalf("-first +second:\n%s", diff)
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, again); err != nil || !bytes.Equal(compact.Bytes(), again) {
			t.Fatalf("written listing is no compact JSON: %v", err)
		}
	})
}
