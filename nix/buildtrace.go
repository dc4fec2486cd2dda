package nix

import (
	"encoding/json"
	"errors"
	"fmt"
)

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
