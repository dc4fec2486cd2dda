// Package nar reads, writes and lays out NARs, the archives that Nix makes of store paths.
//
// A [Reader] walks through a NAR that comes from elsewhere and refuses whatever Nix refuses;
// a [Writer] makes one from headers and contents; a [Layout] is the plan of the NAR of a tree on disk:
// from one walk it knows the NAR's size and can write any range of its bytes.
//
//	layout, err := nar.NewLayout(ctx, "/nix/store/…-hello")
//	err = layout.WriteRange(ctx, w, "/nix/store/…-hello", 0, layout.Size())
//
// # Format
//
// Integers are 8 bytes, little-endian. A string is its length, its bytes, and zero bytes up to a multiple of 8.
// With every word a string:
//
//	nar  = "nix-archive-1" node
//	node = "(" "type" kind ")"
//	kind = "regular" ["executable" ""] "contents" bytes
//	     | "symlink" "target" bytes
//	     | "directory" { "entry" "(" "name" bytes "node" node ")" }
//
// The names of a directory strictly increase as byte strings. They are bytes: nothing says they are UTF-8.
package nar

import (
	"fmt"
	"strings"
)

// Bounds on what a NAR may hold: those of Nix 2.35 and of the fixes of CVE-2026-44028 in older releases.
const (
	MaxDepth  = 63   // of a node below the root, which has depth 0
	MaxName   = 255  // bytes of an entry's name
	MaxTarget = 4095 // bytes of a symlink's target
)

// maxTag bounds the length in bytes of the words of the grammar, the longest of which has 13.
const maxTag = 32

// Type is the type of a file system object in a NAR.
type Type uint8

const (
	TypeDirectory Type = iota + 1
	TypeRegular
	TypeSymlink
)

// String returns the type's word in a NAR and in a listing.
func (t Type) String() string {
	switch t {
	case TypeDirectory:
		return "directory"
	case TypeRegular:
		return "regular"
	case TypeSymlink:
		return "symlink"
	}
	return fmt.Sprintf("Type(%d)", uint8(t))
}

// Header describes one file system object of a NAR.
type Header struct {
	// Path leads from the root to the object, names separated by slashes. It is empty for the root itself.
	Path string
	Type Type
	// Executable, Size and Offset are those of a regular file:
	// Size counts the bytes of its contents, and Offset is where these begin in the NAR, 0 where that is not known.
	Executable bool
	Size       int64
	Offset     int64
	// Target is what a symlink holds.
	Target string
}

// The words of the grammar as they stand in a NAR, and the runs of them that always stand together.
const (
	wordMagic      = "\x0d\x00\x00\x00\x00\x00\x00\x00nix-archive-1\x00\x00\x00"
	wordOpen       = "\x01\x00\x00\x00\x00\x00\x00\x00(\x00\x00\x00\x00\x00\x00\x00"
	wordClose      = "\x01\x00\x00\x00\x00\x00\x00\x00)\x00\x00\x00\x00\x00\x00\x00"
	wordType       = "\x04\x00\x00\x00\x00\x00\x00\x00type\x00\x00\x00\x00"
	wordRegular    = "\x07\x00\x00\x00\x00\x00\x00\x00regular\x00"
	wordExecutable = "\x0a\x00\x00\x00\x00\x00\x00\x00executable\x00\x00\x00\x00\x00\x00"
	wordEmpty      = "\x00\x00\x00\x00\x00\x00\x00\x00"
	wordContents   = "\x08\x00\x00\x00\x00\x00\x00\x00contents"
	wordSymlink    = "\x07\x00\x00\x00\x00\x00\x00\x00symlink\x00"
	wordTarget     = "\x06\x00\x00\x00\x00\x00\x00\x00target\x00\x00"
	wordDirectory  = "\x09\x00\x00\x00\x00\x00\x00\x00directory\x00\x00\x00\x00\x00\x00\x00"
	wordEntry      = "\x05\x00\x00\x00\x00\x00\x00\x00entry\x00\x00\x00"
	wordName       = "\x04\x00\x00\x00\x00\x00\x00\x00name\x00\x00\x00\x00"
	wordNode       = "\x04\x00\x00\x00\x00\x00\x00\x00node\x00\x00\x00\x00"

	openEntry      = wordEntry + wordOpen + wordName // then the name
	openRegular    = wordOpen + wordType + wordRegular + wordContents
	openExecutable = wordOpen + wordType + wordRegular + wordExecutable + wordEmpty + wordContents
	openSymlink    = wordOpen + wordType + wordSymlink + wordTarget
	openDirectory  = wordOpen + wordType + wordDirectory
	closeEntry     = wordClose + wordClose // a node in a directory, and its entry
	zeros          = wordEmpty             // what padding is cut from
)

// padding returns the number of zero bytes after a string of n bytes.
func padding(n int64) int64 { return -n & 7 }

// checkName returns what is wrong with the name of an entry, which counts as size bytes, or "".
func checkName(name string, size int) string {
	switch {
	case name == "":
		return "name of an entry is empty"
	case name == "." || name == "..":
		return fmt.Sprintf("name of an entry is %q", name)
	case size > MaxName:
		return fmt.Sprintf("name of an entry has %d bytes, more than %d", size, MaxName)
	case strings.ContainsAny(name, "/\x00"):
		return fmt.Sprintf("name of an entry has a slash or a zero byte in it: %q", name)
	}
	return ""
}

// checkTarget returns what is wrong with the target of a symlink, which counts as size bytes, or "".
func checkTarget(target string, size int) string {
	switch {
	case target == "":
		return "target of a symlink is empty"
	case size > MaxTarget:
		return fmt.Sprintf("target of a symlink has %d bytes, more than %d", size, MaxTarget)
	case strings.Contains(target, "\x00"):
		return fmt.Sprintf("target of a symlink has a zero byte in it: %q", target)
	}
	return ""
}
