"""Numbers that are not finite, planted in one process: skipped by all, logged, rolled back once, then told."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from advect.core.errors import UserError
from forked import advect_ranks, ranks
from runs import NAN, end_of, plant

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs forked processes")

SMALL = (
    "train moons --width 16 --learning-rate 1e-3 --lr-warmup-steps 0 --sample-every 0 --save-every 3 --log-every 4"
    " --num-epochs 100 --run-dir run"
)
LOW = 5e-4


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def indices(run: Path, step: int) -> list[int]:
    """The examples of a step, as the loader has them from the run's own seed."""
    from advect.training.loader import EpochSampler

    return EpochSampler(10_000, 0).indices(64 * (step - 1), 64).tolist()


ONE, TWO = (1, "--batch-size 64"), (2, "--batch-size 32")


@pytest.mark.parametrize(("n", "words"), [ONE, TWO])
@pytest.mark.parametrize("half", ["", pytest.param("--mixed-precision --half fp16", marks=pytest.mark.slow)])
def test_a_bad_step_is_skipped_by_all_and_logged_with_its_rows(tmp_path: Path, n: int, words: str, half: str) -> None:
    call = f"{SMALL} {words} {half} --max-steps 12"
    ended = advect_ranks(n, call, cwd=tmp_path, before=plant, arguments=(n - 1, NAN, [5, 7, 8]))
    told = rows(tmp_path / "run")
    bad = [row for row in told if "bad_step" in row]
    assert [row["step"] for row in bad] == [5, 7, 8]
    for row in bad:
        assert row["bad_step"]["loss"] == "nan"
        assert row["bad_step"]["rows"] == indices(tmp_path / "run", row["step"])
    assert [row.get("bad_steps") for row in told if "loss" in row] == [None, 3, 3]
    assert sum(line.startswith("warning: step") for line in ended[0].err.splitlines()) == 3
    notes = {(tmp_path / f"rank{rank}").read_text() for rank in range(n)}
    assert len(notes) == 1  # weights and scales are equal on all
    assert notes.pop().split()[0] == (str(2.0**13) if half else "0.0")
    kept = json.loads((tmp_path / "run/checkpoints/step-00000012/state/run.json").read_text())
    assert (kept["bad"], kept["bad_row"], kept["ema_updates"]) == (3, 0, 9 if not half else kept["ema_updates"])


def test_an_overflow_of_one_process_in_float16_lowers_the_scale_of_all_and_is_no_bad_step(tmp_path: Path) -> None:
    call = f"{SMALL} {TWO[1]} --mixed-precision --half fp16 --max-steps 8"
    advect_ranks(2, call, cwd=tmp_path, before=plant, arguments=(1, 1e5, [3]))
    notes = {(tmp_path / f"rank{rank}").read_text() for rank in range(2)}
    assert len(notes) == 1 and notes.pop().split()[0] == str(2.0**15)
    last = rows(tmp_path / "run")[-1]
    assert (last["step"], last["loss_scale"], last["skipped_steps"], "bad_steps" in last) == (8, 2.0**15, 1, False)


ROLLED = f"{SMALL} --max-steps 24 --max-bad-steps 4 --resume auto"
STEPS = list(range(10, 18))


@pytest.mark.parametrize(
    ("n", "words", "every"),
    [(*ONE, 3), (*TWO, 3), (*ONE, "1 --keep-last 1"), pytest.param(*TWO, "1 --keep-last 1", marks=pytest.mark.slow)],
)
def test_too_many_in_a_row_go_back_to_the_last_good_checkpoint_with_a_lower_rate(
    tmp_path: Path, n: int, words: str, every: object
) -> None:
    call = f"{ROLLED} {words} --save-every {every}"
    ended = advect_ranks(n, call, cwd=tmp_path, before=plant, arguments=(n - 1, NAN, STEPS, LOW))
    told = rows(tmp_path / "run")
    back = [i for i, row in enumerate(told) if "rolled_back_from" in row]
    assert len(back) == 1
    row = told[back[0]]
    assert (row["step"], row["rate"]) == (9, 0.3) and 13 <= row["rolled_back_from"] <= 16
    assert [r["step"] for r in told[: back[0]] if "bad_step" in r] == list(range(10, row["rolled_back_from"] + 1))
    assert [r["lr"] for r in told[back[0] :] if "loss" in r] == pytest.approx([3e-4] * 4, rel=1e-4)
    assert "going on from the checkpoint of step 9 with 0.3 times the learning rate" in ended[0].err
    assert len({(tmp_path / f"rank{rank}").read_text() for rank in range(n)}) == 1


@pytest.mark.parametrize(("n", "words"), [ONE, TWO])
def test_where_that_does_not_help_the_run_ends_with_advice(tmp_path: Path, n: int, words: str) -> None:
    call, fault = f"{ROLLED} {words}", (n - 1, NAN, STEPS)
    first, *others = advect_ranks(n, call, cwd=tmp_path, code=2, before=plant, arguments=fault)
    last = first.err.splitlines()[-1]
    assert last.startswith("advect: the loss or its gradient was not finite in")
    assert "also after going back to a checkpoint with a lower rate; lower --learning-rate" in last
    assert all("Traceback" not in rank.err for rank in (first, *others)) and all(rank.err == "" for rank in others)
    advect_ranks(n, f"{call} --max-bad-steps 100", cwd=tmp_path)  # and what is left can go on


def test_without_a_checkpoint_the_first_row_ends_the_run(tmp_path: Path) -> None:
    call = f"{ROLLED} {ONE[1]} --save-every 0"
    (ended,) = advect_ranks(1, call, cwd=tmp_path, code=2, before=plant, arguments=(0, NAN, STEPS))
    assert "; lower --learning-rate" in ended.err and ended.err.endswith("; there is no checkpoint\n")


@pytest.mark.parametrize(
    ("n", "words", "places"),
    [
        (*ONE, [("step", 16), ("rename", 5), ("step", 2)]),
        pytest.param(*TWO, [("step", 12), ("step", 16), ("rename", 5), ("step", 2)], marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_rolled_back_and_killed_ends_as_one_not_killed(
    tmp_path: Path, n: int, words: str, places: list[tuple[str, int]]
) -> None:
    ends = []
    for name, kills in (("whole", []), ("killed", places)):
        call = f"{ROLLED} {words}".replace("--run-dir run", f"--run-dir {name}")
        fault: Callable[..., dict] = lambda *kill: {"before": plant, "arguments": (n - 1, NAN, STEPS, LOW, *kill)}
        for place in kills:
            with ranks(n, call, cwd=tmp_path, **fault((0, *place))) as run:
                assert run.wait()[0].code == -9, place
        advect_ranks(n, call, cwd=tmp_path, **fault())
        ends.append(end_of(tmp_path / name))
        ends[-1]["bad"] = [row for row in rows(tmp_path / name) if "bad_step" in row or "rate" in row]
    assert ends[0] == ends[1]


def test_a_short_run_without_a_finite_step_is_told_to_have_learned_nothing_and_its_rows_are_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from advect.cli import run
    from advect.losses.flow_matching import FlowMatching

    whole = FlowMatching.weighted
    monkeypatch.setattr(FlowMatching, "weighted", lambda *a: whole(*a) * float("inf"))
    monkeypatch.chdir(tmp_path)
    flags = SMALL.replace("train moons", "moons --max-steps 4 --batch-size 64 --device cpu").split()
    with pytest.raises(UserError, match="not finite in any of the 4 steps, so that nothing was learned; lower"):
        run(["train", *flags])
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    found = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert [row["bad_step"]["loss"] for row in found if "bad_step" in row] == ["inf"] * 4
