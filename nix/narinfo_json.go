package nix

import "encoding/json"

// jsonVersion is the version of the JSON form: the one that nix path-info --json prints unless
// --json-format asks for a later one. It is, but for members that were added, what Nix 2.4 printed.
const jsonVersion = 1

// narInfoJSON has the members of the JSON form, in the order of their names as Nix has them.
type narInfoJSON struct {
	CA               *string     `json:"ca"`
	Compression      Compression `json:"compression"`
	Deriver          *string     `json:"deriver"`
	DownloadHash     string      `json:"downloadHash,omitzero"`
	DownloadSize     int64       `json:"downloadSize,omitzero"`
	NARHash          string      `json:"narHash"`
	NARSize          int64       `json:"narSize"`
	Path             string      `json:"path"`
	References       []string    `json:"references"`
	RegistrationTime *int64      `json:"registrationTime"`
	Signatures       []string    `json:"signatures"`
	StoreDir         StoreDir    `json:"storeDir"`
	Ultimate         bool        `json:"ultimate"`
	URL              string      `json:"url"`
	Version          int         `json:"version"`
}

// MarshalJSON returns the narinfo as an entry of nix path-info --json, together with its path:
// store paths in full, hashes in SRI form, what is unknown as null or, for the download, left out.
func (n *NARInfo) MarshalJSON() ([]byte, error) {
	v := narInfoJSON{
		Compression:  n.Compression,
		DownloadHash: n.FileHash.SRI(),
		DownloadSize: n.FileSize,
		NARHash:      n.NARHash.SRI(),
		NARSize:      n.NARSize,
		Path:         n.Path.String(),
		References:   make([]string, len(n.References)),
		Signatures:   make([]string, len(n.Signatures)),
		StoreDir:     n.Path.Dir(),
		Ultimate:     n.Ultimate,
		URL:          n.URL,
		Version:      jsonVersion,
	}
	if v.Compression == "" {
		v.Compression = None
	}
	if !n.CA.IsZero() {
		v.CA = new(n.CA.String())
	}
	if !n.Deriver.IsZero() {
		v.Deriver = new(n.Deriver.String())
	}
	if !n.RegistrationTime.IsZero() {
		v.RegistrationTime = new(n.RegistrationTime.Unix())
	}
	for i, ref := range n.References {
		v.References[i] = ref.String()
	}
	for i, sig := range n.Signatures {
		v.Signatures[i] = sig.String()
	}
	return json.Marshal(v)
}
