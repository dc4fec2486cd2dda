-- +goose Up

-- Path hashes that a published path of the cache refers, or once referred, to and that are not published there: who is published under one
-- may close a cycle. Where every path comes after those that it refers to, there are none.
CREATE TABLE awaited (
	cache INTEGER NOT NULL REFERENCES caches ON DELETE CASCADE,
	hash  BLOB NOT NULL,
	PRIMARY KEY (cache, hash)
) STRICT, WITHOUT ROWID;

-- A path that goes may still be referred to. Those of a cache that is deleted are not.
-- +goose StatementBegin
CREATE TRIGGER path_is_awaited AFTER DELETE ON paths
WHEN EXISTS (SELECT 1 FROM caches WHERE id = old.cache AND name IS NOT NULL) BEGIN
	INSERT INTO awaited VALUES (old.cache, old.hash) ON CONFLICT DO NOTHING;
END;
-- +goose StatementEnd
