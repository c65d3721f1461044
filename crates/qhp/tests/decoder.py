"""Reads one direction of a QHP connection, written from docs/qhp.md alone. Prints a JSON object for each thing it finds.

Usage: decoder.py OWN PEER ROLE [KEY-IN-HEX]: files with what this side and its peer sent; ROLE is client or server.
"""

import json
import struct
import sys
import zlib

BLAKE3_IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
BLAKE3_ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
CHUNK_START, CHUNK_END, ROOT, KEYED = 1, 2, 8, 16
KINDS = {1: "DATA", 2: "WINDOW", 3: "RESET", 4: "PING", 5: "PONG", 6: "GOAWAY"}


def rotate(word, bits):
    return (word >> bits | word << (32 - bits)) & 0xFFFFFFFF


def compress(chaining, block, length, flags):
    """One block of BLAKE3 (section 2.2 of its paper), counter 0."""
    v = list(chaining) + list(BLAKE3_IV[:4]) + [0, 0, length, flags]
    m = list(struct.unpack("<16I", block))

    def mix(a, b, c, d, x, y):
        v[a] = (v[a] + v[b] + x) & 0xFFFFFFFF
        v[d] = rotate(v[d] ^ v[a], 16)
        v[c] = (v[c] + v[d]) & 0xFFFFFFFF
        v[b] = rotate(v[b] ^ v[c], 12)
        v[a] = (v[a] + v[b] + y) & 0xFFFFFFFF
        v[d] = rotate(v[d] ^ v[a], 8)
        v[c] = (v[c] + v[d]) & 0xFFFFFFFF
        v[b] = rotate(v[b] ^ v[c], 7)

    for _ in range(7):
        for column in range(4):
            mix(column, column + 4, column + 8, column + 12, m[2 * column], m[2 * column + 1])
        for diagonal in range(4):
            places = [diagonal] + [4 * row + (diagonal + row) % 4 for row in (1, 2, 3)]
            mix(*places, m[8 + 2 * diagonal], m[9 + 2 * diagonal])
        m = [m[place] for place in BLAKE3_ORDER]
    return [v[i] ^ v[i + 8] for i in range(8)]


def keyed_hash(key, data):
    """BLAKE3's keyed hash of at most one chunk."""
    assert 0 < len(data) <= 1024
    chaining = struct.unpack("<8I", key)
    blocks = [data[at : at + 64] for at in range(0, len(data), 64)]
    for number, block in enumerate(blocks):
        flags = KEYED | (CHUNK_START if number == 0 else 0)
        flags |= CHUNK_END | ROOT if number == len(blocks) - 1 else 0
        chaining = compress(chaining, block.ljust(64, b"\0"), len(block), flags)
    return struct.pack("<8I", *chaining)


def greeting(data):
    magic, least, greatest, features, payload, stream, connection, streams = struct.unpack("<4sHHQIIII", data[:32])
    assert magic == b"QHP\n" and least <= 1 <= greatest
    return {
        "features": features,
        "max_payload": payload,
        "stream_window": stream,
        "connection_window": connection,
        "max_streams": streams,
        "keyed": data[63],
    }


def frames(data, longest):
    at = 0
    while at < len(data):
        length, kind, flags, priority, reserved, stream, checksum = struct.unpack("<IBBBBII", data[at : at + 16])
        assert length <= longest and flags < 16 and priority < 4 and reserved == 0
        payload = data[at + 16 : at + 16 + length]
        assert len(payload) == length, "the last frame is cut off"
        at += 16 + length
        frame = {"kind": KINDS[kind], "stream": stream, "priority": priority}
        frame["flags"] = [n for bit, n in ((1, "OPEN"), (2, "END"), (4, "CHECKSUM"), (8, "ONE_WAY")) if flags & bit]
        if flags & 4:
            assert zlib.crc32(payload) == checksum, "wrong checksum"
        if kind == 1 and flags & 1:
            frame["service"], payload = struct.unpack("<I", payload[:4])[0], payload[4:]
        if kind == 3:
            frame["code"], payload = struct.unpack("<I", payload[:4])[0], payload[4:]
        frame["bytes"] = len(payload)
        frame["sum"] = sum(payload)
        yield frame


def main():
    own, peer = (open(name, "rb").read() for name in sys.argv[1:3])
    role = sys.argv[3]
    hello = greeting(own)
    print(json.dumps(hello))
    rest = own[64:]
    if hello["keyed"]:
        key = bytes.fromhex(sys.argv[4])
        assert rest[:32] == keyed_hash(key, b"QHP 1 " + role.encode() + own[:64] + peer[:64]), "wrong proof"
        rest = rest[32:]
    for frame in frames(rest, greeting(peer)["max_payload"]):
        print(json.dumps(frame))


main()
