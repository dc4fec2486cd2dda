-- +goose Up

-- References of published paths to paths that were not published in the cache then, as another source of the cache had them.
-- The reference comes first, so that each is found once without reading those who have it.
CREATE TABLE dangling_refs (
	cache INTEGER NOT NULL,
	ref   BLOB NOT NULL, -- path hash of the reference
	hash  BLOB NOT NULL, -- path hash of the path that has it
	name  TEXT NOT NULL, -- of the reference
	PRIMARY KEY (cache, ref, hash)
) STRICT, WITHOUT ROWID;
CREATE INDEX dangling_refs_by_path ON dangling_refs (hash, cache);

-- A foreign key would do the same, but search by the primary key, and so all of a cache.
-- +goose StatementBegin
CREATE TRIGGER path_has_no_refs AFTER DELETE ON paths BEGIN
	DELETE FROM dangling_refs WHERE hash = old.hash AND +cache = old.cache;
END;
-- +goose StatementEnd
