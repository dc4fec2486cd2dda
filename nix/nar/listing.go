package nar

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"unicode/utf8"
)

// Listing says what is in a NAR and where: version 1 of the file that a binary cache has as `.ls`.
type Listing struct {
	// Entries are all objects in the order of the NAR: the root first, a directory right before what lies in it.
	Entries []Header
}

// All iterates over the entries, without an error.
func (l *Listing) All() iter.Seq2[*Header, error] {
	return func(yield func(*Header, error) bool) {
		for i := range l.Entries {
			if !yield(&l.Entries[i], nil) {
				return
			}
		}
	}
}

// MarshalJSON returns the JSON form, see [Listing.AppendJSON].
func (l *Listing) MarshalJSON() ([]byte, error) { return l.AppendJSON(nil), nil }

// UnmarshalJSON sets l to what [ParseListing] returns.
func (l *Listing) UnmarshalJSON(text []byte) error {
	parsed, err := ParseListing(text)
	if err == nil {
		*l = *parsed
	}
	return err
}

// ParseListing parses the JSON form of a listing. Fields that it does not know are ignored, and entries may come in any order.
// Names, targets and depth are held to the bounds of a NAR, names and targets in characters.
func ParseListing(text []byte) (*Listing, error) {
	p := listingParser{d: json.NewDecoder(bytes.NewReader(text))}
	if err := p.listing(); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("parse listing at byte %d: %w", p.d.InputOffset(), err)
	}
	return &p.l, nil
}

// listingParser does not recurse: open is its stack.
type listingParser struct {
	d    *json.Decoder
	l    Listing
	open []openObject // the objects that the text is in
}

type openObject struct {
	i       int    // of its header
	fields  fields // seen so far
	entries bool   // the text is in its entries
}

// fields is a set of fields of an object.
type fields uint8

const (
	fieldType fields = 1 << iota
	fieldEntries
	fieldSize
	fieldExecutable
	fieldOffset
	fieldTarget
)

var fieldNames = map[string]fields{
	"type": fieldType, "entries": fieldEntries, "size": fieldSize,
	"executable": fieldExecutable, "narOffset": fieldOffset, "target": fieldTarget,
}

func (p *listingParser) listing() error {
	if err := p.delim('{'); err != nil {
		return err
	}
	p.d.UseNumber()
	var version int64
	for p.d.More() {
		key, err := p.key()
		switch {
		case err != nil:
		case key == "version":
			version, err = p.number()
		case key == "root" && len(p.l.Entries) > 0:
			err = errors.New("there are two roots")
		case key == "root":
			err = p.root()
		default:
			err = p.skip()
		}
		if err != nil {
			return err
		}
	}
	if err := p.delim('}'); err != nil {
		return err
	}
	if _, err := p.d.Token(); err != io.EOF {
		return errors.New("there is more behind its end")
	}
	if version != 1 {
		return fmt.Errorf("version is %d, not 1", version)
	}
	if len(p.l.Entries) == 0 {
		return errors.New("there is no root")
	}
	slices.SortFunc(p.l.Entries, func(a, b Header) int { return comparePaths(a.Path, b.Path) })
	for i, h := range p.l.Entries[1:] {
		if h.Path == p.l.Entries[i].Path {
			return fmt.Errorf("there are two entries %q", h.Path)
		}
	}
	return nil
}

