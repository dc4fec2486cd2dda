package nix

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// RealisationID names one output of one derivation, the way Nix 2.4 to 2.34 do:
// by the hash of the derivation modulo its inputs.
type RealisationID struct {
	DrvHash Hash
	Output  string
}

// ParseRealisationID parses "sha256:<base 16>!<output>".
func ParseRealisationID(s string) (RealisationID, error) {
	fail := func(err error) (RealisationID, error) {
		return RealisationID{}, fmt.Errorf("parse realisation id %s: %w", quote(s), err)
	}
	drvHash, output, ok := strings.Cut(s, "!")
	if !ok {
		return fail(errors.New("it has no exclamation mark"))
	}
	hash, err := parseTypedHash(drvHash)
	if err != nil {
		return fail(err)
	}
	if err := CheckOutputName(output); err != nil {
		return fail(err)
	}
	return RealisationID{hash, output}, nil
}

// CheckOutputName checks the name of an output of a derivation, which is part of the names of store paths.
func CheckOutputName(s string) error {
	if err := checkName(s); err != nil {
		return fmt.Errorf("check output name %s: %w", quote(s), err)
	}
	return nil
}

// String returns "sha256:<base 16>!<output>".
func (id RealisationID) String() string { return string(id.append(nil)) }

func (id RealisationID) append(dst []byte) []byte {
	dst = append(dst, id.DrvHash.algo.String()...)
	dst = append(dst, ':')
	dst = id.DrvHash.AppendBase16(dst)
	dst = append(dst, '!')
	return append(dst, id.Output...)
}

// compare orders ids by their text, as they are in a fingerprint.
func (id RealisationID) compare(other RealisationID) int {
	return bytes.Compare(id.append(nil), other.append(nil))
}

// Realisation says which store path an output of a derivation that is content-addressed
// turned out to be, in the form of Nix 2.4 to 2.34: realisations/<id>.doi.
type Realisation struct {
	ID           RealisationID
	OutPath      StorePath
	Signatures   []Signature
	Dependencies map[RealisationID]StorePath // realisations that this one was made with; Nix 2.34 leaves them out
}

// ParseRealisation parses the JSON form. Unknown members are skipped.
func ParseRealisation(dir StoreDir, text []byte) (*Realisation, error) {
	r, err := parseRealisation(dir, text)
	if err != nil {
		return nil, fmt.Errorf("parse realisation: %w", err)
	}
	return r, nil
}

func parseRealisation(dir StoreDir, text []byte) (*Realisation, error) {
	members, err := parseObject(text)
	if err != nil {
		return nil, err
	}
	var r Realisation
	var id string
	if err := parseMember(members, "id", &id); err != nil {
		return nil, err
	}
	if r.ID, err = ParseRealisationID(id); err != nil {
		return nil, err
	}
	if r.OutPath, err = parseOutPath(dir, members); err != nil {
		return nil, err
	}
	if r.Signatures, err = parseSignatures(members); err != nil {
		return nil, err
	}
	dependencies := map[string]string{}
	if _, ok := members["dependentRealisations"]; ok {
		if err := parseMember(members, "dependentRealisations", &dependencies); err != nil {
			return nil, err
		}
	}
	for text, base := range dependencies {
		id, err := ParseRealisationID(text)
		if err != nil {
			return nil, err
		}
		path, err := dir.ParseBase(base)
		if err != nil {
			return nil, err
		}
		if r.Dependencies == nil {
			r.Dependencies = make(map[RealisationID]StorePath, len(dependencies))
		}
		if _, ok := r.Dependencies[id]; ok {
			return nil, fmt.Errorf("dependentRealisations: %v is there twice", id)
		}
		r.Dependencies[id] = path
	}
	return &r, nil
}

// AppendFingerprint appends the text that signatures of the realisation cover: its JSON form,
// members sorted, without signatures.
func (r *Realisation) AppendFingerprint(dst []byte) []byte {
	return append(r.appendUnsigned(dst), '}')
}

// appendUnsigned appends the JSON form without signatures and without its end. None of
// the values needs escaping: hashes, and names of store paths, are plain ASCII.
func (r *Realisation) appendUnsigned(dst []byte) []byte {
	dst = append(dst, `{"dependentRealisations":{`...)
	for i, id := range slices.SortedFunc(maps.Keys(r.Dependencies), RealisationID.compare) {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = id.append(append(dst, '"'))
		dst = append(dst, `":"`...)
		dst = append(dst, r.Dependencies[id].Base()...)
		dst = append(dst, '"')
	}
	dst = r.ID.append(append(dst, `},"id":"`...))
	dst = append(dst, `","outPath":"`...)
	dst = append(dst, r.OutPath.Base()...)
	return append(dst, '"')
}

// MarshalJSON returns the JSON form, as Nix writes it.
func (r *Realisation) MarshalJSON() ([]byte, error) {
	dst := append(r.appendUnsigned(nil), `,"signatures":[`...)
	for i, sig := range r.Signatures {
		if i > 0 {
			dst = append(dst, ',')
		}
		text, err := json.Marshal(sig.String())
		if err != nil {
			return nil, fmt.Errorf("encode realisation %v: %w", r.ID, err)
		}
		dst = append(dst, text...)
	}
	return append(dst, `]}`...), nil
}
