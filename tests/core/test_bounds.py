"""Ranges of numbers declared with arguments: one declaration for constructors, flags, files and the help."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from msgspec import Meta

from advect.config.arguments import parse_train
from advect.config.config import MethodConfig, TrainingConfig
from advect.core.bounds import Count, Seed, Share, bounded, bounds_of, check_bounds, in_words, interval
from advect.core.errors import UserError
from advect.couplings import ConditionalOT
from advect.model.sampler_config import SamplerConfig, plan_sweep
from advect.networks import MLP, UNet
from advect.solvers import get_solver, t_grid

WHOLE = Meta(ge=1, le=65_536)


@pytest.mark.parametrize(
    ("annotation", "found"),
    [
        (Annotated[int, WHOLE], WHOLE),
        (Annotated[int, WHOLE] | None, WHOLE),
        (tuple[Annotated[int, WHOLE], ...] | str, WHOLE),
        (int | tuple[int, int], None),
    ],
)
def test_a_range_is_found_within_unions_and_tuples(annotation: Any, found: Meta | None) -> None:
    assert bounds_of(annotation) == found


@pytest.mark.parametrize("value", [1, 65_536, np.int64(3), (1, 2), [7], None, True, "many", torch.tensor(0), math.pi])
def test_numbers_within_and_other_things_pass(value: object) -> None:
    check_bounds("width", value, WHOLE)


@pytest.mark.parametrize("value", [0, 65_537, -1, 10**30, math.nan, math.inf, (1, 0), np.float32("nan"), np.int64(0)])
def test_numbers_outside_are_refused_in_one_sentence(value: object) -> None:
    words = r"width must be (finite and )?at least 1 and at most 65,536, got .{1,40}; 256 is usual$"
    with pytest.raises(UserError, match=words):
        check_bounds("width", value, WHOLE, 256)


def test_infinity_passes_only_where_there_is_no_upper_end() -> None:
    check_bounds("penalty", math.inf, Meta(ge=0))
    ConditionalOT(penalty=math.inf)
    with pytest.raises(UserError, match="must be finite and at least 0, got nan"):
        ConditionalOT(penalty=math.nan)


def test_words_and_intervals_tell_open_ends() -> None:
    assert in_words(Meta(gt=0, lt=1)) == "above 0 and below 1" and interval(Meta(gt=0, lt=1)) == "(0, 1)"
    assert interval(Meta(ge=0, le=1000)) == "[0, 1000]"
    assert interval(Meta(ge=1, le=2**31 - 1)) == "at least 1" and interval(Meta(ge=0)) == "at least 0"


@bounded
@dataclass(frozen=True)
class Mixed:
    """A bounded dataclass."""

    share: Share
    seed: Seed = 0


class Child(Mixed):
    """Inherits the constructor."""


@bounded
def scaled(x: float, *, by: Annotated[float, Meta(gt=0)] = 1.0) -> float:
    """A bounded function."""
    return x * by


def test_classes_subclasses_and_functions_check_given_arguments_by_place_and_by_name() -> None:
    assert Mixed(0.5, 3) == Mixed(share=0.5, seed=3) and scaled(2.0, by=3.0) == 6.0
    with pytest.raises(UserError, match=r"^Mixed\.share must be at least 0 and below 1, got 1$"):
        Mixed(1)
    with pytest.raises(
        UserError, match=r"^Child\.seed must be at least 0 and below 2\^63, got 18446744073709551616; 0 is"
    ):
        Child(0.5, 2**64)
    with pytest.raises(UserError, match=r"^by must be above 0, got 0; 1\.0 is usual"):
        scaled(1.0, by=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MLP(2, width=10**6),
        lambda: MLP(2, depth=10**9),
        lambda: UNet((1, 8, 8), channel_mult=(1, 10**9)),
        lambda: SamplerConfig(steps=10**8),
        lambda: SamplerConfig(guidance=1e300),
        lambda: SamplerConfig(diffusion=1e300),
        lambda: SamplerConfig(image_size=(8, 2**31)),
        lambda: plan_sweep(SamplerConfig("euler", 10, "uniform"), lambda c: c.steps, nfes=[2**33]),
        lambda: t_grid(10**8),
        lambda: get_solver("dopri5").__class__(max_steps=2**40),
        lambda: TrainingConfig(seed=2**64),
        lambda: TrainingConfig(batch_size=2**31),
        lambda: MethodConfig(sigma_min=2.0),
    ],
)
def test_absurd_numbers_are_refused_in_python_before_memory_is_taken(make: Callable[[], object]) -> None:
    with pytest.raises(UserError, match="must be"):
        make()


@pytest.mark.parametrize(
    "words",
    [
        ["--width", "100000"],
        ["--depth", "2147483648"],
        ["--batch-size", "2147483648"],
        ["--seed", "18446744073709551616"],
        ["--sigma-min", "2"],
        ["--times", "logit-normal", "--times-std", "1e300"],
        ["--sample-steps", "100000000"],
        ["--ema-also", "0.9", "1.5"],
        ["--learning-rate", "nan"],
        ["--max-minutes", "inf"],
    ],
)
def test_flags_name_themselves_and_the_range_of_the_constructor(words: list[str]) -> None:
    with pytest.raises(UserError, match=rf"^{words[-2] if words[-2].startswith('--') else words[0]} must be"):
        parse_train(["moons", *words])


def test_help_shows_the_range(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_train(["moons", "--help-all"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "units in each hidden layer; [1, 65536]." in text and "Seed of weights" in text and "at least 0." in text


def test_more_parts_of_a_batch_than_samples_are_refused() -> None:
    with pytest.raises(UserError, match="--accumulate 64 is more than the samples of a batch, 32"):
        TrainingConfig(batch_size=32, accumulate=64)


def test_whole_numbers_beyond_floats_are_refused_as_others() -> None:
    with pytest.raises(UserError, match="--n must be at least 1 and at most 2,147,483,647, got 9999"):
        check_bounds("--n", 10**400 - 1, bounds_of(Count))
