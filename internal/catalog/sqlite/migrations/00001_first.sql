-- +goose Up
-- Times are in seconds since 1970, where nothing else is said.

CREATE TABLE caches (
	id            INTEGER PRIMARY KEY AUTOINCREMENT,
	name          TEXT UNIQUE, -- NULL: deleted, and what it has goes bit by bit
	store_dir     TEXT NOT NULL,
	sources       TEXT NOT NULL, -- separated by spaces
	priority      INTEGER NOT NULL,
	private       INTEGER NOT NULL,
	allow_missing INTEGER NOT NULL,
	keys          TEXT NOT NULL, -- secret keys, separated by spaces
	created       INTEGER NOT NULL,
	-- How many paths were deleted from it. A publish compares it with what it was before the references were looked for.
	deletions     INTEGER NOT NULL DEFAULT 0
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
	used    INTEGER, -- to some minutes; NULL: never
	grants  TEXT NOT NULL -- JSON
) STRICT, WITHOUT ROWID;

CREATE TABLE ssh_keys (
	name      TEXT PRIMARY KEY,
	key       BLOB NOT NULL UNIQUE, -- as it goes over the wire
	authority INTEGER NOT NULL,
	users     TEXT NOT NULL, -- JSON
	created   INTEGER NOT NULL,
	expires   INTEGER, -- NULL: never
	used      INTEGER, -- to some minutes; NULL: never
	grants    TEXT NOT NULL -- JSON
) STRICT, WITHOUT ROWID;

CREATE TABLE notes (
	key     TEXT PRIMARY KEY,
	value   BLOB NOT NULL,
	expires INTEGER NOT NULL -- the largest: never
) STRICT, WITHOUT ROWID;
CREATE INDEX notes_by_expires ON notes (expires);

CREATE TABLE leases (
	name    TEXT PRIMARY KEY,
	holder  TEXT NOT NULL,
	expires INTEGER NOT NULL -- in milliseconds
) STRICT, WITHOUT ROWID;

