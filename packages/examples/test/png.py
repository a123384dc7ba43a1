"""Makes and reads PNGs, with nothing but zlib: what the thumbnail server is given by others, and what others make of its
answers. `png.py make KIND WIDTH HEIGHT >file`, `png.py read <file`."""

import json
import struct
import sys
import zlib


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def colour(x, y, width, height):
    """Left half red, right half blue, and a transparent lowest quarter, whose colour must not shine through."""
    if y >= height * 3 // 4:
        return (0, 255, 0, 0)
    return (255, 0, 0, 255) if x < width // 2 else (0, 0, 255, 255)


def make(kind, width, height):
    pixels = [[colour(x, y, width, height) for x in range(width)] for y in range(height)]
    palette = [(255, 0, 0, 255), (0, 0, 255, 255), (0, 255, 0, 0)]
    extra = b""
    if kind == "rgba":
        depth, number, rows = 8, 6, [bytes(v for p in row for v in p) for row in pixels]
    elif kind == "rgba16":
        depth, number, rows = 16, 6, [bytes(w for p in row for v in p for w in (v, v)) for row in pixels]
    elif kind == "rgb":
        depth, number, rows = 8, 2, [bytes(v for p in row for v in p[:3]) for row in pixels]
    elif kind == "grey":
        depth, number, rows = 8, 0, [bytes(p[0] for p in row) for row in pixels]
    elif kind == "palette":
        depth, number, rows = 8, 3, [bytes(palette.index(p) for p in row) for row in pixels]
        extra = chunk(b"PLTE", bytes(v for p in palette for v in p[:3])) + chunk(b"tRNS", bytes(p[3] for p in palette))
    else:
        sys.exit(f"no such kind: {kind}")
    header = struct.pack(">IIBBBBB", width, height, depth, number, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def unfilter(kind, line, above, step):
    out = bytearray()
    for i, value in enumerate(line):
        a = out[i - step] if i >= step else 0
        b = above[i]
        c = above[i - step] if i >= step else 0
        p = a + b - c
        paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
        out.append((value + (0, a, b, (a + b) // 2, paeth)[kind]) & 255)
    return out


def read(file):
    """Size and pixels of an RGBA image, each chunk checked."""
    assert file[:8] == b"\x89PNG\r\n\x1a\n", "not a PNG"
    at, chunks = 8, []
    while at < len(file):
        (length,) = struct.unpack_from(">I", file, at)
        name, data = file[at + 4 : at + 8], file[at + 8 : at + 8 + length]
        assert file[at + 8 + length : at + 12 + length] == struct.pack(">I", zlib.crc32(name + data)), "bad checksum"
        chunks.append((name, data))
        at += 12 + length
    assert chunks[0][0] == b"IHDR" and chunks[-1][0] == b"IEND"
    width, height, depth, number, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
    assert (depth, number, rest) == (8, 6, [0, 0, 0]), "not RGBA"
    raw = zlib.decompress(b"".join(data for name, data in chunks if name == b"IDAT"))
    assert len(raw) == height * (4 * width + 1), "wrong amount of pixels"
    rows, above = [], bytes(4 * width)
    for y in range(height):
        line = raw[y * (4 * width + 1) : (y + 1) * (4 * width + 1)]
        above = unfilter(line[0], line[1:], above, 4)
        rows.append(above)
    pixel = lambda x, y: list(rows[y][4 * x : 4 * x + 4])
    return {
        "width": width,
        "height": height,
        "left": pixel(0, 0),
        "right": pixel(width - 1, 0),
        "bottom": pixel(0, height - 1),
    }


if sys.argv[1] == "make":
    sys.stdout.buffer.write(make(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
else:
    print(json.dumps(read(sys.stdin.buffer.read())))
