#!/usr/bin/env python3
"""Reads a NAR out of a depot, by docs/format.md, with no help of firn's.

    reader.py DEPOT-DIRECTORY NAR-HASH > NAR

The directory has catalog.db and packs; the hash is 64 digits of hexadecimal. It needs the zstd command.
"""

import hashlib
import pathlib
import sqlite3
import subprocess
import sys


class Damaged(Exception):
    pass


def parse_recipe(recipe):
    """Yields (pack index, offset, size, length, SHA-256) of each frame, in the order of the NAR."""
    if recipe[0] != 1:
        raise Damaged("a recipe of another version")
    at = 1

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = recipe[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    frames = number()
    hashes = len(recipe) - 32 * frames
    while at < hashes:
        pack, offset, count = number(), number(), number()
        for _ in range(count):
            size, length = number(), number()
            at_hash = len(recipe) - 32 * frames
            frames -= 1
            yield pack, offset, size, length, recipe[at_hash : at_hash + 32]
            offset += length
    if at != hashes or frames != 0:
        raise Damaged("a recipe with more or fewer frames than it says")


def content_size(frame):
    """Returns what the header of a zstd frame says (RFC 8878, 3.1.1)."""
    if frame[:4] != b"\x28\xb5\x2f\xfd":
        raise Damaged("no frame of zstd")
    descriptor = frame[4]
    single_segment = descriptor >> 5 & 1
    width = [single_segment, 2, 4, 8][descriptor >> 6]
    if width == 0:
        raise Damaged("a frame without content size")
    at = 5 + (1 - single_segment) + [0, 1, 2, 4][descriptor & 3]
    size = int.from_bytes(frame[at : at + width], "little")
    return size + 256 if width == 2 else size


def read_nar(depot, nar_hash):
    catalog = sqlite3.connect(f"file:{depot / 'catalog.db'}?mode=ro", uri=True)
    row = catalog.execute("SELECT id, size, recipe FROM nars JOIN recipes ON nar = id WHERE hash = ?", (nar_hash,)).fetchone()
    if row is None:
        raise Damaged("no such NAR")
    nar_id, nar_size, recipe = row
    packs = dict(
        catalog.execute(
            "SELECT idx, packs.name FROM nar_packs JOIN packs ON packs.id = nar_packs.pack WHERE nar = ?", (nar_id,)
        )
    )
    nar = bytearray()
    for pack, offset, size, length, frame_hash in parse_recipe(recipe):
        name = packs[pack]
        with open(depot / "packs" / name[:2] / name, "rb") as file:
            file.seek(offset)
            frame = file.read(length)
        if len(frame) != length or content_size(frame) != size:
            raise Damaged(f"{name} has no frame of {size} bytes at {offset}")
        contents = subprocess.run(["zstd", "-dc"], input=frame, stdout=subprocess.PIPE, check=True).stdout
        if len(contents) != size or hashlib.sha256(contents).digest() != frame_hash:
            raise Damaged(f"the frame at {offset} of {name} has other contents than it should")
        nar += contents
    if len(nar) != nar_size or hashlib.sha256(nar).digest() != nar_hash:
        raise Damaged("the NAR has not the bytes it should have")
    return nar


if __name__ == "__main__":
    sys.stdout.buffer.write(read_nar(pathlib.Path(sys.argv[1]), bytes.fromhex(sys.argv[2])))
