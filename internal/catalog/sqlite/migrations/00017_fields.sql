-- +goose Up

-- What a narinfo says besides: "Name: value", a line each.
ALTER TABLE paths ADD COLUMN fields TEXT NOT NULL DEFAULT '';

-- What was pushed of paths that a cache has from another source than the depot: signatures.
CREATE TABLE signatures (
	cache    INTEGER NOT NULL REFERENCES caches ON DELETE CASCADE,
	hash     BLOB NOT NULL, -- path hash
	nar_hash BLOB NOT NULL, -- of the NAR that they are of
	sigs     TEXT NOT NULL, -- separated by spaces
	PRIMARY KEY (cache, hash)
) STRICT, WITHOUT ROWID;
