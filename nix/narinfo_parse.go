package nix

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// MaxNARInfoSize is the size in bytes of the longest narinfo: enough for some 200,000 references. Nix
// knows no bound. The largest found in public caches have a few thousand references, but one file
// that names all dependencies of a system has more.
const MaxNARInfoSize = 16 << 20

// FieldError is the error of a narinfo that was refused: which field is wrong, and why.
type FieldError struct {
	Field string // as in the text, such as "NarHash"; "" for the text as a whole
	Err   error
}

// Error returns "parse narinfo: <field>: <cause>".
func (e *FieldError) Error() string {
	if e.Field == "" {
		return "parse narinfo: " + e.Err.Error()
	}
	return "parse narinfo: " + e.Field + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *FieldError) Unwrap() error { return e.Err }

// ParseNARInfo parses a narinfo as it is found in caches. It accepts more than Nix does:
//
//   - lines without a colon are skipped;
//   - an unknown field that [ParseNARInfoStrict] would refuse is skipped;
//   - spaces, tabs and carriage returns around a value do not count, and none needs to stand after the colon;
//   - the last line needs no line feed;
//   - a Sig that is no signature is left out, and one that is there twice is there once;
//   - an optional field without a value is not there;
//   - of a field that is there twice the last counts, except for References and CA, as in Nix;
//   - a narinfo without Compression is of bzip2;
//   - URL, and the name of the compression, may be any text.
//
// Other unknown fields are kept, see [Field]. More than 64 signatures are an error, as is a text of
// more than [MaxNARInfoSize]. Every error is a [*FieldError].
func ParseNARInfo(dir StoreDir, text []byte) (*NARInfo, error) {
	p := narInfoParser{dir: dir, cutLine: cutLineTolerant}
	return p.parse(text)
}

// ParseNARInfoStrict parses a narinfo that someone wants to have published. Beyond what [ParseNARInfo] asks:
//
//   - every line is "Key: value" with exactly one space, a value, and a line feed; only References may be empty;
//   - the text is UTF-8 without control characters, so without carriage returns;
//   - no field is there twice, except Sig;
//   - unknown fields have names of letters, digits, '-', '_' and '.', which are not those of known ones in another case;
//     there are at most 16, of 64 KiB in all;
//   - URL is a plain relative path: it cannot lead elsewhere, however it is resolved;
//   - Compression is one that Nix knows;
//   - NarHash, and FileHash where there is one, are of SHA-256;
//   - NarSize is the size that a NAR can have;
//   - of a NAR that is not compressed, FileHash and FileSize are NarHash and NarSize;
//   - no reference is there twice;
//   - every Sig is a signature;
//   - CA, where there is one, gives the store path.
//
// Every error is a [*FieldError].
func ParseNARInfoStrict(dir StoreDir, text []byte) (*NARInfo, error) {
	p := narInfoParser{dir: dir, strict: true, cutLine: cutLineStrict}
	n, err := p.parse(text)
	if err != nil {
		return nil, err
	}
	if err := n.checkStrict(); err != nil {
		return nil, err
	}
	return n, nil
}

// unknownDeriver is what old caches write instead of leaving the deriver out.
const unknownDeriver = "unknown-deriver"

var (
	errTooLarge   = fmt.Errorf("it is longer than %d bytes", MaxNARInfoSize)
	errMissing    = errors.New("it is missing, empty or zero")
	errTwice      = errors.New("it is there twice")
	errNoLineFeed = errors.New("the last line does not end in a line feed")
	errNotDecimal = errors.New("it is not a decimal number below 2^63")
)

// narInfoFields are the known fields, in the order in which Nix writes them.
var narInfoFields = [...]string{
	"StorePath", "URL", "Compression", "FileHash", "FileSize", "NarHash", "NarSize", "References", "Deriver", "Sig", "CA",
}

