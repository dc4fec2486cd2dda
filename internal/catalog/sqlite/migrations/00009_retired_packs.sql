-- +goose Up

-- 1: what was needed of the pack was moved to another one, or it will soon be swept. Nobody finds chunks in it, but uploads that found one before may come to need it.
ALTER TABLE packs ADD COLUMN retired INTEGER NOT NULL DEFAULT 0;

-- +goose StatementBegin
CREATE TRIGGER nar_joins_retired_pack AFTER INSERT ON nar_packs
WHEN EXISTS (SELECT 1 FROM packs WHERE id = new.pack AND retired) BEGIN
	INSERT INTO thin_packs VALUES (new.pack, 1, 0) ON CONFLICT DO UPDATE SET gone = gone + 1;
END;
-- +goose StatementEnd
