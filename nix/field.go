package nix

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

const (
	// maxFields is how many unknown fields of one narinfo are kept. Determinate Nix writes one or
	// two.
	maxFields = 16
	// maxFieldName is the length in bytes of the longest name of an unknown field.
	maxFieldName = 64
	// maxFieldsSize is how many bytes all unknown fields of one narinfo may have: names, values and
	// what stands between. The largest known is Provenance, JSON of some kilobytes.
	maxFieldsSize = 64 << 10
)

// A Field is a line of a narinfo that this package has no name for, such as the Provenance of
// Determinate Nix. No signature covers it.
type Field struct{ Name, Value string }

var (
	errFieldName   = fmt.Errorf("the name of a field has 1 to %d letters, digits, '-', '_' and '.'", maxFieldName)
	errFieldCase   = errors.New("it differs from a field of Nix in upper and lower case only")
	errFieldKnown  = errors.New("it is a field of Nix")
	errFieldSpaces = errors.New("its value is empty, or has spaces around it")
	errFields      = fmt.Errorf("there are more than %d unknown fields", maxFields)
	errFieldsSize  = fmt.Errorf("the unknown fields have more than %d bytes", maxFieldsSize)
)

// AppendFields appends fields as lines, as they are in a narinfo.
func AppendFields(dst []byte, fields []Field) []byte {
	for _, f := range fields {
		dst = append(append(append(append(dst, f.Name...), ": "...), f.Value...), '\n')
	}
	return dst
}

// ParseFields parses what [AppendFields] returns. No field may be there twice, or be one that Nix
// knows.
func ParseFields(text string) ([]Field, error) {
	var fields []Field
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		if !ok {
			return nil, fmt.Errorf("parse field %s: %w", quote(line), errFieldName)
		}
		var err error
		if fields, err = addField(fields, Field{name, value}); err != nil {
			return nil, fmt.Errorf("parse field %s: %w", quote(name), err)
		}
	}
	return fields, nil
}

// addField adds a field that has to be right, within the bounds, and not there.
func addField(fields []Field, f Field) ([]Field, error) {
	size := 0
	for _, other := range fields {
		size += other.size()
	}
	switch err := f.check(); {
	case err != nil:
		return nil, err
	case slices.ContainsFunc(fields, func(other Field) bool { return strings.EqualFold(other.Name, f.Name) }):
		return nil, errTwice
	case len(fields) == maxFields:
		return nil, errFields
	case size+f.size() > maxFieldsSize:
		return nil, errFieldsSize
	}
	return append(fields, f), nil
}

// size is how many bytes its line has.
func (f Field) size() int { return len(f.Name) + len(": \n") + len(f.Value) }

func (f Field) check() error {
	if f.Name == "" || len(f.Name) > maxFieldName {
		return errFieldName
	}
	for i := range len(f.Name) {
		if c := f.Name[i]; c != '-' && c != '_' && c != '.' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return errFieldName
		}
	}
	for _, known := range narInfoFields {
		switch {
		case known == f.Name:
			return errFieldKnown
		case strings.EqualFold(known, f.Name):
			return errFieldCase
		}
	}
	if f.Value == "" || strings.Trim(f.Value, " ") != f.Value {
		return errFieldSpaces
	}
	return checkText(f.Value)
}
