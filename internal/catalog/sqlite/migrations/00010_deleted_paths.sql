-- +goose Up

-- When somebody deleted the path, in seconds since 1970, or NULL. A path that refers to it, and was checked before, must not be published after.
ALTER TABLE awaited ADD COLUMN deleted INTEGER;

DROP TRIGGER path_is_awaited;
-- +goose StatementBegin
CREATE TRIGGER path_is_awaited AFTER DELETE ON paths
WHEN EXISTS (SELECT 1 FROM caches WHERE id = old.cache AND name IS NOT NULL) BEGIN
	INSERT INTO awaited (cache, hash) VALUES (old.cache, old.hash) ON CONFLICT DO NOTHING;
END;
-- +goose StatementEnd
