-- +goose Up

-- Packs that NARs have left, so that some of their bytes may be nobody's.
CREATE TABLE thin_packs (
	pack INTEGER PRIMARY KEY,
	gone INTEGER NOT NULL, -- how many NARs have left since it was examined
	dead INTEGER NOT NULL  -- bytes that were nobody's then
) STRICT;
CREATE INDEX thin_packs_to_examine ON thin_packs (pack) WHERE gone > 0;

-- What became of the packs until now is not known.
INSERT INTO thin_packs SELECT id, 1, 0 FROM packs;

-- +goose StatementBegin
CREATE TRIGGER nar_thins_pack AFTER DELETE ON nar_packs BEGIN
	INSERT INTO thin_packs VALUES (old.pack, 1, 0) ON CONFLICT DO UPDATE SET gone = gone + 1;
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER nar_moves AFTER UPDATE OF pack ON nar_packs BEGIN
	INSERT INTO loose_packs (pack) SELECT old.pack WHERE NOT EXISTS (SELECT 1 FROM nar_packs WHERE pack = old.pack) ON CONFLICT DO NOTHING;
	DELETE FROM loose_packs WHERE pack = new.pack;
END;
-- +goose StatementEnd
