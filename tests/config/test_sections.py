"""Sections choose parts by name, and flags follow from the parts' constructors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from msgspec import Meta

from advect.config.config import TrainingConfig
from advect.config.flags import parse_sections
from advect.config.section import Section, part
from advect.core import registry
from advect.core.errors import UserError


class Wheel:
    part_kind = "wheel"
    part_given = ("mass",)


class Engine:
    part_kind = "engine"


@pytest.fixture(autouse=True)
def parts() -> Iterator[None]:
    @registry.register("round")
    @dataclass(frozen=True)
    class Round(Wheel):
        """A round wheel.

        Args:
            radius: in metres.
        """

        radius: float = 0.3
        mass: float = 1.0

        def __post_init__(self) -> None:
            if self.radius <= 0:
                raise UserError(f"Round.radius must be > 0, got {self.radius}")

    @registry.register("square")
    @dataclass(frozen=True)
    class Square(Wheel):
        """A square wheel. Rarely used."""

        side: int | None = None

    @registry.register("diesel")
    class Diesel(Engine):
        """Burns oil.

        Args:
            litres: of the cylinders.
        """

        def __init__(self, tank: str, *, litres: tuple[float, ...] = (2.0,), loud: bool = True) -> None:
            self.tank, self.litres, self.loud = tank, litres, loud

    yield
    for cls in (Round, Square, Diesel):
        registry.unregister(cls)


@dataclass(frozen=True, kw_only=True)
class Car(Section):
    """A car."""

    wheel: str = part("wheel", default="round")
    """What it rolls on."""
    engine: str | None = part("engine", default=None, prefix="")
    """What drives it."""
    doors: Annotated[int, Meta(ge=1)] = 4
    """How many
    doors."""
    colour: Literal["red", "blue"] = "red"

    usual = frozenset({"wheel", "engine"})


def parse(words: str) -> Car:
    car = parse_sections({"car": Car()}, words.split(), prog="drive", description="Drive.")["car"]
    assert isinstance(car, Car)
    return car


def test_a_choice_brings_the_flags_of_its_constructor() -> None:
    assert parse("").values() == {"wheel": "round", "wheel_radius": 0.3, "engine": None, "doors": 4, "colour": "red"}
    car = parse("--wheel square --wheel-side 3 --engine diesel --litres 1 2 --no-loud --doors 2")
    assert car.wheel_side == 3 and car.litres == (1.0, 2.0) and car.loud is False
    made = car.build("engine", tank="full", nonsense=1)
    assert (made.tank, made.litres, made.loud) == ("full", (1.0, 2.0), False)
    assert Car.of(car.values()) == car and car.build("wheel", mass=2.0).side == 3


def test_another_choice_forgets_the_options_of_the_last() -> None:
    car = Car(wheel="square", options={"wheel_side": 3})
    assert dict(car.replaced(wheel="round").options) == {} and car.replaced(doors=2).wheel_side == 3


def test_an_option_that_no_part_has_is_refused() -> None:
    with pytest.raises(UserError, match=r"Car has no value 'litres'"):  # no engine
        Car().replaced(litres=(3.0,))
    for value in ("batch_sise", "bogus"):
        with pytest.raises(UserError, match=f"TrainingConfig has no value {value!r}"):
            TrainingConfig.of({value: 3})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--wheel rund", r"--wheel rund is not known; did you mean 'round'\?"),
        ("--wheel-side 3", "--wheel-side is not a flag of drive; it goes with --wheel square"),
        ("--litres 3", "--litres is not a flag of drive; it goes with --engine diesel"),
        ("--wheel-rad 3", "--wheel-rad is not a flag of drive; did you mean '--wheel-radius'"),
        ("--wheel-mass 3", "--wheel-mass is not a flag of drive"),
        ("--doors 0", "--doors must be at least 1, got 0"),
        ("--doors many", "many"),
        ("more", "'more' is one word too many"),
    ],
)
def test_mistakes(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(words)


def test_what_a_part_refuses_names_the_flag() -> None:
    with pytest.raises(UserError, match=r"^--wheel-radius must be > 0, got -1"):
        parse("--wheel-radius -1").build("wheel")
    with pytest.raises(UserError, match=r"--wheel-side does not go with --wheel round; did you mean"):
        Car(options={"wheel_side": 3}).build("wheel")
    with pytest.raises(AttributeError, match="no value 'wings'"):
        Car().wings  # noqa: B018


def test_help_shows_the_usual_flags_and_help_all_shows_all(capsys: pytest.CaptureFixture) -> None:
    for word, doors in (("--help", False), ("--help-all", True)):
        with pytest.raises(SystemExit):
            parse(word)
        text = capsys.readouterr().out
        assert ("--doors" in text) is doors and ("--help-all" in text) is not doors
        for words in ("What it rolls on. round: A round wheel. square: A square wheel.", "--engine {diesel}"):
            assert words in " ".join(text.replace("│", " ").split()), text
        assert "None" not in text
        assert ("in metres" in text) is doors
    with pytest.raises(SystemExit):
        parse("--wheel round --help")
    assert "in metres" in capsys.readouterr().out  # the words choose the wheel


def test_a_flag_has_one_owner() -> None:
    @registry.register("greedy")
    @dataclass(frozen=True)
    class Greedy(Engine):
        doors: int = 1

    try:
        with pytest.raises(UserError, match="makes --doors, which is a flag already"):
            parse("--engine greedy")
    finally:
        registry.unregister(Greedy)
