"""Names and values of data reach terminals, logs, pages and captions without commanding them."""

from __future__ import annotations

import csv
import logging
import re
from pathlib import Path

import pytest

from advect import cli
from advect.cli import run
from advect.core.errors import UserError, did_you_mean, printable, shortened
from advect.data.figure import caption, new_figure, to_image
from advect.data.tables.files import quote_formulas, read_table, write_table
from advect.data.text_files import write_rows
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


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", " "])
def test_formulas_are_quoted_and_numbers_are_not(separator: str, tmp_path: Path) -> None:
    file = tmp_path / "samples.csv"
    rows = [
        ["=name", "x", "t"],
        ["=cmd|'/c calc'!A1", "-1.5", "@now"],
        ["+1 800", "+2e-3", "plain, text; more"],
        ["-", "1,5", "\tx"],
        ["\r=a", "-1.234,5", "a;-5;b"],
        ["a,=b", "x;@y", 'a "b"\n+c'],
        ["\uff1da", "a = b - c", "e-mail@home"],
    ]
    write_rows(file, rows, separator=separator, quoted=True)
    quote_formulas(file, separator)
    with file.open(newline="") as lines:
        found = list(csv.reader(lines, delimiter=separator))
    assert found == [
        ["'=name", "x", "t"],
        ["'=cmd|'/c calc'!A1", "-1.5", "'@now"],
        ["+1 800", "+2e-3", "plain, text; more"],
        ["'-", "1,5", "'\tx"],
        ["'\r'=a", "-1.234,5", "a;-5;b"],
        ["a,'=b", "x;'@y", 'a "b"\n\'+c'],
        ["'\uff1da", "a = b - c", "e-mail@home"],
    ]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_no_separator_of_a_spreadsheet_finds_a_formula(mark: str, tmp_path: Path) -> None:
    file = tmp_path / "samples.csv"
    words = ["=a", "b;=c", "d,+e", "f\t@g", "h\r-i", "j\n=k", "l|=m", "=n,=o;=p", "\r\n=q", "-1;=r"]
    write_rows(file, [["x", "t"], *(["-2.5", word] for word in words)], quoted=True)
    quote_formulas(file, ",")
    for row in csv.reader(file.open(newline=""), delimiter=mark):
        cells = [cell for field in row for cell in re.split(r"[\r\n]", field)]
        assert not any(cell.startswith(("=", "+", "@", "-r", "-i")) for cell in cells), (mark, row)


def test_tables_with_carriage_returns_are_read_as_they_were_written(tmp_path: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame({"a": ["x\ry", "plain"], "b": [1, 2]})
    write_table(tmp_path / "t.csv", frame)
    assert pd.read_csv(tmp_path / "t.csv").equals(frame)
    write_table(tmp_path / "t.csv", frame[1:])
    assert (tmp_path / "t.csv").read_bytes() == b"a,b\nplain,2\n"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_sample_quotes_formulas_if_asked(separator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kinds = ("=cmd", "plain", '"a;=b"', '"c,=d"')
    lines = [f"=size{separator}kind", *(f"{i / 7 - 4:.3f}{separator}{kinds[i % 4]}" for i in range(60))]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    run(["train", "--data", "t.csv", "--run-dir", "r", "--max-steps", "2", "--width", "8", "--depth", "1"])
    run(["sample", "r", "--num-samples", "40", "--num-steps", "2", "--output-dir", "plain"])
    run(["sample", "r", "--num-samples", "40", "--num-steps", "2", "--output-dir", "safe", "--safe-csv"])
    assert (tmp_path / "safe/samples.csv").read_text().startswith(f"'=size{separator}kind\n")
    plain, safe = read_table(tmp_path / "plain/samples.csv"), read_table(tmp_path / "safe/samples.csv")
    assert list(plain.columns) == ["=size", "kind"] and list(safe.columns) == ["'=size", "kind"]
    assert set(safe["kind"]) == {"'=cmd", "plain", "a;'=b", "c,'=d"}
    assert set(plain["kind"]) == {"=cmd", "plain", "a;=b", "c,=d"}
    assert plain["=size"].tolist() == safe["'=size"].tolist() and plain["=size"].min() < 0


def test_steps_of_series_are_quoted_in_their_own_separator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"=a{i // 9};{i % 9};{i % 7 / 4 - 1}\n".replace(".", ",") for i in range(90))
    (tmp_path / "s.csv").write_text(f"who;step;value\n{rows}")
    words = "train sequences --data-dir s.csv --id-column who --order-column step --max-steps 2 --width 8 --depth 1"
    run([*words.split(), "--heads", "2", "--run-dir", "r"])
    run(["sample", "r", "--num-samples", "3", "--num-steps", "2", "--output-dir", "out", "--safe-csv"])
    first, *lines = (tmp_path / "out/samples.csv").read_text().splitlines()
    assert first == "who;step;value" and len(lines) == 27
    assert all(re.fullmatch(r"'=a\d+;\d;-?\d,\d+", line) for line in lines)


def test_a_name_of_thousands_of_letters_loses_its_middle() -> None:
    words = shortened(f"the column {'a' * 5000!r}, which the data have not")
    assert words == f"the column '{'a' * 199}...{'a' * 38}', which the data have not"
    assert shortened(f"/tmp/{'b' * 250}/c is missing") == f"/tmp/{'b' * 250}/c is missing"
    words = shortened(f"the column {'a b ' * 5000!r}, which the data have not")
    assert words.startswith("the column 'a b a b") and words.endswith("a b ', which the data have not")
    assert len(words) <= 3000
