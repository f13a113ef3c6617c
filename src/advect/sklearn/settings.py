"""Estimator arguments and options as configuration sections."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from advect.config.build import networks_for
from advect.config.config import MethodConfig, NetworkConfig, TrainingConfig, network
from advect.config.plan import make_plan, recipe_of
from advect.config.section import Section, value_types
from advect.core import registry
from advect.core.errors import UserError, did_you_mean

DEFAULTS: dict[str, Any] = {"lr_schedule": "cosine", "ema_decay": 0.999}
"""Defaults that differ from the command line's."""

STILL: dict[str, Any] = {"path": "trigonometric"}
"""Defaults for vectors, which are whitened: on this path a Gaussian stands still, so a network of output 0, as which
the MLP starts, is the Gaussian of the data."""

WIDE = 32
"""Columns of arrays and frames above which they are not whitened by default: of 64 pixels, whitening made the noise of
few rows as loud as what they show.
"""

FEW_ROWS = 1000
"""Most rows for which the hidden layers of vectors have 128 units."""

_ARGUMENTS = {"batch_size", "learning_rate", "device", "coupling", "label_dropout", "max_minutes"}
_ELSEWHERE = {"num_epochs": "steps", "max_steps": "steps", "seed": "random_state", "width": "hidden"}
_ELSEWHERE |= {"depth": "hidden", "model_channels": "hidden", "channel_mult": "hidden"}

_OF_RUNS = {"ema_also", "posthoc_ema", "posthoc_lengths", "posthoc_every"}
"""Options that need a run folder."""


@dataclass(frozen=True)
class Settings:
    """Configuration sections of a fit, options of the data, and steps."""

    method: MethodConfig
    training: TrainingConfig
    network: NetworkConfig
    data: dict[str, Any]
    steps: int
    drop_copies: bool = False


def resolve(
    options: Mapping[str, Any] | None,
    *,
    modality: str,
    hidden: int | Sequence[int] | None,
    labelled: bool,
    steps: int | None,
    rows: int,
    data_options: Sequence[str],
    arguments: Mapping[str, Any],
    columns: int = 0,
    objective: str = MethodConfig.objective,
) -> Settings:
    """Settings of a fit to ``rows`` rows of a modality, of so many ``columns`` if those may be whitened, by default
    with ``objective``.

    ``arguments`` are the estimator's section fields, ``options`` further flags with underscores. Raises UserError for
    an unknown name or a value out of range.
    """
    options, usual = dict(options or {}), registry.get("modality", modality).estimator  # pyright: ignore[reportAttributeAccessIssue]
    name = options.pop("network", usual.network)
    if name not in networks_for(modality):
        fitting = " or ".join(networks_for(modality))
        raise UserError(f"options['network'] is {name!r}, and the data are {modality}s; take {fitting}")
    data = {key: options.pop(key) for key in data_options if key in options}
    wide = columns > WIDE and "whiten" in data_options and "whiten" not in data
    if wide:
        data["whiten"] = False
    drop_copies = _value("drop_copies", options.pop("drop_copies", False), bool)
    sections: tuple[Section, ...] = (MethodConfig(), TrainingConfig(), network(name))
    steps = usual.steps if steps is None else int(steps)
    if arguments["learning_rate"] is None:
        arguments = {**arguments, "learning_rate": usual.learning_rate}
    for key in options:
        if key in _ARGUMENTS or key in _ELSEWHERE:
            raise UserError(f"options has {key!r}, which is an argument; give {_ELSEWHERE.get(key, key)}=...")
        if key in _OF_RUNS:
            raise UserError(f"options has {key!r}, which writes to a run folder; train with advect train for it")
    independent = arguments.get("coupling", "independent") == "independent"
    values = {**_defaults(modality, name, rows, still=independent and not wide), **options, **arguments}
    values.setdefault("objective", objective)
    chosen = {c.field: str(values[c.field]) for s in sections for c in s.choices() if c.field in values}
    for choice in (choice for section in sections for choice in section.choices()):
        name = values.get(choice.field)
        if name is not None and name not in choice.names():
            raise UserError(f"{choice.field} {name!r} is not known{did_you_mean(str(name), choice.names())}")
    sections = tuple(
        s.replaced(**{c.field: chosen[c.field] for c in s.choices() if c.field in chosen}) for s in sections
    )
    types = [value_types(section) for section in sections]
    known = [key for names in types for key in names]
    for key in values:
        if key not in known:
            known = [
                k
                for k in (*known, *data_options, "drop_copies", "network")
                if k not in _ELSEWHERE and k not in _ARGUMENTS
            ]
            raise UserError(f"options has {key!r}, which is no option{did_you_mean(str(key), known)}")
    values |= _sizes(sections[2].network, hidden, rows) | ({} if labelled else {"label_dropout": 0.0})
    method, training, net = (
        section.replaced(**{key: _value(key, values[key], names[key]) for key in names if key in values})
        for section, names in zip(sections, types, strict=True)
    )
    if method.masked and "whiten" in data_options:  # pyright: ignore[reportAttributeAccessIssue]
        data = {"whiten": False, **data}
    if data.get("holes") and not method.masked:  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError('options has holes=True, which a flow without a mask cannot train on; add mask="random"')
    plan = make_plan(training, recipe_of(modality), rows, steps=steps)  # pyright: ignore[reportArgumentType]
    training = training.replaced(lr_warmup_steps=plan.warmup)
    return Settings(method, training, net, data, steps, drop_copies)  # pyright: ignore[reportArgumentType]


