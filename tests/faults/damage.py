"""Damages to the content of a file: to its bytes, to the text or records within it, and to members of archives."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ABSURD = (
    *(0, -1, 1, 2**31, 2**63, 2**64, 10**40, 0.5, -0.0, 1e300, 1e-320, float("nan"), float("inf"), True, None),
    *("", "x", "NaN", "9" * 400, "a" * 10_000, "é\u202e\x1b[31m\u0000", "../../x", "=cmd", [], {}, [[]], {"": 0}),
    *([1] * 5000, {str(i): i for i in range(2000)}),
)
"""Values in the place of others."""

NUMBERS = (
    b"-1",
    b"0",
    b"1e300",
    b"1e400",
    b"nan",
    b"inf",
    b"9223372036854775808",
    b"9" * 400,
    b"",
    b"1e-320",
    b"0x1f",
)
TEXTS = (b"", b"\x00", b"\xff", "\u202e\x1b[2J".encode(), b'"', b"'", b",", b"\r", b"\n\n", b"=cmd()", b"a" * 5000)
Change = Callable[[bytes, random.Random], bytes]


def flip(data: bytes, rng: random.Random) -> bytes:
    """Some bytes, or bits of them, are others; half of the time within the first 256."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64)) if found else 0):
        place = rng.randrange(min(len(found), 256) if rng.random() < 0.5 else len(found))
        found[place] = found[place] ^ 1 << rng.randrange(8) if rng.random() < 0.5 else rng.choice((0, 255, 127, 128))
    return bytes(found)


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice((0, 1, len(data) // 2, max(0, len(data) - 1), rng.randrange(len(data) + 1)))]


def zero(data: bytes, rng: random.Random) -> bytes:
    """A range of NUL bytes, as a power cut leaves it."""
    start = rng.choice((0, len(data) // 2, rng.randrange(len(data) + 1)))
    end = rng.choice((len(data), min(len(data), start + rng.randrange(1, 64))))
    return data[:start] + bytes(end - start) + data[end:]


def insert(data: bytes, rng: random.Random) -> bytes:
    """Bytes more, or a part of the file twice, or two parts in each other's place."""
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    how = rng.randrange(3)
    if how == 0:
        return data[:a] + rng.randbytes(rng.choice((1, 4, 100))) + data[a:]
    return data[:b] + data[a:b] + data[b:] if how == 1 else data[b:] + data[a:b] + data[:a]


def other(data: bytes, rng: random.Random) -> bytes:
    """Content of another kind."""
    kinds = (b"[3]\n", b"{}", b"null", b"\xff\xfe" + data, b"PK\x03\x04" + bytes(26), b"\x89PNG\r\n\x1a\n" + data[8:])
    deep = (b"[" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b"a: &a [x]\nb: [*a, *a]\n", b"\n" * 10_000)
    return rng.choice(
        (*kinds, *deep, b"\x93NUMPY" + data, b"\x89HDF\r\n\x1a\n", b"PAR1" + data + b"PAR1", b"\x1f\x8b")
    )


def text(data: bytes, rng: random.Random) -> bytes:
    """A number or a word of the text is another one, a line is missing or there twice."""
    how = rng.randrange(4)
    if how < 2:
        found = list(re.finditer(rb"-?\d[\d.e+-]*" if how == 0 else rb"[A-Za-z_]\w*", data[:200_000]))
        if found:
            one = rng.choice(found[:8] if rng.random() < 0.3 else found)
            return data[: one.start()] + rng.choice(NUMBERS if how == 0 else TEXTS) + data[one.end() :]
    lines = data.splitlines(keepends=True)
    if not lines:
        return data + rng.choice(TEXTS)
    place = rng.randrange(len(lines))
    return b"".join(lines[:place] + lines[place + (how == 2) :] + ([] if how == 2 else lines[place:]))


def value(tree: Any, rng: random.Random) -> Any:
    """A value of a record, at any depth, is of another kind or absurd, missing or under another name."""
    places: list[tuple[Any, Any]] = []
    stack = [tree]
    while stack:
        node = stack.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, inner in list(items):
            places.append((node, key))
            stack.append(inner)
    if not places:
        return rng.choice(ABSURD)
    node, key = rng.choice(places)
    how = rng.random()
    if how < 0.7:
        deep: Any = rng.choice(ABSURD)
        for _ in range(rng.choice((0, 0, 0, 1, 3000))):
            deep = [deep]
        node[key] = deep
    elif how < 0.85 or not isinstance(node, dict):
        del node[key]
    else:
        node[rng.choice(("", "new", "__class__", f"{key}x"))] = node.pop(key)
    return tree


def record(data: bytes, rng: random.Random) -> bytes:
    """A value within JSON, lines of JSON, YAML or the header of a weight file."""
    try:
        return _weights(data, rng) or _json(data, rng) or _yaml(data, rng) or text(data, rng)
    except RecursionError:
        return b"[" * 5000


def _json(data: bytes, rng: random.Random) -> bytes | None:
    try:
        return json.dumps(value(json.loads(data), rng)).encode()
    except ValueError:
        lines = data.splitlines()
    if len(lines) < 2 or not lines[0].startswith(b"{"):
        return None
    place = rng.randrange(len(lines))
    lines[place] = _json(lines[place], rng) or b""
    return b"\n".join(lines) + b"\n"


def _yaml(data: bytes, rng: random.Random) -> bytes | None:
    try:
        tree = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError):
        return None
    return yaml.safe_dump(value(tree, rng), sort_keys=False).encode() if isinstance(tree, dict) else None


def _weights(data: bytes, rng: random.Random) -> bytes | None:
    """A weight file whose header, or the card within it, has another value."""
    size = struct.unpack("<Q", data[:8])[0] if len(data) > 8 else 0
    if not 1 < size < len(data) - 8 or data[8:9] != b"{":
        return None
    header = json.loads(data[8 : 8 + size])
    card = header.get("__metadata__", {})
    if card and rng.random() < 0.8:
        name = rng.choice(sorted(card))
        card[name] = (_json(card[name].encode(), rng) or b"").decode()
    else:
        header = value(header, rng)
    made = json.dumps(header).encode()
    made += b" " * (-len(made) % 8)
    return struct.pack("<Q", len(made)) + made + data[8 + size :]


def member(data: bytes, rng: random.Random) -> bytes:
    """A member of a zip, ``.npz``, tar or gzip file is damaged, and the archive around it sound."""
    change = rng.choice((flip, truncate, zero, other, record, text))
    if data[:2] == b"\x1f\x8b":
        return gzip.compress(change(gzip.decompress(data), rng))
    buffer = io.BytesIO()
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
            chosen = rng.choice(old.namelist())
            for name in old.namelist():
                content = old.read(name)
                new.writestr(_name(name, rng), change(content, rng) if name == chosen else content)
        return buffer.getvalue()
    try:
        old = tarfile.open(fileobj=io.BytesIO(data))  # noqa: SIM115
    except tarfile.TarError:
        return change(data, rng)
    with old, tarfile.open(fileobj=buffer, mode="w") as new:
        infos = old.getmembers()
        chosen = rng.choice(infos)
        for info in infos:
            content = old.extractfile(info).read()  # pyright: ignore[reportOptionalMemberAccess]
            content = change(content, rng) if info is chosen else content
            info.size, info.name = len(content), _name(info.name, rng)
            new.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _name(name: str, rng: random.Random) -> str:
    return name if rng.random() < 0.95 else rng.choice((f"../{name}", f"/{name}", "a" * 90, "é\x1b[31m", f"{name}x"))


CHANGES: dict[str, Change] = {
    change.__name__: change for change in (flip, truncate, zero, insert, other, text, record, member)
}


def damage(file: Path, kind: str, seed: int) -> None:
    """Damage a file in place, always the same way for one content, kind and seed; "folder" and "pipe" replace it."""
    import os

    if kind == "missing":
        file.unlink()
    elif kind == "folder":
        file.unlink()
        file.mkdir()
    elif kind == "pipe":
        file.unlink()
        os.mkfifo(file)
    elif kind == "loop":
        file.unlink()
        file.symlink_to(file.name)
    else:
        file.write_bytes(CHANGES[kind](file.read_bytes(), random.Random(seed)))


KINDS = (*CHANGES, "missing", "folder", "pipe", "loop")
