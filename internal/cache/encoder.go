package cache

import (
	"context"

	"firn/nix"
)

// An Encoder gives NARs in a compressed form, and keeps that form, so that a second request costs no more than a file.
//
// All methods are safe for concurrent use.
type Encoder interface {
	// Compression is what narinfos say of what Encode gives. It never changes.
	Compression() nix.Compression

	// Version names all that the compressed bytes depend on besides the NAR, such as "v1-default":
	// encoders of one version give the same bytes for the same NAR, on any machine and on any day.
	// So it belongs in the entity tag, next to the NAR hash. It is of letters, digits and '-', and never changes.
	Version() string

	// Encode returns the compressed form of the NAR that info describes.
	//
	// open opens the uncompressed NAR. It is called only if the compressed one is not kept,
	// and then under a context that outlives this call, perhaps on another goroutine, and perhaps again
	// while the result is written; so it must stay valid until the result is closed.
	// The bytes it gives are checked against NARHash and NARSize of info.
	//
	// The result has the size of the whole file, unless that is still being made: then its Size is -1 and it is [Unfinished].
	// Encode returns only after the first bytes are there, so that what open fails with, fails here, as it is.
	// The context bounds this call only. The caller closes the result.
	Encode(ctx context.Context, info *nix.PathInfo, open func(context.Context) (NAR, error)) (NAR, error)

	// Encoded returns the size in bytes of the compressed form if it is kept already; it starts nothing.
	Encoded(info *nix.PathInfo) (size int64, ok bool)
}

// Unfinished is a NAR that is being made while it is sent: its Size is -1.
//
// Until Wait has returned nil, it can only be written as a whole, once, by WriteRange with off 0 and n -1.
// A front end sends it without a length, answers no range from it, and cuts the connection when WriteRange fails.
type Unfinished interface {
	NAR

	// Wait returns nil when the NAR is whole; from then on it has a Size, and any range of it can be written.
	// It fails when ctx ends, and when the NAR can be sent but not kept or cannot be made:
	// WriteRange may still succeed then.
	Wait(ctx context.Context) error
}
