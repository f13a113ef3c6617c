"""Words of the command line whose values look like flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from advect.commands.impute import ImputeArguments
from advect.commands.sample import parse_sample
from advect.config.arguments import TrainArguments, parse_config, parse_train
from advect.config.flags import kept, typed_words
from advect.config.places import place_first, split_places


def test_a_name_that_begins_with_dashes_is_a_value_after_an_equals_sign(tmp_path: Path) -> None:
    assert typed_words(["--conditions=--a", "--seed=-1", "--conditions", "b"]) == [
        "--seed=-1",
        "--conditions",
        kept("--a"),
        "b",
    ]
    words = ["--cond", "a=1", "--seed", "3", "--cond=--b=2"]
    made = parse_sample(words)
    assert made.cond == ("a=1", "--b=2") and made.seed == 3
    (tmp_path / "t.csv").write_text("--a,b\n" + "".join(f"{i % 3},{i}.5\n" for i in range(30)))
    words = ["table", "--data-dir", str(tmp_path / "t.csv"), "--conditions=--a"]
    preset, a = parse_train(words)
    assert a.settings.data.conditions == ("--a",)
    (tmp_path / "config.yaml").write_text(a.settings.to_yaml(preset))
    assert parse_config(tmp_path / "config.yaml")[1] == a.settings


def test_flags_may_stand_before_the_preset() -> None:
    for words in (
        "--max-steps 3 digits",
        "--channel-mult 1 2 digits --max-steps 3",
        "--no-use-ema digits",
        "--mixed-precision digits --seed 1",
        "--run_dir=moons digits",
        "--data-format digits digits",
        "--resume auto --run-dir moons digits",
        "--network-patch-size 2 --seed -1 digits",
    ):
        first, *rest = place_first(words.split(), TrainArguments)
        assert first == "digits" and sorted([first, *rest]) == sorted(words.split())
    preset, a = parse_train(
        ["--channel-mult", "1", "2", "--max-steps", "3", "--no-use-ema", "moons", "--run-dir", "digits"][3:]
    )
    assert (preset, a.run_dir, a.settings.training.max_steps) == ("moons", Path("digits"), 3)
    assert place_first(["--conditions", "label", "digits"], TrainArguments)[0] == "--conditions"  # two conditions


@pytest.mark.parametrize(
    "words",
    ["RUN FILE", "--draws 2 RUN FILE", "RUN --draws 2 FILE", "--cond a=1 RUN FILE", "--cond a=1 RUN --draws 2 FILE"],
)
def test_run_and_file_keep_their_order_among_flags_and_after_those_of_many_values(words: str, tmp_path: Path) -> None:
    run, file = tmp_path / "z", tmp_path / "a.csv"
    for place in (run, file):
        place.touch()
    said = words.replace("RUN", str(run)).replace("FILE", str(file)).split()
    found, flags = split_places(said, "advect impute", ImputeArguments, ("run", "file"), "")
    assert found == [run, file] and flags == words.replace("RUN", "").replace("FILE", "").split()