def _defaults(modality: str, network: str, rows: int, *, still: bool) -> dict[str, Any]:
    """Defaults that differ from those of the command line, for vectors on which a Gaussian stands ``still`` or not."""
    if modality != "vector" or not still:
        return DEFAULTS
    if network != "mlp":
        return DEFAULTS | STILL
    return DEFAULTS | STILL | {"zero_output": True, "input_map": True, "gain": 0.4 if rows <= FEW_ROWS else 1.0}


def _sizes(network: str, hidden: int | Sequence[int] | None, rows: int) -> dict[str, Any]:
    """Width and depth by the network's argument names."""
    if hidden is None:
        hidden = {"mlp": (128 if rows <= FEW_ROWS else 256,) * 3, "unet": (32, 64)}.get(network)
        if hidden is None:
            return {}
    widths = (hidden,) * 3 if isinstance(hidden, int) else tuple(hidden)
    if not widths or not all(isinstance(w, int) and w >= 1 for w in widths):
        raise UserError(f"hidden must be a whole number >= 1 or several, got {hidden!r}; (256, 256, 256) is usual")
    if network == "unet":
        if any(w % widths[0] for w in widths):
            raise UserError(f"hidden of a U-Net must be multiples of its first number, got {widths}; try (32, 64)")
        own = {"model_channels": widths[0], "channel_mult": tuple(w // widths[0] for w in widths)}
        return {**own, "num_res_blocks": 1, "attention_resolutions": ()}
    if len(set(widths)) > 1:
        raise UserError(f"hidden must be equal widths, got {widths}; give {(max(widths),) * len(widths)}")
    return {"width": widths[0], "depth": len(widths) + (network == "mlp")}


def _value(key: str, value: Any, hint: Any) -> Any:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise UserError(f"{key} {value!r} is not known{did_you_mean(str(value), get_args(hint))}")
        return value
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    if value is None and NoneType in kinds:
        return None
    if isinstance(value, bool) != (bool in kinds):
        raise UserError(f"{key} must be {_words(kinds)}, got {value!r}")
    if float in kinds and isinstance(value, int | float):
        return float(value)
    if any(isinstance(value, get_origin(kind) or kind) for kind in kinds):
        return value
    raise UserError(f"{key} must be {_words(kinds)}, got {value!r}")


def _words(kinds: Sequence[Any]) -> str:
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "text", NoneType: "None"}
    return " or ".join(names.get(kind, str(kind)) for kind in kinds)


def warn(trouble: object) -> None:
    """Warn of it, with arguments for flags, at the line outside the package that led here."""
    words = re.sub("--([a-z-]+)", lambda found: found[1].replace("-", "_"), str(trouble))
    frame, level = sys._getframe(1), 2
    while frame is not None and frame.f_globals.get("__name__", "").startswith("advect."):
        frame, level = frame.f_back, level + 1
    warnings.warn(words, stacklevel=level)
