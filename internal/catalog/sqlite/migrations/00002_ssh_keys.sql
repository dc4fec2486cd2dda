-- +goose Up
CREATE TABLE ssh_keys (
	name      TEXT PRIMARY KEY,
	key       BLOB NOT NULL UNIQUE, -- as it goes over the wire
	authority INTEGER NOT NULL,
	users     TEXT NOT NULL, -- JSON
	created   INTEGER NOT NULL,
	expires   INTEGER, -- NULL: never
	grants    TEXT NOT NULL -- JSON
) STRICT, WITHOUT ROWID;
