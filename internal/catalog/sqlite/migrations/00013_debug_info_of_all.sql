-- +goose Up

-- Several paths may have the debug information of one build ID. Whoever has some goes by the index, and not by all that the cache has.
CREATE TABLE debug_info_of_all (
	build_id BLOB NOT NULL,
	cache    INTEGER NOT NULL,
	hash     BLOB NOT NULL,
	member   TEXT NOT NULL,
	PRIMARY KEY (build_id, cache, hash),
	FOREIGN KEY (cache, hash) REFERENCES paths (cache, hash) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
INSERT INTO debug_info_of_all SELECT build_id, cache, hash, member FROM debug_info;
DROP TABLE debug_info;
ALTER TABLE debug_info_of_all RENAME TO debug_info;
CREATE INDEX debug_info_by_path ON debug_info (hash, cache);
