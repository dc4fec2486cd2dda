-- +goose Up

-- Names do not tell gzip from lzma. Empty where an older firn kept the upload.
ALTER TABLE uploads ADD COLUMN compression TEXT NOT NULL DEFAULT '';
