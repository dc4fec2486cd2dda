package nix

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// MaxDerivationSize is the size in bytes of the largest derivation that is parsed. Derivations of
// nixpkgs have some kilobytes, and a few have one or two megabytes.
const MaxDerivationSize = 4 << 20

// maxElements bounds the elements of all lists of a derivation together: in memory an element takes
// much more than the three bytes that it may have in the text.
const maxElements = 1 << 16

// Derivation is the contents of a .drv file: how something is built, and to which outputs. This
// package uses it to find the outputs, and their names as realisations.
//
// The format is an ATerm; src/libstore/derivations.cc of Nix has it.
type Derivation struct {
	Outputs []DerivationOutput // by their names
	Inputs  []DerivationInput  // the derivations that it needs, by their paths

	sources  []string
	platform string
	builder  string
	args     []string
	env      [][2]string
}

// DerivationOutput is one thing that is built.
type DerivationOutput struct {
	Name string
	Path StorePath // zero: it is known only once it was built

	method string // of a content address, such as "r:sha256"; "" if it has none
	hash   string // in base 16, of an output that is fixed; or impure
}

// DerivationInput is a derivation whose outputs are needed.
type DerivationInput struct {
	Path    StorePath
	Outputs []string
}

// ParseDerivation parses a derivation as Nix writes it, with everything in its order.
func ParseDerivation(dir StoreDir, text []byte) (*Derivation, error) {
	d, err := parseDerivation(dir, string(text))
	if err != nil {
		return nil, fmt.Errorf("parse derivation: %w", err)
	}
	return d, nil
}

func parseDerivation(dir StoreDir, text string) (*Derivation, error) {
	if len(text) > MaxDerivationSize {
		return nil, fmt.Errorf("it has more than %d bytes", MaxDerivationSize)
	}
	if strings.HasPrefix(text, "DrvWithVersion(") {
		return nil, errors.New("it is one of the experimental dynamic derivations")
	}
	p := &aterm{text: text}
	d := &Derivation{}
	p.expect("Derive(")
	p.list(func() {
		o := DerivationOutput{}
		p.expect("(")
		o.Name = p.string()
		p.expect(",")
		path := p.string()
		p.expect(",")
		o.method = p.string()
		p.expect(",")
		o.hash = p.string()
		p.expect(")")
		p.check(CheckOutputName(o.Name))
		if path != "" && p.err == nil {
			o.Path, p.err = dir.ParsePath(strings.Clone(path)) // for the text not to stay in memory for it
		}
		if o.hash != "" && o.method == "" || o.isFixed() && path == "" {
			p.check(fmt.Errorf("the output %s is fixed without a path, or in no way that is known", quote(o.Name)))
		}
		d.Outputs = append(d.Outputs, o)
	})
	p.expect(",")
	p.list(func() {
		in := DerivationInput{}
		p.expect("(")
		path := p.string()
		p.expect(",")
		in.Outputs = p.strings()
		p.expect(")")
		if p.err == nil {
			in.Path, p.err = dir.ParsePath(strings.Clone(path))
		}
		d.Inputs = append(d.Inputs, in)
	})
	p.expect(",")
	d.sources = p.strings()
	p.expect(",")
	d.platform = p.string()
	p.expect(",")
	d.builder = p.string()
	p.expect(",")
	d.args = p.strings()
	p.expect(",")
	p.list(func() {
		p.expect("(")
		name := p.string()
		p.expect(",")
		value := p.string()
		p.expect(")")
		d.env = append(d.env, [2]string{name, value})
	})
	p.expect(")")
	if p.err == nil && p.at < len(text) {
		p.fail("its end")
	}
	if p.err != nil {
		return nil, p.err
	}
	return d, d.inOrder()
}

// inOrder refuses an order that Nix would not have written, because the hash would differ.
func (d *Derivation) inOrder() error {
	itself := func(s string) string { return s }
	ordered := ascending(d.Outputs, func(o DerivationOutput) string { return o.Name }) &&
		ascending(d.Inputs, func(in DerivationInput) string { return in.Path.String() }) &&
		ascending(d.sources, itself) &&
		ascending(d.env, func(e [2]string) string { return e[0] })
	for _, in := range d.Inputs {
		ordered = ordered && ascending(in.Outputs, itself)
	}
	switch {
	case !ordered:
		return errors.New("it is not in order")
	case len(d.Outputs) == 0:
		return errors.New("it has no outputs")
	case len(d.Outputs) > 1 && slices.ContainsFunc(d.Outputs, DerivationOutput.isFixed):
		return errors.New("it is fixed, and has several outputs")
	}
	return nil
}

// ascending reports whether each comes after the one before it.
func ascending[T any](all []T, key func(T) string) bool {
	for i := 1; i < len(all); i++ {
		if key(all[i-1]) >= key(all[i]) {
			return false
		}
	}
	return true
}

// impure stands in place of a hash if the output differs each time.
const impure = "impure"

func (o DerivationOutput) isFixed() bool { return o.hash != "" && o.hash != impure }

// NeedsInputs reports whether the hash of the derivation depends on the hashes of its inputs.
func (d *Derivation) NeedsInputs() bool {
	return len(d.Inputs) > 0 && !d.Outputs[0].isFixed() && d.Outputs[0].hash != impure
}

