-- +goose Up

-- The last row of paths that there was, if its path is gone: no row is used again, so who has looked at all up to one finds what was published since after it.
CREATE TABLE past_paths (past INTEGER NOT NULL) STRICT;
INSERT INTO past_paths VALUES (0);

-- +goose StatementBegin
CREATE TRIGGER path_is_past AFTER DELETE ON paths
WHEN old.rowid > (SELECT past FROM past_paths) BEGIN
	UPDATE past_paths SET past = old.rowid;
END;
-- +goose StatementEnd

-- From here on, what is published stays in awaited: paths of earlier rows may refer to it, and to others they cannot.
