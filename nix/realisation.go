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

// MaxRealisationSize is the size in bytes of the longest realisation that is parsed.
const MaxRealisationSize = 1 << 20

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
	Dependencies map[RealisationID]StorePath // realisations that this one was made with; empty since Nix 2.33
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

// BuildTrace says which store path an output of a derivation turned out to be, in the form
// of Nix 2.35 and later: build-trace-v2/<derivation>/<output>.doi.
// The file has only the value: derivation and output are in its name.
type BuildTrace struct {
	Drv        StorePath
	Output     string
	OutPath    StorePath
	Signatures []Signature
}

// ParseBuildTrace parses the JSON form of the build trace of an output. Unknown members are skipped.
// A signature may be an object of "keyName" and "sig", or text.
func ParseBuildTrace(drv StorePath, output string, text []byte) (*BuildTrace, error) {
	b, err := parseBuildTrace(drv, output, text)
	if err != nil {
		return nil, fmt.Errorf("parse build trace of %v!%s: %w", drv, output, err)
	}
	return b, nil
}

func parseBuildTrace(drv StorePath, output string, text []byte) (*BuildTrace, error) {
	if !drv.IsDerivation() {
		return nil, errors.New("it is not of a derivation")
	}
	if err := CheckOutputName(output); err != nil {
		return nil, err
	}
	members, err := parseObject(text)
	if err != nil {
		return nil, err
	}
	b := BuildTrace{Drv: drv, Output: output}
	if b.OutPath, err = parseOutPath(drv.Dir(), members); err != nil {
		return nil, err
	}
	if b.Signatures, err = parseSignatures(members); err != nil {
		return nil, err
	}
	return &b, nil
}

// AppendFingerprint appends the text that signatures of the build trace cover: key and value as JSON,
// members sorted, without signatures.
func (b *BuildTrace) AppendFingerprint(dst []byte) []byte {
	dst = append(dst, `{"key":{"drvPath":"`...)
	dst = append(dst, b.Drv.Base()...)
	dst = append(dst, `","outputName":"`...)
	dst = append(dst, b.Output...)
	dst = append(dst, `"},"value":{"outPath":"`...)
	dst = append(dst, b.OutPath.Base()...)
	return append(dst, `"}}`...)
}

// MarshalJSON returns the JSON form, as Nix writes it.
func (b *BuildTrace) MarshalJSON() ([]byte, error) {
	value := struct {
		OutPath    string          `json:"outPath"`
		Signatures []jsonSignature `json:"signatures"`
	}{b.OutPath.Base(), make([]jsonSignature, len(b.Signatures))}
	for i, sig := range b.Signatures {
		value.Signatures[i] = jsonSignature(sig)
	}
	return json.Marshal(value)
}

// jsonSignature is a signature as an object.
type jsonSignature Signature

func (s jsonSignature) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		KeyName string `json:"keyName"`
		Sig     []byte `json:"sig"`
	}{s.Name, s.sig[:]})
}

// UnmarshalJSON accepts both forms of a signature: object and text.
func (s *jsonSignature) UnmarshalJSON(text []byte) error {
	var whole string
	if bytes.HasPrefix(text, []byte("{")) {
		members, err := parseObject(text)
		if err != nil {
			return err
		}
		var keyName, sig string
		if err := errors.Join(parseMember(members, "keyName", &keyName), parseMember(members, "sig", &sig)); err != nil {
			return err
		}
		whole = keyName + ":" + sig
	} else if err := json.Unmarshal(text, &whole); err != nil {
		return err
	}
	sig, err := ParseSignature(whole)
	*s = jsonSignature(sig)
	return err
}

// parseObject parses a JSON object into its members. Names are exact, unlike those of struct fields.
func parseObject(text []byte) (map[string]json.RawMessage, error) {
	if len(text) > MaxRealisationSize {
		return nil, fmt.Errorf("it is longer than %d bytes", MaxRealisationSize)
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(text, &members); err != nil {
		return nil, err
	}
	if members == nil {
		return nil, errors.New("it is no object")
	}
	return members, nil
}

// parseMember parses a member that has to be there.
func parseMember(members map[string]json.RawMessage, name string, into any) error {
	text, ok := members[name]
	if !ok {
		return fmt.Errorf("%s is missing", name)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func parseOutPath(dir StoreDir, members map[string]json.RawMessage) (StorePath, error) {
	var base string
	if err := parseMember(members, "outPath", &base); err != nil {
		return StorePath{}, err
	}
	return dir.ParseBase(base)
}

// parseSignatures parses the signatures, which need not be there; each is kept once.
func parseSignatures(members map[string]json.RawMessage) ([]Signature, error) {
	if _, ok := members["signatures"]; !ok {
		return nil, nil
	}
	var list []jsonSignature
	if err := parseMember(members, "signatures", &list); err != nil {
		return nil, err
	}
	var sigs []Signature
	for _, sig := range list {
		var err error
		if sigs, err = addSignature(sigs, Signature(sig)); err != nil {
			return nil, err
		}
	}
	return sigs, nil
}
