package depot

import (
	"context"
	"io"
	"sync"

	"firn/internal/catalog"
	"firn/nix"
)

// An ingest takes in one NAR. It is a pipeline of three stages:
//
//	cutting   reads the NAR, parses it, and cuts it into pieces
//	framing   hashes the pieces, looks them up, and compresses those that are new
//	packing   writes the frames to a pack, in the order of the NAR, and notes where they lie
//
// A [batch] goes from stage to stage: a buffer of the NAR and its pieces. The goroutine that calls
// parse is the first stage; each of the others has a goroutine, and the compression of each batch
// another one, so that all cores have work. The buffers bound the memory: where there is no
// further one, the first stage waits until its batch is through.
//
// A NAR of one batch goes through the stages on one goroutine: to start others would take longer.
// It is written once it is known to be what the client said, as it may share its pack with others.
//
// A stage that fails ends the context of the ingest. Batches go on through the stages, so that
// their buffers come back, but no stage does anything with them.
type ingest struct {
	d    *Depot
	ctx  context.Context
	stop context.CancelCauseFunc

	cutting cutting
	framing framing
	packing packing

	batches chan *batch // from cutting to framing; nil before the first batch
	only    *batch      // of a NAR that has only one
	work    sync.WaitGroup
}

// newIngest returns an ingest of the NAR that src gives, for a cache with that store directory.
func (d *Depot) newIngest(ctx context.Context, id catalog.CacheID, dir nix.StoreDir, src io.Reader) *ingest {
	in := &ingest{d: d}
	in.ctx, in.stop = context.WithCancelCause(ctx)
	in.cutting = newCutting(d, in.ctx, dir, src, in.pass)
	in.framing = newFraming(d, in.ctx, id)
	in.packing = packing{d: d, ctx: in.ctx, own: -1}
	return in
}

// pass gives a batch to the second stage. passed is called once the batch is through the last one.
func (in *ingest) pass(b *batch, passed func()) {
	if in.batches == nil {
		in.start()
	}
	b.passed = passed
	in.batches <- b
}

// start starts the second and the third stage.
func (in *ingest) start() {
	// An ingest has at most so many batches, so no stage waits to pass one on.
	cut := make(chan *batch, 1+maxExtra)
	framed := make(chan *batch, 1+maxExtra)
	in.batches = cut
	in.work.Go(func() {
		defer close(framed)
		for b := range cut {
			in.try(in.framing.identify, b)
			b.compressed.Go(func() { in.try(in.framing.compress, b) })
			framed <- b
		}
	})
	in.work.Go(func() {
		for b := range framed {
			b.compressed.Wait()
			in.try(in.packing.write, b)
			b.passed()
		}
	})
}

// try does the work of a stage on a batch, unless the ingest has failed. If the work fails, the
// ingest has.
func (in *ingest) try(work func(*batch) error, b *batch) {
	if in.ctx.Err() != nil {
		return
	}
	if err := work(b); err != nil {
		in.stop(err)
	}
}

// read reads the whole NAR and returns its listing and its hash. All frames are made then, and
// written unless the NAR has only one batch.
func (in *ingest) read() (listing []byte, sum catalog.Sum, err error) {
	if listing, err = in.cutting.parse(); err != nil {
		return nil, sum, err
	}
	in.cutting.cut()
	if last := in.cutting.b; in.batches == nil {
		in.try(in.framing.identify, last)
		in.try(in.framing.compress, last)
		in.only = last
	} else {
		in.pass(last, func() {})
	}
	in.wait()
	if in.ctx.Err() != nil {
		return nil, sum, context.Cause(in.ctx)
	}
	return listing, in.framing.sum(), nil
}

// commit makes the frames durable.
func (in *ingest) commit() error {
	if in.only != nil {
		if err := in.d.sharing.write(&in.packing, in.only); err != nil {
			return err
		}
		in.cutting.close()
	}
	return in.packing.commit(in.cutting.size)
}

// wait waits until all batches are through.
func (in *ingest) wait() {
	if in.batches != nil {
		close(in.batches)
		in.batches = nil
	}
	in.work.Wait()
}

// close ends all work, and removes the pack unless that was committed.
func (in *ingest) close() {
	in.stop(context.Canceled)
	in.wait()
	in.cutting.close()
	in.packing.close()
}