type narInfoParser struct {
	dir     StoreDir
	strict  bool
	cutLine func(line string) (key, value string, err error)
	seen    [len(narInfoFields)]bool
	info    NARInfo
}

func (p *narInfoParser) parse(text []byte) (*NARInfo, error) {
	if len(text) > MaxNARInfoSize {
		return nil, &FieldError{"", errTooLarge}
	}
	rest := string(text) // the one copy: all fields are parts of it
	if p.strict && !strings.HasSuffix(rest, "\n") {
		return nil, &FieldError{"", errNoLineFeed}
	}
	for number := 1; rest != ""; number++ {
		var line string
		line, rest, _ = strings.Cut(rest, "\n")
		key, value, err := p.cutLine(line)
		if err != nil {
			return nil, &FieldError{"", fmt.Errorf("line %d: %w", number, err)}
		}
		field := slices.Index(narInfoFields[:], key)
		if field < 0 {
			if err := p.setUnknown(key, value); err != nil {
				return nil, &FieldError{key, err}
			}
			continue
		}
		if p.strict && p.seen[field] && key != "Sig" {
			return nil, &FieldError{key, errTwice}
		}
		p.seen[field] = true
		if value == "" {
			continue // as if it were not there; what is required is checked in the end
		}
		if err := p.set(key, value); err != nil {
			return nil, &FieldError{key, err}
		}
	}
	if p.info.Compression == "" {
		p.info.Compression = Bzip2
	}
	for _, required := range [...]struct {
		name    string
		missing bool
	}{
		{"StorePath", p.info.Path.IsZero()},
		{"URL", p.info.URL == ""},
		{"NarHash", p.info.NARHash.IsZero()},
		{"NarSize", p.info.NARSize == 0},
	} {
		if required.missing {
			return nil, &FieldError{required.name, errMissing}
		}
	}
	return &p.info, nil
}

// cutLineTolerant splits a line of the tolerant form; a line to skip has no key.
func cutLineTolerant(line string) (key, value string, err error) {
	key, value, ok := strings.Cut(line, ":")
	if !ok {
		return "", "", nil
	}
	return strings.Trim(key, " \t\r"), strings.Trim(value, " \t\r"), nil
}

// cutLineStrict splits a line of the strict form.
func cutLineStrict(line string) (key, value string, err error) {
	key, value, ok := strings.Cut(line, ":")
	if !ok {
		return "", "", errors.New("it has no colon")
	}
	if key == "" || strings.Contains(key, " ") {
		return "", "", errors.New("it does not begin with a field name")
	}
	value, ok = strings.CutPrefix(value, " ")
	switch {
	case !ok:
		return "", "", fmt.Errorf("no space follows the colon of %s", quote(key))
	case strings.Trim(value, " ") != value:
		return "", "", fmt.Errorf("there are too many spaces around the value of %s", quote(key))
	case value == "" && key != "References":
		return "", "", fmt.Errorf("%s has no value", quote(key))
	}
	return key, value, checkText(line)
}

// setUnknown keeps a field that is not known.
func (p *narInfoParser) setUnknown(name, value string) error {
	fields, err := addField(p.info.Extra, Field{name, value})
	if err == nil {
		p.info.Extra = fields
	}
	if p.strict {
		return err
	}
	return nil
}

// set parses the value of a known field, which is not empty.
func (p *narInfoParser) set(key, value string) (err error) {
	n := &p.info
	switch key {
	case "StorePath":
		n.Path, err = p.dir.ParsePath(value)
	case "URL":
		n.URL, err = value, checkText(value)
	case "Compression":
		n.Compression, err = Compression(value), checkText(value)
	case "FileHash":
		n.FileHash, err = ParseHash(value)
	case "FileSize":
		n.FileSize, err = parseSize(value)
	case "NarHash":
		n.NARHash, err = ParseHash(value)
	case "NarSize":
		n.NARSize, err = parseSize(value)
	case "References":
		if n.References != nil {
			return errTwice
		}
		n.References, err = p.parseReferences(value)
	case "Deriver":
		n.Deriver = StorePath{}
		if value != unknownDeriver {
			n.Deriver, err = p.dir.ParseBase(value)
		}
	case "Sig":
		sig, err := ParseSignature(value)
		if err != nil {
			if p.strict {
				return err
			}
			return nil
		}
		n.Signatures, err = addSignature(n.Signatures, sig)
		return err
	case "CA":
		if !n.CA.IsZero() {
			return errTwice
		}
		n.CA, err = ParseContentAddress(value)
	}
	return err
}

