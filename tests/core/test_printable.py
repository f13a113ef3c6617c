"""Names and values of data reach terminals, logs, pages and captions without commanding them."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import pytest

from advect import cli
from advect.cli import run
from advect.core.errors import UserError, did_you_mean, printable, shortened
from advect.data.figure import caption, new_figure, to_image
from advect.data.tables.files import quote_formulas, read_table
from advect.distributed.context import ConsoleHandler
from advect.doctor.report import Finding, show

RED, BIDI = "\x1b[31mred\x1b]0;title\x07", "a\u202eb"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (RED, r"\x1b[31mred\x1b]0;title\x07"),
        (BIDI, r"a\u202eb"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x9b2J\x7f\u2028\ufeff\ud800", r"\x9b2J\x7f\u2028\ufeff\ud800"),
        ("Zoë · 数 🎲 = $x$", "Zoë · 数 🎲 = $x$"),
    ],
)
def test_what_commands_a_terminal_is_escaped_and_letters_of_all_scripts_stay(text: str, shown: str) -> None:
    assert printable(text) == shown and printable(printable(text)) == shown
    assert printable("a\n\tb\x1b", lines=True) == "a\n\tb\\x1b"


def test_errors_logs_and_findings_are_escaped_where_they_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(words: list[str], **options: object) -> None:
        raise UserError(f"column {RED}\nadvect: all is well" + did_you_mean("x", [BIDI]))

    monkeypatch.setattr(cli, "run", refuse)
    with pytest.raises(SystemExit):
        cli.main()
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "\x1b" not in printed and "\u202e" not in printed and r"\x1b[31m" in printed
    handler = ConsoleHandler()
    handler.emit(logging.LogRecord("advect", logging.INFO, "", 0, f"column {RED}\nforged", None, None))
    assert capsys.readouterr().out == "column \\x1b[31mred\\x1b]0;title\\x07\\nforged\n"
    text = show([Finding("note", f"{RED} repeats", {"column": BIDI + "\nok       forged"}, f"drop {RED}")])
    assert "\x1b" not in text and "\u202e" not in text and "\nok       forged" not in text


def test_choices_without_end_are_cut() -> None:
    words = did_you_mean("zzz", [f"name-{i}" for i in range(10_000)])
    assert words.endswith("name-29 and 9,970 more") and len(words) < 500


@pytest.mark.parametrize("name", ["$\\frac$", "a_{b$", RED, "x" * 100])
def test_captions_are_plain_text_to_matplotlib(name: str) -> None:
    figure = new_figure(512, 512)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], label=caption(name))
    axes.legend()
    assert to_image(figure).size == (512, 512)


def test_formulas_are_quoted_and_numbers_are_not(tmp_path: Path) -> None:
    file = tmp_path / "samples.csv"
    rows = [
        ["=name", "x", "t"],
        ["=cmd|'/c calc'!A1", "-1.5", "@now"],
        ["+1 800", "+2e-3", "plain, text"],
        ["-", "1", "\tx"],
    ]
    with file.open("w", newline="") as out:
        csv.writer(out).writerows(rows)
    quote_formulas(file)
    with file.open(newline="") as lines:
        found = list(csv.reader(lines))
    assert found == [
        ["'=name", "x", "t"],
        ["'=cmd|'/c calc'!A1", "-1.5", "'@now"],
        ["+1 800", "+2e-3", "plain, text"],
        ["'-", "1", "'\tx"],
    ]


def test_sample_quotes_formulas_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ["=size,kind", *(f"{i / 7:.3f},{'=cmd' if i % 2 else 'plain'}" for i in range(60))]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    run(["train", "--data", "t.csv", "--run-dir", "r", "--max-steps", "2", "--width", "8", "--depth", "1"])
    run(["sample", "r", "--num-samples", "40", "--num-steps", "2", "--output-dir", "plain"])
    run(["sample", "r", "--num-samples", "40", "--num-steps", "2", "--output-dir", "safe", "--safe-csv"])
    plain, safe = read_table(tmp_path / "plain/samples.csv"), read_table(tmp_path / "safe/samples.csv")
    assert list(plain.columns) == ["=size", "kind"] and list(safe.columns) == ["'=size", "kind"]
    assert set(safe["kind"]) == {"'=cmd", "plain"} and set(plain["kind"]) == {"=cmd", "plain"}
    assert plain["=size"].tolist() == safe["'=size"].tolist()


def test_a_name_of_thousands_of_letters_loses_its_middle() -> None:
    words = shortened(f"the column {'a' * 5000!r}, which the data have not")
    assert words == f"the column '{'a' * 199}...{'a' * 38}', which the data have not"
    assert shortened(f"/tmp/{'b' * 250}/c is missing") == f"/tmp/{'b' * 250}/c is missing"
    words = shortened(f"the column {'a b ' * 5000!r}, which the data have not")
    assert words.startswith("the column 'a b a b") and words.endswith("a b ', which the data have not")
    assert len(words) <= 3000
