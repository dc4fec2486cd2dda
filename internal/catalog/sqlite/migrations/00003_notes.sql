-- +goose Up
CREATE TABLE notes (
	key     TEXT PRIMARY KEY,
	value   BLOB NOT NULL,
	expires INTEGER NOT NULL -- the largest: never
) STRICT, WITHOUT ROWID;
CREATE INDEX notes_by_expires ON notes (expires);