// root parses the root and all that is in it.
func (p *listingParser) root() error {
	if err := p.begin(""); err != nil {
		return err
	}
	for len(p.open) > 0 {
		o := &p.open[len(p.open)-1]
		var err error
		switch more := p.d.More(); {
		case more && o.entries:
			err = p.entry(p.l.Entries[o.i].Path)
		case more:
			err = p.field(o)
		case o.entries:
			o.entries = false
			err = p.delim('}')
		default:
			if err = p.delim('}'); err == nil {
				err = p.end(o)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// begin enters the object that has the given path.
func (p *listingParser) begin(path string) error {
	p.open = append(p.open, openObject{i: len(p.l.Entries)})
	p.l.Entries = append(p.l.Entries, Header{Path: path})
	return p.delim('{')
}

// entry enters the next object of the directory dir.
func (p *listingParser) entry(dir string) error {
	name, err := p.key()
	if err != nil {
		return err
	}
	if len(p.open) > MaxDepth {
		return fmt.Errorf("tree is deeper than %d levels", MaxDepth)
	}
	if msg := checkName(name, utf8.RuneCountInString(name)); msg != "" {
		return errors.New(msg)
	}
	if dir != "" {
		name = dir + "/" + name
	}
	return p.begin(name)
}

// field parses a field of the object o.
func (p *listingParser) field(o *openObject) error {
	key, err := p.key()
	if err != nil {
		return err
	}
	field := fieldNames[key]
	if o.fields&field != 0 {
		return fmt.Errorf("there are two fields %q", key)
	}
	o.fields |= field
	h := &p.l.Entries[o.i]
	switch field {
	case fieldType:
		h.Type, err = p.typ()
	case fieldEntries:
		o.entries = true
		err = p.delim('{')
	case fieldSize:
		h.Size, err = p.number()
	case fieldExecutable:
		h.Executable, err = value[bool](p)
	case fieldOffset:
		h.Offset, err = p.number()
	case fieldTarget:
		h.Target, err = value[string](p)
	default:
		err = p.skip()
	}
	return err
}

// end leaves the object o.
func (p *listingParser) end(o *openObject) error {
	h := &p.l.Entries[o.i]
	fields := o.fields
	p.open = p.open[:len(p.open)-1]
	switch {
	case h.Type == TypeDirectory && fields == fieldType|fieldEntries:
		return nil
	case h.Type == TypeRegular && fields&^(fieldExecutable|fieldOffset) == fieldType|fieldSize && h.Size >= 0 && h.Offset >= 0:
		return nil
	case h.Type == TypeSymlink && fields == fieldType|fieldTarget:
		if msg := checkTarget(h.Target, utf8.RuneCountInString(h.Target)); msg != "" {
			return errors.New(msg)
		}
		return nil
	}
	return fmt.Errorf("entry %q lacks a field or has one that is not of its type", h.Path)
}

// key returns the next string, the name of a field or an entry.
func (p *listingParser) key() (string, error) { return value[string](p) }

func (p *listingParser) typ() (Type, error) {
	word, err := value[string](p)
	if err != nil {
		return 0, err
	}
	for _, t := range []Type{TypeDirectory, TypeRegular, TypeSymlink} {
		if t.String() == word {
			return t, nil
		}
	}
	return 0, fmt.Errorf("type is %q", word)
}

func (p *listingParser) number() (int64, error) {
	number, err := value[json.Number](p)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(number.String(), 10, 64)
}

func (p *listingParser) delim(want json.Delim) error {
	found, err := value[json.Delim](p)
	if err == nil && found != want {
		return fmt.Errorf("found %v where %v has to be", found, want)
	}
	return err
}

// value returns the next token, which must be a T.
func value[T any](p *listingParser) (T, error) {
	token, err := p.d.Token()
	v, ok := token.(T)
	if err == nil && !ok {
		return v, fmt.Errorf("found %v where a %T has to be", token, v)
	}
	return v, err
}

// skip skips a value of any kind.
func (p *listingParser) skip() error {
	var raw json.RawMessage
	return p.d.Decode(&raw)
}

// comparePaths compares paths in the order of a NAR, in which a directory and all that is in it come before its successor.
func comparePaths(a, b string) int {
	for i := 0; i < len(a) && i < len(b); i++ {
		switch {
		case a[i] == b[i]:
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		default:
			return cmp.Compare(a[i], b[i])
		}
	}
	return cmp.Compare(len(a), len(b))
}