// parseSize parses a size in bytes.
func parseSize(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0, errNotDecimal
	}
	return int64(n), nil
}

// parseReferences parses the base names in value, which is not empty, into paths that share one string.
func (p *narInfoParser) parseReferences(value string) ([]StorePath, error) {
	count := 1 + min(strings.Count(value, " "), len(value)/pathHashLen)
	refs := make([]StorePath, 0, count)
	var paths strings.Builder
	paths.Grow(len(value) + count*(len(p.dir)+1))
	for base := range strings.SplitSeq(value, " ") {
		if base == "" {
			if p.strict {
				return nil, errors.New("there are two spaces between references")
			}
			continue
		}
		if err := checkBase(base); err != nil {
			return nil, fmt.Errorf("parse store path %s: %w", quote(base), err)
		}
		at := paths.Len()
		paths.WriteString(string(p.dir))
		paths.WriteByte('/')
		paths.WriteString(base)
		refs = append(refs, StorePath{paths.String()[at:]})
	}
	sorted := SortPaths(refs)
	if p.strict && len(sorted) < len(refs) {
		return nil, errors.New("a reference is there twice")
	}
	return sorted, nil
}

// minNARSize is the size of the smallest NAR, that of an empty directory.
const minNARSize = 96

// checkStrict checks what only the strict form asks of the fields.
func (n *NARInfo) checkStrict() error {
	fail := func(field, format string, args ...any) error {
		return &FieldError{field, fmt.Errorf(format, args...)}
	}
	plain := n.Compression == None
	switch {
	case !isPlainPath(n.URL):
		return fail("URL", "%s is not a plain relative path", quote(n.URL))
	case !n.Compression.Known():
		return fail("Compression", "%s is unknown", quote(string(n.Compression)))
	case n.NARHash.algo != SHA256:
		return fail("NarHash", "it is of %v, not of sha256", n.NARHash.algo)
	case !n.FileHash.IsZero() && n.FileHash.algo != SHA256:
		return fail("FileHash", "it is of %v, not of sha256", n.FileHash.algo)
	case n.NARSize < minNARSize || n.NARSize%8 != 0:
		return fail("NarSize", "no NAR has %d bytes", n.NARSize)
	case plain && !n.FileHash.IsZero() && n.FileHash != n.NARHash:
		return fail("FileHash", "it is not that of NarHash, but the NAR is not compressed")
	case plain && n.FileSize != 0 && n.FileSize != n.NARSize:
		return fail("FileSize", "it is not that of NarSize, but the NAR is not compressed")
	}
	if err := n.CheckContentAddress(); err != nil {
		return &FieldError{"CA", err}
	}
	return nil
}

// maxURLLen is the length in bytes of the longest URL of an accepted narinfo.
const maxURLLen = 1024

// isPlainPath reports whether s is a relative path of a URL that means the same to every client, and
// stays below the cache: segments of letters, digits and - . _ ~ + =, none of them empty, "." or "..".
func isPlainPath(s string) bool {
	if len(s) > maxURLLen {
		return false
	}
	for segment := range strings.SplitSeq(s, "/") {
		if segment == "" || segment == "." || segment == ".." {
			return false
		}
		for i := range len(segment) {
			if c := segment[i]; c == '?' || c != '~' && !isNameByte[c] {
				return false
			}
		}
	}
	return true
}
