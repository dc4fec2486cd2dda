-- +goose Up

-- When a path was published, in seconds since 1970, and by whom: the name of a token or an SSH key, '' where that is not known.
-- registered is not that: a client may say when it made the path.
ALTER TABLE paths ADD COLUMN published INTEGER NOT NULL DEFAULT 0;
ALTER TABLE paths ADD COLUMN publisher TEXT NOT NULL DEFAULT '';
UPDATE paths SET published = registered;

-- When a credential was last used, in seconds since 1970, to some minutes. NULL: never.
ALTER TABLE tokens ADD COLUMN used INTEGER;
ALTER TABLE ssh_keys ADD COLUMN used INTEGER;
