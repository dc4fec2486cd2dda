-- +goose Up
CREATE TABLE caches (
	id            INTEGER PRIMARY KEY AUTOINCREMENT,
	name          TEXT UNIQUE, -- NULL: deleted, and what it has goes bit by bit
	store_dir     TEXT NOT NULL,
	sources       TEXT NOT NULL, -- separated by spaces
	priority      INTEGER NOT NULL,
	private       INTEGER NOT NULL,
	allow_missing INTEGER NOT NULL,
	keys          TEXT NOT NULL, -- secret keys, separated by spaces
	created       INTEGER NOT NULL -- seconds since 1970, like all times
) STRICT;

CREATE TABLE cache_hosts (
	host  TEXT PRIMARY KEY,
	cache INTEGER NOT NULL REFERENCES caches ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX cache_hosts_by_cache ON cache_hosts (cache);

CREATE TABLE tokens (
	name    TEXT PRIMARY KEY,
	hash    BLOB NOT NULL UNIQUE,
	created INTEGER NOT NULL,
	expires INTEGER, -- NULL: never
	grants  TEXT NOT NULL -- JSON
) STRICT, WITHOUT ROWID;

CREATE TABLE packs (
	id   INTEGER PRIMARY KEY AUTOINCREMENT,
	name TEXT NOT NULL UNIQUE,
	size INTEGER NOT NULL
) STRICT;

CREATE TABLE chunks (
	hash   BLOB PRIMARY KEY,
	pack   INTEGER NOT NULL REFERENCES packs,
	"offset" INTEGER NOT NULL,
	length INTEGER NOT NULL,
	size   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX chunks_by_pack ON chunks (pack, "offset");

CREATE TABLE nars (
	id        INTEGER PRIMARY KEY AUTOINCREMENT,
	hash      BLOB NOT NULL UNIQUE,
	size      INTEGER NOT NULL,
	file_size INTEGER NOT NULL,
	damaged   INTEGER NOT NULL DEFAULT 0,
	added     INTEGER NOT NULL
) STRICT;
CREATE INDEX nars_damaged ON nars (id) WHERE damaged;

-- Apart from nars, which every look-up of a path reads: these may be long.
CREATE TABLE recipes (
	nar    INTEGER PRIMARY KEY REFERENCES nars ON DELETE CASCADE,
	recipe BLOB NOT NULL
) STRICT;

CREATE TABLE listings (
	nar     INTEGER PRIMARY KEY REFERENCES nars ON DELETE CASCADE,
	listing BLOB NOT NULL
) STRICT;

CREATE TABLE nar_packs (
	nar  INTEGER NOT NULL REFERENCES nars ON DELETE CASCADE,
	idx  INTEGER NOT NULL, -- as the recipe refers to the pack
	pack INTEGER NOT NULL REFERENCES packs,
	PRIMARY KEY (nar, idx)
) STRICT, WITHOUT ROWID;
CREATE INDEX nar_packs_by_pack ON nar_packs (pack);

CREATE TABLE uploads (
	cache     INTEGER NOT NULL REFERENCES caches ON DELETE CASCADE,
	name      TEXT NOT NULL,
	nar       INTEGER NOT NULL REFERENCES nars,
	file_hash BLOB NOT NULL,
	file_size INTEGER NOT NULL,
	made      INTEGER, -- NULL while the NAR is published in the cache
	PRIMARY KEY (cache, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX uploads_by_nar ON uploads (nar, cache);
CREATE INDEX uploads_unpublished ON uploads (made) WHERE made IS NOT NULL;

CREATE TABLE paths (
	cache      INTEGER NOT NULL REFERENCES caches ON DELETE CASCADE,
	hash       BLOB NOT NULL, -- path hash
	name       TEXT NOT NULL,
	nar        INTEGER NOT NULL REFERENCES nars,
	refs       TEXT NOT NULL, -- <hash>-<name>, separated by spaces
	deriver    TEXT NOT NULL, -- <hash>-<name>, or empty
	sigs       TEXT NOT NULL, -- separated by spaces
	ca         TEXT NOT NULL,
	registered INTEGER NOT NULL,
	PRIMARY KEY (cache, hash) -- with rowid: rows of this size would leave few keys a page
) STRICT;
CREATE INDEX paths_by_nar ON paths (nar, cache);

CREATE TABLE debug_info (
	cache    INTEGER NOT NULL,
	build_id BLOB NOT NULL,
	hash     BLOB NOT NULL,
	member   TEXT NOT NULL,
	PRIMARY KEY (cache, build_id),
	FOREIGN KEY (cache, hash) REFERENCES paths (cache, hash) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX debug_info_by_path ON debug_info (cache, hash);

CREATE TABLE files (
	cache   INTEGER NOT NULL REFERENCES caches ON DELETE CASCADE,
	key     TEXT NOT NULL,
	content BLOB NOT NULL,
	PRIMARY KEY (cache, key)
) STRICT;

-- What may have become nobody's. A sweep looks at these only.
CREATE TABLE loose_nars (nar INTEGER PRIMARY KEY) STRICT;
CREATE TABLE loose_packs (
	pack  INTEGER PRIMARY KEY,
	since INTEGER -- NULL until the next sweep
) STRICT;

-- +goose StatementBegin
CREATE TRIGGER upload_goes AFTER DELETE ON uploads BEGIN
	INSERT INTO loose_nars VALUES (old.nar) ON CONFLICT DO NOTHING;
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER upload_changes AFTER UPDATE OF nar ON uploads WHEN old.nar <> new.nar BEGIN
	INSERT INTO loose_nars VALUES (old.nar) ON CONFLICT DO NOTHING;
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER path_goes AFTER DELETE ON paths BEGIN
	INSERT INTO loose_nars VALUES (old.nar) ON CONFLICT DO NOTHING;
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER nar_leaves_pack AFTER DELETE ON nar_packs
WHEN NOT EXISTS (SELECT 1 FROM nar_packs WHERE pack = old.pack) BEGIN
	INSERT INTO loose_packs (pack) VALUES (old.pack) ON CONFLICT DO NOTHING;
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER nar_joins_pack AFTER INSERT ON nar_packs BEGIN
	DELETE FROM loose_packs WHERE pack = new.pack;
END;
-- +goose StatementEnd
