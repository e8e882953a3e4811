"""Seeded mutations of bytes, and of nested plain values."""

from __future__ import annotations

import copy
import random
from typing import Any

# Fragments that parsers of text mistake for something else.
FRAGMENTS = [
    *(b"[" * 5000, b"{" * 3000, b'{"a":' * 500, b"]" * 100, b"- " * 500, b"? " * 500, b"'" * 99, b'"' * 99),
    *(b"9" * 400, b"9" * 5000, b"1e999", b"-1e400", b"NaN", b"Infinity", b"nan", b"inf", b"0x10", b"1_0", b"-0", b"-1"),
    *(b"9223372036854775808", b"18446744073709551616", b"4294967296", b"1" + b"0" * 30, b"0.1.2", b"1e", b"\xc2\xb2"),
    *(
        b"null",
        b"true",
        b"on",
        b"~",
        b"[]",
        b"{}",
        b'""',
        b",",
        b":",
        b"#",
        b"|",
        b">",
        b"%YAML 9.9\n",
        b"---\n",
        b"...\n",
    ),
    *(b"!!float abc", b"!!int abc", b"!!bool abc", b"!!null x", b"!!binary x", b"!!set {a}", b"!!omap [a: 1]", b"!x y"),
    *(
        b"!!timestamp 2020-01-01",
        b"!!python/object/apply:os.getpid []",
        b"!!python/name:os.system",
        b"<<: [1]",
        b"<<: *a",
    ),
    *(b"&a [*a]", b"*a", b"&a ", b"*b", b"2020-01-01", b"12:30:45", b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\x1b[31m"),
    *(b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"\\ud800", b"\\u0000", b"\r", b"\n", b"\t", b" " * 300, b"\xe2\x80\xa8"),
    *(b"../../etc/passwd", b"/dev/zero", b"/dev/stdin", b"a" * 3000, b"$(id)", b"`id`", b"%s%n", b"<script>"),
    b"".join(b"x%d: &x%d [%s]\n" % (i, i, b",".join([b"*x%d" % (i - 1)] * 9)) for i in range(1, 12)),
]

# Values of every type and at every edge.
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 255, 65536, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, 10**400),
    *(0.0, -0.0, 0.5, 1.0, 1e-400, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"), 0.1, 1e15, 2.5),
    *(
        "",
        "abc",
        "1",
        "1e5",
        "nan",
        "inf",
        "true",
        "null",
        "none",
        "cpu",
        "a" * 500,
        "\x00",
        "\ud800",
        "²",
        "{}",
        "../x",
    ),
    *("/dev/zero", "adam", "all", "fp16", "linear", "%d", "{0}", "1.2.3.4", "é", "\n", " ", "0" * 50, "-1", "9" * 30),
    *(
        [],
        {},
        [[]],
        [1],
        ["a"],
        [0.5, 0.5],
        [None],
        {"a": 1},
        {"enabled": True},
        {"type": "fp16"},
        {"params": {"lr": 1}},
    ),
    *([1e308] * 2, [2**70], {"": {}}, {"device": "cpu"}, [True], ["x"] * 300),
]


def mutated(content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """`content` with one to eight changes. others: seeds to splice with."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        _change(data, rng, others)
    return bytes(data[: 1 << 20])


def _change(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    size = min(rng.choice((1, 1, 2, 4, 8, 16, 64, 1024)), len(data) - at)
    match rng.randrange(10):
        case 0 if size:
            data[rng.randrange(at, at + size)] ^= 1 << rng.randrange(8)
        case 1:
            data[at : at + size] = rng.randbytes(size)
        case 2:
            del data[at : at + size]
        case 3:
            data[at:at] = rng.randbytes(rng.choice((1, 2, 8, 100)))
        case 4:
            data[at:at] = rng.choice(FRAGMENTS)
        case 5:
            data[at : at + size] = rng.choice(FRAGMENTS)
        case 6 if size:
            data[at:at] = bytes(data[at : at + size]) * rng.choice((1, 2, 100))
        case 7:
            del data[at:]
        case 8:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            data[at:] = other[start:]
        case _ if size:  # a number inside a binary field
            width = rng.choice((1, 2, 4, 8))
            value = rng.choice((0, 1, -1, 2**7, 2**15, 2**31, 2**63 - 1, 2**16 - 1, rng.getrandbits(64)))
            data[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, rng.choice(("little", "big")))


def replaced(value: Any, rng: random.Random) -> Any:
    """A copy of nested mappings and lists with one to four values replaced, removed, renamed or duplicated."""
    try:
        root: list[Any] = [copy.deepcopy(value)]
    except RecursionError:  # as deep as JSON can be read, but too deep to copy
        return value
    for _ in range(rng.choice((1, 1, 2, 4))):
        holder, key = rng.choice(_places(root))
        _replace(holder, key, rng)
    return root[0] if root else None


def _places(root: list[Any]) -> list[tuple[Any, Any]]:
    """Every (container, key or index) below `root`."""
    found: list[tuple[Any, Any]] = []
    queue: list[Any] = [root]
    while queue:
        node = queue.pop()
        for key, inner in node.items() if isinstance(node, dict) else enumerate(node):
            found.append((node, key))
            if isinstance(inner, dict | list):
                queue.append(inner)
    return found or [(root, 0)]


def _replace(holder: Any, key: Any, rng: random.Random) -> None:
    choice = rng.randrange(12)
    if choice == 0 and len(holder) > 1:
        del holder[key]
    elif choice == 1 and isinstance(holder, dict):
        holder[str(rng.choice(VALUES))[:100]] = holder.pop(key)
    elif choice == 2 and isinstance(holder, list):
        holder.insert(0, copy.deepcopy(holder[key]))
    elif choice == 3:
        nested: Any = copy.deepcopy(rng.choice(VALUES))
        for _ in range(rng.choice((5, 60, 90, 150))):
            nested = [nested] if rng.random() < 0.5 else {"a": nested}
        holder[key] = nested
    else:
        holder[key] = copy.deepcopy(rng.choice(VALUES))
