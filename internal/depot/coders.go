package depot

import (
	"fmt"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"

	"firn/internal/chunk"
)

// coders compress and decompress, for all goroutines.
//
// Frames have no zstd checksum. It would cost four bytes of each frame and time on both ends, and
// the NAR hash finds everything that it could find.
type coders struct {
	level    zstd.EncoderLevel
	working  chan struct{} // holds something for each goroutine that is at work: as many as there are cores
	encoders sync.Pool     // of *zstd.Encoder
	decoders sync.Pool     // of *zstd.Decoder
}

func newCoders(level int) *coders {
	return &coders{level: zstd.EncoderLevelFromZstd(level), working: make(chan struct{}, runtime.GOMAXPROCS(0))}
}

// work waits until there is a core for f, then calls it.
func (c *coders) work(f func()) {
	c.working <- struct{}{}
	defer func() { <-c.working }()
	f()
}

// each calls f with each of the shares, at the same time as far as there are cores.
func (c *coders) each(shares []share, f func(*share)) {
	var others sync.WaitGroup
	for i := 1; i < len(shares); i++ {
		others.Go(func() { c.work(func() { f(&shares[i]) }) })
	}
	if len(shares) > 0 {
		c.work(func() { f(&shares[0]) })
	}
	others.Wait()
}

// encoder returns an encoder, for putEncoder.
func (c *coders) encoder() *zstd.Encoder {
	if e, ok := c.encoders.Get().(*zstd.Encoder); ok {
		return e
	}
	e, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(c.level),
		zstd.WithWindowSize(chunk.MaxSize), // no frame is longer
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false),
		zstd.WithSingleSegment(true)) // so that the content size is there, however short the frame
	if err != nil {
		panic(fmt.Sprintf("zstd refuses constant options: %v", err))
	}
	return e
}

func (c *coders) putEncoder(e *zstd.Encoder) { c.encoders.Put(e) }

// encode appends the frame of src to dst. No bytes make no frame.
func (c *coders) encode(dst, src []byte) []byte {
	e := c.encoder()
	defer c.putEncoder(e)
	return e.EncodeAll(src, dst)
}

// decoder returns a decoder, for putDecoder.
func (c *coders) decoder() (*zstd.Decoder, error) {
	if z, ok := c.decoders.Get().(*zstd.Decoder); ok {
		return z, nil
	}
	return zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1), // starts no goroutine
		zstd.WithDecoderMaxMemory(maxFrame),
		zstd.WithDecoderMaxWindow(maxFrame),
		zstd.WithDecoderLowmem(true))
}

func (c *coders) putDecoder(z *zstd.Decoder) {
	if z.Reset(nil) == nil {
		c.decoders.Put(z)
	}
}
