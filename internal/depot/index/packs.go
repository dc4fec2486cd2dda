package index

import (
	"context"
	"iter"

	"firn/internal/catalog"
)

// A ThinPack is a pack that NARs have left.
type ThinPack struct {
	Pack
	Left int64 // how many, and how many moves went into it, since it was last examined; for Examined
}

// A Move puts frames of a pack into a new one.
type Move struct {
	From   string
	To     Pack
	Chunks []MovedChunk // where From has another chunk than this, it is forgotten, as by ForgetChunks
	NARs   []MovedNAR   // at most 256
}

// A MovedChunk is a chunk of a Move.
type MovedChunk struct {
	Hash catalog.Sum
	From int64 // its offset in the old pack
	To   int64 // in the new one
}

// A MovedNAR is a NAR that gets another recipe: one with all frames that lay in the old pack in the new one.
type MovedNAR struct {
	ID     NARID
	Index  int    // of the old pack, and then the new one, in its Packs
	Was    []byte // its recipe until now
	Recipe []byte
	Tag    string
}

// Packs keeps what is known of packs. A pack of which NARs need little is rewritten without the rest.
type Packs interface {
	// ThinPacks returns up to limit packs that NARs have left, or were moved into, since they were last examined, and to which others refer, in an order that stays.
	// One that FindChunks leaves out, and to which a NAR was added, is among them.
	ThinPacks(ctx context.Context, limit int) ([]ThinPack, error)

	// AllPacks iterates over all packs, in an order that stays.
	// It holds no transaction open between two items.
	AllPacks(ctx context.Context) iter.Seq2[Pack, error]

	// NARsIn iterates over the NARs that refer to a pack, in the order of their IDs, with all there is of them.
	// It holds no transaction open between two items.
	NARsIn(ctx context.Context, pack string) iter.Seq2[*NAR, error]

	// Examined notes how many bytes of a pack no NAR needs. The pack is not thin until another NAR leaves it, or has left it since then.
	// If NARs refer to it, it stays: FindChunks finds what is in it, whatever was moved out of it before.
	Examined(ctx context.Context, p ThinPack, dead int64) error

	// Rewritten returns how many bytes the packs have that were examined after all their NARs were moved elsewhere, and were not swept yet.
	Rewritten(ctx context.Context) (int64, error)

	// KnownPacks returns those of the given names that are packs. At most MaxAsked may be asked for.
	KnownPacks(ctx context.Context, names []string) ([]string, error)

	// MoveFrames makes a move, all or nothing, and returns the NARs that were moved. NARs with another recipe by now are passed over.
	// To is added, unless it is there. ErrGone if From is not there, or no NAR was moved: then no record names To, unless an earlier move did.
	// To is thin then: not all NARs for which it was made may come to need it.
	// The chunks that lie where the move says lie in the new pack from then on, and are as much led to as before.
	// FindChunks does not return the other chunks of From any more. Uploads in progress may have found them before, so AddNAR takes them until From is swept.
	MoveFrames(ctx context.Context, m *Move) (moved []NARID, err error)
}