CREATE TABLE packs (
	id      INTEGER PRIMARY KEY AUTOINCREMENT,
	name    TEXT NOT NULL UNIQUE,
	size    INTEGER NOT NULL,
	-- 1: what was needed of it was moved to another pack, or it will soon be swept. Chunks in it are not found any more,
	-- but uploads that found one before may come to need it.
	retired INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE chunks (
	hash   BLOB PRIMARY KEY,
	pack   INTEGER NOT NULL REFERENCES packs,
	"offset" INTEGER NOT NULL,
	length INTEGER NOT NULL,
	size   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX chunks_by_pack ON chunks (pack, "offset");

-- Listings by their contents: a rebuild often has the listing that there is.
CREATE TABLE listings (
	id      INTEGER PRIMARY KEY,
	hash    BLOB NOT NULL UNIQUE, -- SHA-256 of the listing
	listing BLOB NOT NULL
) STRICT;

CREATE TABLE nars (
	id        INTEGER PRIMARY KEY AUTOINCREMENT,
	hash      BLOB NOT NULL UNIQUE,
	size      INTEGER NOT NULL,
	file_size INTEGER NOT NULL,
	-- Which bytes its frames have, in a form that is the depot's own: so a look-up of a narinfo reads no recipe.
	tag       TEXT NOT NULL,
	damaged   INTEGER NOT NULL DEFAULT 0, -- a Fault
	added     INTEGER NOT NULL,
	listing   INTEGER NOT NULL REFERENCES listings
) STRICT;
CREATE INDEX nars_damaged ON nars (id) WHERE damaged;
CREATE INDEX nars_by_listing ON nars (listing);

-- Apart from nars, which every look-up of a path reads: these may be long.
CREATE TABLE recipes (
	nar    INTEGER PRIMARY KEY REFERENCES nars ON DELETE CASCADE,
	recipe BLOB NOT NULL
) STRICT;

CREATE TABLE nar_packs (
	nar  INTEGER NOT NULL REFERENCES nars ON DELETE CASCADE,
	idx  INTEGER NOT NULL, -- as the recipe refers to the pack
	pack INTEGER NOT NULL REFERENCES packs,
	PRIMARY KEY (nar, idx)
) STRICT, WITHOUT ROWID;
CREATE INDEX nar_packs_by_pack ON nar_packs (pack);

-- A NAR of a cache that consists of a chunk, among others. It counts for as long as something of the cache leads to that NAR;
-- IDs are never used again, so what is left of one that was swept does no harm, and goes with its chunk.
CREATE TABLE chunk_uses (
	hash  BLOB NOT NULL REFERENCES chunks ON DELETE CASCADE,
	cache INTEGER NOT NULL,
	nar   INTEGER NOT NULL,
	PRIMARY KEY (hash, cache)
) STRICT, WITHOUT ROWID;

CREATE TABLE uploads (
	cache       INTEGER NOT NULL REFERENCES caches ON DELETE CASCADE,
	name        TEXT NOT NULL,
	nar         INTEGER NOT NULL REFERENCES nars,
	file_hash   BLOB NOT NULL,
	file_size   INTEGER NOT NULL,
	made        INTEGER, -- NULL while the NAR is published in the cache
	compression TEXT NOT NULL, -- names do not tell gzip from lzma; '' where it is not known
	PRIMARY KEY (cache, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX uploads_by_nar ON uploads (nar, cache);
CREATE INDEX uploads_unpublished ON uploads (made) WHERE made IS NOT NULL;

CREATE TABLE paths (
	-- No ID is used again: after one come only paths that were published later.
	id         INTEGER PRIMARY KEY AUTOINCREMENT,
	cache      INTEGER NOT NULL REFERENCES caches ON DELETE CASCADE,
	hash       BLOB NOT NULL, -- path hash
	name       TEXT NOT NULL,
	nar        INTEGER NOT NULL REFERENCES nars,
	deriver    TEXT NOT NULL, -- <hash>-<name>, or empty
	sigs       TEXT NOT NULL, -- separated by spaces
	ca         TEXT NOT NULL,
	fields     TEXT NOT NULL, -- what a narinfo says besides: "Name: value", a line each
	registered INTEGER NOT NULL, -- by the client
	published  INTEGER NOT NULL,
	publisher  TEXT NOT NULL, -- the name of a token or an SSH key, '' where that is not known
	UNIQUE (cache, hash)
) STRICT;
CREATE INDEX paths_by_nar ON paths (nar, cache);
CREATE INDEX paths_by_deriver ON paths (cache, substr(deriver, 1, 32)) WHERE deriver <> '';

-- Paths that published paths of a cache refer to, published or not, each once: so a reference is two numbers.
CREATE TABLE referenced (
	id        INTEGER PRIMARY KEY,
	cache     INTEGER NOT NULL, -- REFERENCES caches, but its rows go with path_refs
	hash      BLOB NOT NULL, -- path hash
	name      TEXT NOT NULL,
	elsewhere INTEGER NOT NULL DEFAULT 0 -- 1: another source of the cache had it when a path that refers to it was published
) STRICT;
CREATE INDEX referenced_by_hash ON referenced (cache, hash);
CREATE INDEX referenced_elsewhere ON referenced (cache, hash) WHERE elsewhere;

CREATE TABLE path_refs (
	path INTEGER NOT NULL REFERENCES paths ON DELETE CASCADE,
	ref  INTEGER NOT NULL REFERENCES referenced,
	PRIMARY KEY (path, ref)
) STRICT, WITHOUT ROWID;
CREATE INDEX path_refs_by_ref ON path_refs (ref);

-- +goose StatementBegin
CREATE TRIGGER ref_goes AFTER DELETE ON path_refs
WHEN NOT EXISTS (SELECT 1 FROM path_refs WHERE ref = old.ref) BEGIN
	DELETE FROM referenced WHERE id = old.ref;
END;
-- +goose StatementEnd

-- Several paths may have the debug information of one build ID.
CREATE TABLE debug_info (
	build_id BLOB NOT NULL,
	cache    INTEGER NOT NULL,
	path     INTEGER NOT NULL REFERENCES paths ON DELETE CASCADE,
	member   TEXT NOT NULL,
	PRIMARY KEY (build_id, cache, path)
) STRICT, WITHOUT ROWID;
CREATE INDEX debug_info_by_path ON debug_info (path);

-- What was pushed of paths that a cache has from another source than the depot: signatures.
CREATE TABLE signatures (
	cache    INTEGER NOT NULL REFERENCES caches ON DELETE CASCADE,
	hash     BLOB NOT NULL, -- path hash
	nar_hash BLOB NOT NULL, -- of the NAR that they are of
	sigs     TEXT NOT NULL, -- separated by spaces
	PRIMARY KEY (cache, hash)
) STRICT, WITHOUT ROWID;

CREATE TABLE files (
	cache   INTEGER NOT NULL REFERENCES caches ON DELETE CASCADE,
	key     TEXT NOT NULL,
	content BLOB NOT NULL,
	path    TEXT, -- path hash, in base 32, of what it says was built: it goes when that is deleted. NULL: it says nothing of the kind
	PRIMARY KEY (cache, key)
) STRICT;
CREATE INDEX files_by_path ON files (cache, path) WHERE path IS NOT NULL;

-- NARs that nothing may lead to, and packs that no NAR may need. A sweep looks at these only.
CREATE TABLE loose_nars (nar INTEGER PRIMARY KEY) STRICT;
CREATE TABLE loose_packs (
	pack  INTEGER PRIMARY KEY,
	since INTEGER -- NULL until the next sweep
) STRICT;

-- Packs that NARs have left, so that no NAR may need some of their bytes.
CREATE TABLE thin_packs (
	pack INTEGER PRIMARY KEY,
	gone INTEGER NOT NULL, -- how many NARs have left since it was examined
	dead INTEGER NOT NULL  -- bytes that no NAR needed then
) STRICT;
CREATE INDEX thin_packs_to_examine ON thin_packs (pack) WHERE gone > 0;

-- A listing goes with its last NAR.
-- +goose StatementBegin
CREATE TRIGGER nar_leaves_listing AFTER DELETE ON nars BEGIN
	DELETE FROM listings WHERE id = old.listing AND NOT EXISTS (SELECT 1 FROM nars WHERE listing = old.listing);
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER nar_changes_listing AFTER UPDATE OF listing ON nars WHEN old.listing <> new.listing BEGIN
	DELETE FROM listings WHERE id = old.listing AND NOT EXISTS (SELECT 1 FROM nars WHERE listing = old.listing);
END;
-- +goose StatementEnd
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
CREATE TRIGGER nar_thins_pack AFTER DELETE ON nar_packs BEGIN
	INSERT INTO thin_packs VALUES (old.pack, 1, 0) ON CONFLICT DO UPDATE SET gone = gone + 1;
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER nar_joins_pack AFTER INSERT ON nar_packs BEGIN
	DELETE FROM loose_packs WHERE pack = new.pack;
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER nar_joins_retired_pack AFTER INSERT ON nar_packs
WHEN EXISTS (SELECT 1 FROM packs WHERE id = new.pack AND retired) BEGIN
	INSERT INTO thin_packs VALUES (new.pack, 1, 0) ON CONFLICT DO UPDATE SET gone = gone + 1;
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER nar_moves AFTER UPDATE OF pack ON nar_packs BEGIN
	INSERT INTO loose_packs (pack) SELECT old.pack WHERE NOT EXISTS (SELECT 1 FROM nar_packs WHERE pack = old.pack) ON CONFLICT DO NOTHING;
	DELETE FROM loose_packs WHERE pack = new.pack;
END;
-- +goose StatementEnd
