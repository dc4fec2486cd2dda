-- +goose Up

-- Which bytes the frames of a NAR have, in a form that is the depot's own: so a look-up of a narinfo reads no recipe.
-- Empty where an older firn kept the NAR.
ALTER TABLE nars ADD COLUMN tag TEXT NOT NULL DEFAULT '';
