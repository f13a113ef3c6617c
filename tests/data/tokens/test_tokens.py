"""Tokens of text, FASTA, tables and arrays: read, split, and written back to the byte."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.types import LENGTH, without_padding
from advect.data import Tokens, TokenTransform
from advect.data.autodetect import autodetect
from advect.data.modality import modality_of

WORDS = ["ab", "abba", "baab", "a", "bb", "aab", "bba", "ba", "abab", "b", "aa", "bab"]
PROSE = "It was late.\nNo one came, and\n\nthe door stood open; \u201cwhy?\u201d she said.\n" * 30
RECORDS = {"one": "ACGT" * 20, "two": "TTGACA", "three": "GATTACA" * 12}


def fasta(width: int) -> str:
    cut = lambda text: "\n".join(text[i : i + width] for i in range(0, len(text), width))
    return "".join(f">{name} of some kind\n{cut(text)}\n" for name, text in RECORDS.items())


def whole(data: Tokens) -> tuple[torch.Tensor, dict]:
    """All rows, in the order of the data, in data units."""
    parts = [(split, split.fetch(np.arange(len(split)))) for split in (data.train, data.held_out)]
    rows = np.concatenate([split._numbers for split, _ in parts]).argsort()
    x = data.transform.inverse(torch.cat([batch.x1 for _, batch in parts]))[rows]
    names = parts[0][1].cond or {}
    cond = {name: torch.cat([batch.cond[name] for _, batch in parts])[rows] for name in names}
    return without_padding(x, cond), cond


def written(data: Tokens, folder: Path) -> Path:
    """The file of all rows, written as samples are."""
    modality = modality_of(data.spec, data.transform, data.metadata)
    modality.check_facts()
    return modality.write_data(*whole(data), folder, 0)[0]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lines_come_back_to_the_byte(tmp_path, newline):
    file = tmp_path / "words.txt"
    file.write_bytes((newline.join([*WORDS, "\u00e4\u20ac\U0001f600"]) + newline).encode())
    data = Tokens(file, held_out=0.2)
    assert data.spec.shape == (4, 5) and data.metadata["layout"] == "lines"
    assert written(data, tmp_path).read_bytes() == file.read_bytes()
    assert data.spec.conditions[LENGTH].frequencies[0] < 0.5


def test_a_stream_is_cut_in_windows_that_come_back(tmp_path):
    file = tmp_path / "prose.txt"
    file.write_text(PROSE)
    data = Tokens(file, max_length=50)
    assert data.metadata["layout"] == "stream" and LENGTH not in data.spec.conditions
    assert len(data.train) + len(data.held_out) == len(PROSE) // 50
    parts = written(data, tmp_path).read_text().split("\n\f\n")
    assert "".join(parts) == PROSE[: len(PROSE) // 50 * 50]


def test_windows_begin_anywhere_in_training_and_never_reach_the_held_out_end(tmp_path):
    text = "".join(chr(97 + i % 26) for i in range(1000))
    (tmp_path / "a.txt").write_text(text)
    data = Tokens(tmp_path / "a.txt", layout="stream", max_length=100, held_out=0.3)
    assert len(data.train) == 7
    n = 400
    x = data.transform.inverse(data.train.fetch(np.arange(n) % 7, CounterRng(0, 0, n)).x1)
    starts = {text.find("".join(map(chr, row.long().tolist()))) for row in x}
    assert len(starts) > 20 and -1 not in starts
    ends = data.train.fetch(np.full(n, 6), CounterRng(1, 0, n)).x1
    assert torch.equal(ends, data.train.fetch(np.full(n, 6)).x1)  # the last cannot begin later
    held = data.held_out.fetch(np.arange(3))
    assert torch.equal(data.held_out.fetch(np.arange(3), CounterRng(0, 0, 3)).x1, held.x1)


@pytest.mark.parametrize("suffix", [".fasta", ".fa.gz"])
def test_fasta_comes_back_with_its_width(tmp_path, suffix):
    file = tmp_path / f"genes{suffix}"
    content = fasta(60).encode()
    file.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert autodetect(file)[0][0] is Tokens
    data = Tokens(file, held_out=0)
    found = written(data, tmp_path).read_text()
    assert found == "".join(
        f">sample-{i:06d}\n" + part.split("\n", 1)[1] for i, part in enumerate(fasta(60).split(">")[1:])
    )


@pytest.mark.parametrize("dtype", ["uint8", "int64", "int16", "bool"])
def test_arrays_come_back_in_their_type(tmp_path, dtype):
    x = np.random.default_rng(0).choice([3, 7, 1] if dtype != "bool" else [0, 1], (20, 6)).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    data = Tokens(tmp_path / "x.npy", held_out=0.2)
    found = np.load(written(data, tmp_path))
    assert found.dtype == x.dtype and np.array_equal(found, x)
    assert autodetect(tmp_path / "x.npy")[0][0] is not Tokens  # whole numbers are vectors unless tokens are asked for


def test_archives_have_lengths_and_conditions(tmp_path):
    rng = np.random.default_rng(0)
    values, lengths = rng.integers(-2, 2, (30, 5)), rng.integers(1, 6, 30)
    values[np.arange(5) >= lengths[:, None]] = 0
    kind = np.array(["x", "y"])[np.arange(30) % 2]
    np.savez(tmp_path / "a.npz", values=values, lengths=lengths, kind=kind)
    data = Tokens(tmp_path / "a.npz", conditions=["kind"], held_out=0.2)
    with np.load(written(data, tmp_path)) as found:
        assert np.array_equal(found["values"], values) and np.array_equal(found["lengths"], lengths)
        assert np.array_equal(found["kind"], kind)


def test_a_column_of_texts_comes_back_with_conditions(tmp_path):
    pytest.importorskip("pandas")
    rows = "".join(f"{word},{'uv'[i % 2]},{i / 4}\n" for i, word in enumerate(WORDS))
    (tmp_path / "t.csv").write_text("name,kind,size\n" + rows)
    data = Tokens(tmp_path / "t.csv", column="name", conditions=["kind", "size"], held_out=0.2)
    assert set(data.spec.conditions) == {"kind", "size", LENGTH}
    assert written(data, tmp_path).read_text() == (tmp_path / "t.csv").read_text()


def test_words_are_tokens_too(tmp_path):
    lines = ["go home now", "go  out", "now go home", "home"] * 4
    data = Tokens(lines, unit="words", held_out=0)
    assert data.metadata["words"] == ["", "go", "home", "now", "out"]
    assert written(data, tmp_path).read_text().splitlines() == lines


def test_text_is_told_from_tables(tmp_path):
    cases = {
        "names": ("\n".join(WORDS), True),
        "prose": (PROSE, True),
        "numbers": ("1.5\n2.5\n3\n", False),
        "table": ("a b\n1 2\n3 4\n", False),
        "named": ("x,kind\n1,a\n2,b\n", False),
        "ragged numbers": ("1 2 3\n4 5\n6 7 8\n", False),
    }
    for name, (content, text) in cases.items():
        (tmp_path / "f.txt").write_text(content)
        assert (autodetect(tmp_path / "f.txt")[0][0] is Tokens) == text, name


def test_equal_sequences_share_a_side():
    data = Tokens(["ab", "ba", "aa", "bb", "abb"] * 20, held_out=0.4)
    texts = [
        {tuple(row) for row in data.transform.inverse(split.fetch(np.arange(len(split))).x1).nan_to_num().tolist()}
        for split in (data.train, data.held_out)
    ]
    assert texts[0] and texts[1] and not texts[0] & texts[1]


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b"\xff\xfe\x00", {}, "is not UTF-8 text at byte 0"),
        (b"", {}, "is empty; give some text"),
        (b"aaaa\naaaa\n", {"layout": "lines"}, "all tokens are the same"),
        (b"ab\n\nba\n", {"layout": "lines"}, "an empty row 1, which is no sequence.*--layout stream"),
        (b"ab" * 3000 + b"\nba\n", {"layout": "lines"}, r"longest sequence has 6,000 tokens; give max_length"),
        (b"a b\nb a\n", {"unit": "words", "layout": "stream"}, "words are of sequences of one line each"),
        (b"ab\n\0ba\n", {}, "has a zero byte"),
        (b"ab\nba\n", {"conditions": ["k"]}, "is no table or archive, so that it has no conditions"),
        (b"ab\nba\n", {"layout": "columns"}, "layout must be 'auto' or 'lines' or 'stream', got 'columns'"),
    ],
)
def test_bad_text_is_refused_in_a_sentence(tmp_path, content, options, words):
    (tmp_path / "f.txt").write_bytes(content)
    with pytest.raises(UserError, match=words):
        Tokens(tmp_path / "f.txt", **options)


def test_bad_arrays_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="holds float64, and tokens are whole numbers or texts"):
        Tokens(np.zeros((3, 4)))
    with pytest.raises(UserError, match=r"tokens must be \(N, L\)"):
        Tokens(np.zeros((3, 4, 2), int))
    with pytest.raises(UserError, match="do not fit the array"):
        Tokens(np.arange(12).reshape(3, 4), lengths=[1, 2])
    with pytest.raises(UserError, match="layout is for text"):
        Tokens(np.arange(12).reshape(3, 4), layout="lines")
    with pytest.raises(UserError, match="a vocabulary has at most 65,536; join the rare ones"):
        Tokens(np.arange(70_000).reshape(-1, 10))
    with pytest.raises(UserError, match="an empty row 1"):
        Tokens(["ab", "", "c"])
    (tmp_path / "f.fasta").write_text("ACGT\n>x\nAC\n")
    with pytest.raises(UserError, match="before its first header, in line 1"):
        Tokens(tmp_path / "f.fasta")


def test_an_unknown_token_is_refused():
    transform = TokenTransform((97, 98, 101))
    assert torch.equal(
        transform.inverse(transform.forward(torch.tensor([[97, 101]]))), torch.tensor([[97.0, 101.0]]).double()
    )
    with pytest.raises(UserError, match="the token 99 is not in the vocabulary of the training data, which has 3"):
        transform.forward(torch.tensor([[97, 99]]))
    with pytest.raises(UserError, match="take log_prob_bound"):
        transform.log_det(3)
    with pytest.raises(UserError, match="codes that rise"):
        TokenTransform((2, 1))


def test_pictures_show_the_texts_and_features_count_neighbours(tmp_path):
    data = Tokens(WORDS, held_out=0.2)
    modality = data.modality
    x, cond = whole(data)
    assert modality.texts(x, cond) == WORDS
    assert modality.texts(torch.tensor([[97.0, torch.nan]]))[0] == "a\u25a2"
    image = modality.plot(x, cond, modality.reference(data.held_out))
    assert image.width == 1120 and np.asarray(image).min() < 100
    same = modality.feature_space(torch.tensor([[97.0, 98, 97], [97, 98, 97], [98, 98, 98]]))
    assert torch.equal(same[0], same[1]) and not torch.equal(same[0], same[2])
    torch.testing.assert_close(same.square().sum(1), torch.full((3,), 2.0))
