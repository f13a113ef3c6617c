"""``advect impute`` and ``advect sample --given``: what is drawn, what is left, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from advect.core.errors import UserError
from advect.data import Sequences
from advect.model.answers import answer_run, file_conditions, how_much
from advect.model.flow import Flow
from advect.model.load import load
from advect.model.sampler_config import SamplerConfig
from forked import ranks

ROWS = ["0.5,", ",0.250", "1.,0", ","]
TWO = SamplerConfig(steps=2)


@pytest.fixture
def given(tmp_path: Path) -> Path:
    (tmp_path / "given.csv").write_text("\n".join(["x1,x2", *ROWS, ""]))
    return tmp_path / "given.csv"


def test_a_file_for_each_draw_keeps_what_was_known(
    advect: Callable[..., None], masked_run: Path, given: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    advect(f"impute {masked_run} --draws 2 {given} --num-steps 2 --output-dir {out}")
    assert sorted(path.name for path in out.iterdir()) == ["draw-1.csv", "draw-2.csv", "samples.json"]
    drawn = []
    for k in (1, 2):
        lines = (out / f"draw-{k}.csv").read_text().splitlines()
        assert lines[0] == "x1,x2"
        assert lines[1].startswith("0.5,")
        assert lines[2].endswith(",0.250")
        assert lines[3] == "1.,0"
        drawn.append([float(word) for word in ",".join(lines[1:]).split(",")])
    different = (np.array(drawn[0]) != np.array(drawn[1])).tolist()
    assert different == [False, True, True, False, False, False, True, True]
    facts = json.loads((out / "samples.json").read_text())
    assert (facts["n"], facts["draws"], facts["given"]) == (8, 2, "given.csv")
    x = np.repeat([[0.5, np.nan], [np.nan, 0.25], [1, 0], [np.nan, np.nan]], 2, 0)
    same = load(masked_run).sample(8, given=x, steps=2).x.numpy()
    np.testing.assert_allclose(np.array(drawn).reshape(2, 4, 2), same.reshape(4, 2, 2).swapaxes(0, 1), rtol=1e-6)


def test_padding_is_not_asked_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    modality = Sequences([rng.normal(size=(n, 2)) for n in (3, 5, 4, 5)], held_out=0).modality
    x = np.zeros((2, 4, 2))
    x[0, 1] = x[0, 2, 0] = np.nan
    np.savez(tmp_path / "asked.npz", values=x, lengths=[3, 4])
    assert how_much(modality, modality.read_given(tmp_path / "asked.npz")) == "1 of 2 rows ask for 3 entries"


def test_sampling_with_a_file_is_the_same(
    advect: Callable[..., None], masked_run: Path, given: Path, tmp_path: Path
) -> None:
    advect(f"impute {masked_run} {given} --draws 2 --num-steps 2 --output-dir {tmp_path}/a")
    advect(f"sample {masked_run} --given {given} --draws 2 --num-steps 2 --output-dir {tmp_path}/b")
    for name in ("draw-1.csv", "draw-2.csv", "samples.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_parts_are_gone_on_with_and_give_the_same_bytes(
    masked_run: Path, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = answer_run(masked_run, given, 5, TWO, output_dir=tmp_path / "a", part_size=7)
    sample, calls = Flow.sample, []

    def interrupted(self: Flow, n: int, **options):
        if options.get("rows") != range(1):
            calls.append(options["rows"])
            if len(calls) == 2:
                raise KeyboardInterrupt
        return sample(self, n, **options)

    monkeypatch.setattr(Flow, "sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        answer_run(masked_run, given, 5, TWO, output_dir=tmp_path / "b", part_size=7)
    assert not list((tmp_path / "b").glob("draw-*"))
    again = answer_run(masked_run, given, 5, TWO, output_dir=tmp_path / "b", part_size=7)
    assert calls == [range(0, 6), range(6, 13), range(6, 13), range(13, 20)]
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in whole]
    assert answer_run(masked_run, given, 5, TWO, output_dir=tmp_path / "b", part_size=7) == again
    assert len(calls) == 4
    with pytest.raises(UserError, match="already holds samples of another call: n was 20 there and is 16 here"):
        answer_run(masked_run, given, 4, TWO, output_dir=tmp_path / "b")
    assert len(answer_run(masked_run, given, 1, TWO, output_dir=tmp_path / "b", overwrite=True)) == 2
    assert [path.name for path in (tmp_path / "b").glob("draw-*")] == ["draw-1.csv"]


def test_two_processes_leave_the_bytes_of_one(
    advect: Callable[..., None], masked_run: Path, given: Path, tmp_path: Path
) -> None:
    words = f"impute {masked_run} {given} --draws 3 --num-steps 2 --part-size 6 --device cpu --output-dir {tmp_path}"
    advect(f"{words}/one")
    with ranks(2, f"{words}/two", cwd=tmp_path) as both:
        assert [rank.code for rank in both.wait(120)] == [0, 0]
    one, two = ({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two and len(one) == 4


def test_a_flow_that_was_given_nothing_says_what_helps(moons_run: Path, given: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--mask .*--posterior"):
        answer_run(moons_run, given, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["dps", "pigdm", "mmps", "repaint"])
def test_posterior_sampling_asks_a_flow_that_was_given_nothing(
    advect: Callable[..., None], moons_run: Path, given: Path, tmp_path: Path, method: str
) -> None:
    out = tmp_path / "out"
    way = f"--posterior {method} --num-steps 2 --grid edm --grid-rho 5"
    advect(f"impute {moons_run} {given} {way} --draws 2 --output-dir {out}")
    lines = (out / "draw-2.csv").read_text().splitlines()
    assert lines[1].startswith("0.5,")
    assert lines[2].endswith(",0.250")
    assert method.upper()[0] in json.loads((out / "samples.json").read_text())["posterior"].upper()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("impute RUN", "needs a run and a file, such as"),
        ("impute RUN nowhere.csv", "nowhere.csv is no file; give one in the form of the training data"),
        ("impute RUN GIVEN --cond label=1", "condition 'label' is not known"),
        ("sample RUN --given GIVEN --num-samples 3", "--num-samples and --given contradict each other"),
        ("sample RUN --given GIVEN --safe-csv", "--safe-csv and --given contradict each other"),
        ("sample RUN --draws 3", "--draws is of each row of --given"),
        ("sample RUN --posterior pigdm", "--posterior is of each row of --given"),
        ("impute RUN GIVEN --posterior pigdm --solver euler", "--solver and --posterior contradict each other"),
        ("impute RUN GIVEN --posterior reward", "reward"),
        ("sample RUN --given GIVEN --draws 0", "draws"),
    ],
)
def test_bad_calls_are_one_sentence(
    advect: Callable[..., None], masked_run: Path, given: Path, words: str, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        advect(words.replace("RUN", str(masked_run)).replace("GIVEN", str(given)))


def test_conditions_that_a_file_lacks_are_asked_for(
    advect: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez("x.npz", x=rng.normal(size=(50, 3)), y=np.arange(50) % 2)
    small = "--max-steps 4 --width 8 --depth 2 --sample-every 0 --run-dir run"
    advect(f"train --data x.npz --mask random {small}")
    np.save("q.npy", [[1.0, np.nan, 2.0]])
    with pytest.raises(
        UserError, match=r"q.npy has no 'label', a condition, .* give --cond label=VALUE, or label=none"
    ):
        advect("impute run q.npy --num-steps 1")
    advect("impute --cond label=1 run q.npy --num-steps 1 --draws 2")
    found = np.load("run/imputed/seed-0/draw-2.npy")
    assert found[0, [0, 2]].tolist() == [1.0, 2.0]
    assert np.isfinite(found).all()
    advect(f"train --data x.npz {small.replace('run-dir run', 'run-dir plain')}")
    again = "impute plain q.npy --posterior pigdm --num-steps 2 --cond label=1"
    advect(again)
    with pytest.raises(UserError, match=r"another call: guidance was 1\.0 there and is 3\.0 here"):
        advect(f"{again} --guidance 3")


def test_a_condition_is_of_the_file_or_of_the_words() -> None:
    values = {"k": ["p", "q"]}
    assert file_conditions(Path("a.csv"), values, 2, {"j": 3}) == {"j": 3, "k": ["p", "p", "q", "q"]}
    with pytest.raises(UserError, match=r"--cond k=p, and a\.csv has the values of 'k'; leave one out"):
        file_conditions(Path("a.csv"), values, 2, {"k": "p"})
