// Package nix has the data types of Nix's binary caches, and their text forms:
// [StorePath], [Hash], [ContentAddress], [PathInfo], [NARInfo], [SecretKey],
// [PublicKey], [Signature], [CacheInfo], [Derivation], [Realisation] and [BuildTrace].
//
// Text is parsed once, into values that are valid from then on:
//
//	info, err := nix.ParseNARInfo(nix.DefaultStoreDir, text)
//	…
//	fingerprint := info.AppendFingerprint(nil)
//	for _, sig := range info.Signatures {
//		if key.Verify(fingerprint, sig) {
//			…
//		}
//	}
//
// A path's signature covers its fingerprint (path, NAR hash, NAR size and
// references), so a cache may move or recompress a NAR without a new signature:
//
//	info.URL, info.Compression = "nar/"+info.NARHash.Nix32()+".nar", nix.None
//	info.Signatures = append(info.Signatures, secret.Sign(fingerprint))
//	text = info.AppendText(nil)
//
// The formats are Nix's own, as read from its source and compared with its
// programs in the tests. Parsers are for hostile input: they do not recurse,
// allocate in proportion to what they are given, and refuse more than the Max
// constant of their format.
package nix
