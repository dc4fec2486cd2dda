-- +goose Up

-- The path hash, in base 32, of what the file says was built: it goes when that is deleted. NULL: it says nothing of the kind.
ALTER TABLE files ADD COLUMN path TEXT;
UPDATE files SET path = substr(json_extract(CAST(content AS TEXT), '$.outPath'), 1, 32)
WHERE (key GLOB 'realisations/*' OR key GLOB 'build-trace-v2/*') AND json_valid(CAST(content AS TEXT));
CREATE INDEX files_by_path ON files (cache, path) WHERE path IS NOT NULL;
