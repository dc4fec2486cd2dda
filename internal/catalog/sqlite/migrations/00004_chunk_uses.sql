-- +goose Up

-- A NAR of a cache that consists of a chunk, among others. It counts for as long as something of the cache leads to that NAR;
-- IDs are never used again, so what is left of one that was swept does no harm, and goes with its chunk.
CREATE TABLE chunk_uses (
	hash  BLOB NOT NULL REFERENCES chunks ON DELETE CASCADE,
	cache INTEGER NOT NULL,
	nar   INTEGER NOT NULL,
	PRIMARY KEY (hash, cache)
) STRICT, WITHOUT ROWID;
