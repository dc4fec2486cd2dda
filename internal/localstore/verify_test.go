package localstore

import (
	"strings"
	"testing"

	"firn/nix"
)

// What is remembered of paths is bounded.
func TestVerdictsBounded(t *testing.T) {
	v := newVerdicts()
	dir := t.TempDir()
	path, err := nix.StoreDir(dir).ParseBase(strings.Repeat("0", 32) + "-x")
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxVerified + 10 {
		info := &nix.PathInfo{Path: path, NARHash: nix.SHA256Sum([32]byte{byte(i), byte(i >> 8), byte(i >> 16)})}
		v.setVerified(info)
		if i < maxWithheld+10 {
			v.setWithheld(info, path.String())
		}
	}
	if len(v.verified) > maxVerified || len(v.withheld) > maxWithheld {
		t.Errorf("%d verified and %d withheld are remembered", len(v.verified), len(v.withheld))
	}
}
