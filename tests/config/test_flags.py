"""Words of the command line whose values look like flags."""

from __future__ import annotations

from pathlib import Path

from advect.commands.sample import parse_sample
from advect.config.arguments import parse_config, parse_train
from advect.config.flags import kept, typed_words


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
