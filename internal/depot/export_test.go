package depot

// MaxDecoding is the bound of the memory for decompressing.
const MaxDecoding = maxDecoding