// HashModulo returns the hash of a derivation modulo its inputs. The hashes of derivations that need
// this one contain it; with masked, the names of its realisations do.
// inputs has the hashes, not masked, of the derivations that it needs.
func (d *Derivation) HashModulo(masked bool, inputs map[StorePath]Hash) (Hash, error) {
	switch o := d.Outputs[0]; {
	case o.isFixed(): // however it is built
		return hashText("fixed:out:" + o.method + ":" + o.hash + ":" + o.Path.String()), nil
	case o.hash == impure:
		return hashText(impure), nil
	}
	byHash := make(map[string][]string)
	for _, in := range d.Inputs {
		h, ok := inputs[in.Path]
		if !ok {
			return Hash{}, fmt.Errorf("hash derivation: the hash of %v is not known", in.Path)
		}
		if len(in.Outputs) == 0 {
			continue // Nix takes the hash of each output
		}
		byHash[h.Base16()] = append(byHash[h.Base16()], in.Outputs...)
	}
	return hashText(string(d.append(nil, masked, byHash))), nil
}

func hashText(s string) Hash { return SHA256Sum(sha256.Sum256([]byte(s))) }

// append appends the derivation as Nix writes it, but with hashes in place of inputs. With masked it
// leaves out the paths of outputs.
func (d *Derivation) append(dst []byte, masked bool, inputs map[string][]string) []byte {
	dst = append(dst, "Derive("...)
	dst = appendList(dst, d.Outputs, func(dst []byte, o DerivationOutput) []byte {
		path := o.Path.String()
		if masked {
			path = ""
		}
		return append(appendStrings(append(dst, '('), o.Name, path, o.method, o.hash), ')')
	})
	hashes := make([]string, 0, len(inputs))
	for h := range inputs {
		hashes = append(hashes, h)
	}
	slices.Sort(hashes)
	dst = appendList(append(dst, ','), hashes, func(dst []byte, h string) []byte {
		outputs := slices.Clone(inputs[h])
		slices.Sort(outputs)
		dst = appendString(append(dst, '('), h)
		return append(appendList(append(dst, ','), slices.Compact(outputs), appendString), ')')
	})
	dst = appendList(append(dst, ','), d.sources, appendString)
	dst = appendStrings(append(dst, ','), d.platform, d.builder)
	dst = appendList(append(dst, ','), d.args, appendString)
	dst = appendList(append(dst, ','), d.env, func(dst []byte, e [2]string) []byte {
		if masked && d.hasOutput(e[0]) {
			e[1] = ""
		}
		return append(appendStrings(append(dst, '('), e[0], e[1]), ')')
	})
	return append(dst, ')')
}

func (d *Derivation) hasOutput(name string) bool {
	_, ok := slices.BinarySearchFunc(d.Outputs, name, func(o DerivationOutput, name string) int { return strings.Compare(o.Name, name) })
	return ok
}

func appendList[T any](dst []byte, all []T, one func([]byte, T) []byte) []byte {
	dst = append(dst, '[')
	for i, v := range all {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = one(dst, v)
	}
	return append(dst, ']')
}

func appendStrings(dst []byte, all ...string) []byte {
	for i, s := range all {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, s)
	}
	return dst
}

// escapes are the bytes that an ATerm has a letter for, each before that.
const escapes = "\"\"\\\\\nn\rr\tt"

func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for i := range len(s) {
		at := 0
		for at < len(escapes) && escapes[at] != s[i] {
			at += 2
		}
		if at < len(escapes) {
			dst = append(dst, '\\', escapes[at+1])
		} else {
			dst = append(dst, s[i])
		}
	}
	return append(dst, '"')
}

// aterm is a text of which at bytes were read. After an error it reads no more.
type aterm struct {
	text     string
	at       int
	elements int // of lists
	err      error
}

func (p *aterm) fail(want string) { p.check(fmt.Errorf("at byte %d there is not %s", p.at, want)) }

func (p *aterm) check(err error) {
	if p.err == nil {
		p.err = err
	}
}

func (p *aterm) expect(word string) {
	if p.err == nil && !strings.HasPrefix(p.text[p.at:], word) {
		p.fail(word)
	}
	if p.err == nil {
		p.at += len(word)
	}
}

// list reads a list. one reads one of its elements.
func (p *aterm) list(one func()) {
	p.expect("[")
	for first := true; p.err == nil && !strings.HasPrefix(p.text[p.at:], "]"); first = false {
		if !first {
			p.expect(",")
		}
		if p.elements++; p.elements > maxElements {
			p.check(fmt.Errorf("its lists have more than %d elements", maxElements))
		}
		one()
	}
	p.expect("]")
}

func (p *aterm) strings() (all []string) {
	p.list(func() { all = append(all, p.string()) })
	return all
}

func (p *aterm) string() string {
	p.expect(`"`)
	if p.err != nil {
		return ""
	}
	rest := p.text[p.at:]
	end := strings.IndexAny(rest, `"\`)
	if end >= 0 && rest[end] == '"' { // nearly all
		p.at += end + 1
		return rest[:end]
	}
	var b strings.Builder
	for i := 0; i < len(rest); i++ {
		switch c := rest[i]; c {
		case '"':
			p.at += i + 1
			return b.String()
		case '\\':
			if i++; i == len(rest) {
				continue
			}
			c = rest[i]
			for at := 0; at < len(escapes); at += 2 {
				if escapes[at+1] == rest[i] {
					c = escapes[at]
				}
			}
			b.WriteByte(c)
		default:
			b.WriteByte(c)
		}
	}
	p.fail("the end of a string")
	return ""
}
