package nix

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// jsonSignature is a signature as an object.
type jsonSignature Signature

func (s jsonSignature) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		KeyName string `json:"keyName"`
		Sig     string `json:"sig"`
	}{s.Name, s.text})
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

// MaxRealisationSize is the size in bytes of the longest realisation, or build trace, that is parsed.
const MaxRealisationSize = 1 << 20

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
