"""A format of data is one class: defined here, it is a choice, has help and flags, and round-trips through YAML."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from advect.config.arguments import describe, parse_config, parse_train
from advect.config.build import build_dataset
from advect.core import registry
from advect.core.errors import UserError
from advect.data.base import ArrayDataset, Detected, Rows, check_share
from advect.data.transforms import Standardize


class Ledger(ArrayDataset):
    """Numbers in a text file, a row a line.

    Args:
        columns: how many columns to take.
        held_out: share kept for measuring.
    """

    place = "the ledger"
    usual_preset = "arrays"

    @classmethod
    def recognises(cls, path: Path) -> Detected | None:
        return Detected(99, "a ledger", "vector") if path.suffix == ".ledger" else None

    def __init__(self, path: Path, *, columns: int = 2, held_out: float = 0.25) -> None:
        check_share(held_out)
        x = np.loadtxt(path)[:, :columns]
        n = round(len(x) * held_out)
        parts = Rows(x[n:]), Rows(x[:n])
        super().__init__(name="ledger", train=parts[0], held_out=parts[1], transform=Standardize.fit(x))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    np.savetxt(tmp_path / "a.ledger", np.random.default_rng(0).normal(size=(40, 3)))
    registry.register("ledger")(Ledger)
    yield tmp_path / "a.ledger"
    registry.unregister(Ledger)


def test_it_is_detected_has_flags_and_survives_yaml(place: Path, tmp_path: Path) -> None:
    assert describe(place)[:2] == ("arrays", ["--data-dir", str(place), "--data-format", "ledger"])
    name, a = parse_train(["--data", str(place), "--columns", "3"])
    data = a.settings.data
    assert (name, data.data_format, data.data_dir, data.columns) == ("arrays", "ledger", place, 3)
    dataset = build_dataset(data)
    assert dataset.spec.shape == (3,) and len(dataset.held_out) == 10
    (tmp_path / "config.yaml").write_text(a.settings.to_yaml(name))
    assert parse_config(tmp_path / "config.yaml") == (name, a.settings)


def test_its_arguments_are_in_the_help_and_its_errors_name_flags(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_train(["arrays", "--data-format", "ledger", "--help-all"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--columns" in text and "how many columns to take" in text and "Numbers in a text file" in text
    _, a = parse_train(["--data", str(place), "--held-out", "2"])
    with pytest.raises(UserError, match=r"^--held-out must be at least 0 and below 1"):
        build_dataset(a.settings.data)
    with pytest.raises(UserError, match="--columns is not a flag of advect train moons; it goes with --data-format"):
        parse_train(["moons", "--columns", "3"])


def test_data_of_a_preset_take_no_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data-dir x does not go with digits, which brings its own data"):
        parse_train(["digits", "--data-dir", "x"])
