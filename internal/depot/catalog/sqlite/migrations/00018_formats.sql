-- +goose Up

-- What a narinfo says besides: "Name: value", a line each.
ALTER TABLE paths ADD COLUMN fields TEXT NOT NULL DEFAULT '';
