-- +goose Up

-- Listings by their contents: a rebuild often has the listing that there is.
DROP TABLE listings;
CREATE TABLE listings (
	id      INTEGER PRIMARY KEY,
	hash    BLOB NOT NULL UNIQUE, -- SHA-256 of the listing
	listing BLOB NOT NULL
) STRICT;
ALTER TABLE nars ADD COLUMN listing INTEGER REFERENCES listings;
CREATE INDEX nars_by_listing ON nars (listing);

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
