#!/usr/bin/env python3
"""Prints where a NAR is cut into chunks, by docs/format.md: lines of begin, end and kind.

    cutter.py [STORE-DIRECTORY] < NAR

It is written for reading, and takes about a second for 5 MB.
"""

import hashlib
import re
import sys

AVERAGE = 256 * 1024
MIN, NORMAL, MAX = AVERAGE // 4, AVERAGE * 13 // 16, AVERAGE * 4
SMALL_BELOW = 1 << (64 - 20)  # 20 zero bits at the top
LARGE_BELOW = 1 << (64 - 16)
NEAR = 256
MAX_RUN = 256 * 1024
MIN_FILE = 16 * 1024
U64 = (1 << 64) - 1

GEAR = [
    int.from_bytes(hashlib.sha256(b"firn gear %d" % byte).digest()[:8], "little")
    for byte in range(256)
]


def bounds(nar):
    """Yields where the contents of each larger file begin and end, and the end of the NAR."""
    at = 0

    def string():
        nonlocal at
        size = int.from_bytes(nar[at : at + 8], "little")
        begin = at + 8
        at = begin + (size + 7) // 8 * 8
        return begin, size

    if nar.startswith((13).to_bytes(8, "little") + b"nix-archive-1"):  # the golden inputs are not all NARs
        while at < len(nar):
            begin, size = string()
            word = nar[begin : begin + size]
            if word in (b"name", b"target"):
                string()  # the name of an entry, or the target of a symlink
            elif word == b"contents":
                begin, size = string()
                if size >= MIN_FILE:
                    yield begin
                    yield begin + size
    yield len(nar)


def runs_of_references(nar, store_dir):
    """Yields (begin, end) of each run."""
    pattern = re.compile(
        re.escape(store_dir + b"/") + b"([0-9a-df-np-sv-z]{32}-[0-9A-Za-z+._?=-]{0,211})", re.DOTALL
    )
    begin = end = None
    for match in pattern.finditer(nar):
        first, last = match.span(1)
        if begin is not None and first - end < NEAR and last - begin <= MAX_RUN:
            end = last
            continue
        if begin is not None:
            yield begin, end
        begin, end = first, last
    if begin is not None:
        yield begin, end


def fastcdc(nar, begin, end):
    """Returns the end of the chunk that begins a stretch without references."""
    last = min(end, begin + MAX)
    fingerprint = 0
    for at in range(begin + MIN - 64, last):
        fingerprint = (fingerprint << 1) + GEAR[nar[at]] & U64
        length = at + 1 - begin
        if length >= MIN and fingerprint < (SMALL_BELOW if length < NORMAL else LARGE_BELOW):
            return at + 1
    return last


def chunks(nar, store_dir):
    begin = 0
    for end in bounds(nar):
        for first, last, kind in chunks_of_segment(nar[begin:end], store_dir):
            yield begin + first, begin + last, kind
        begin = end


def chunks_of_segment(nar, store_dir):
    at = 0
    for begin, end in [*runs_of_references(nar, store_dir), (len(nar), len(nar))]:
        while at < begin:
            cut = fastcdc(nar, at, begin)
            yield at, cut, "plain"
            at = cut
        if begin < end:
            yield begin, end, "references"
            at = end


if __name__ == "__main__":
    store_dir = sys.argv[1] if len(sys.argv) > 1 else "/nix/store"
    for chunk in chunks(sys.stdin.buffer.read(), store_dir.encode()):
        print(*chunk)
