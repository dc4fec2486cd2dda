-- +goose Up

-- How many paths were deleted from the cache. A publish compares it with what it was before the references were looked for.
ALTER TABLE caches ADD COLUMN deletions INTEGER NOT NULL DEFAULT 0;

-- The time of a deletion is not needed any more.
ALTER TABLE awaited DROP COLUMN deleted;
