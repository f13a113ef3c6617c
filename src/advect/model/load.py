"""From files to a flow."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from advect.checkpoint.manifest import find_weights, verify_checkpoint
from advect.checkpoint.weights import check_same_shapes, load_weights, read_shapes
from advect.config.build import build_network, build_path, build_source_distribution, label_dropout
from advect.core.device import pick_precision
from advect.core.errors import UserError
from advect.distributed.context import pick_device
from advect.model.flow import Flow
from advect.model.metadata import ModelMetadata
from advect.model.sampler_config import SamplerConfig
from advect.training.state import DATA, EMA_FILE, MODEL

CARD, AVERAGE = "advect", "average"
"""What the header of a weight file holds: its card, and of an average that ``advect ema`` made, which it is."""


def load(path: str | Path, *, ema: bool | float = True, device: str | torch.device = "auto") -> Flow:
    """Load a trained flow from a run folder, a checkpoint or a weight file.

    ``ema`` True takes the averaged weights, where there are any, False the others, and a number the average of that
    decay, one of the run's ``--ema-decay`` and ``--ema-also``. A run folder means its newest checkpoint, which is
    verified first, and ``RUN/checkpoints/best`` the one that it names. Raises UserError when nothing is there, or the
    checkpoint is damaged or of a newer format.
    """
    file = found = find_weights(Path(path))
    if found.is_file():
        _check_file(found, ema)
    else:
        verify_checkpoint(found)
        file = weight_file(found, ema=ema)
    card = read_model_metadata(file)
    place = pick_device(device)
    net = build_network(card.network, card.spec)
    weights = load_weights(file)
    check_same_shapes(read_shapes(file), net.state_dict(), file)
    net.load_state_dict(weights)
    return flow_of(card, net.to(place).eval(), place)


def _check_file(file: Path, ema: bool | float) -> None:
    if not isinstance(ema, bool):
        raise UserError(f"ema is {ema}, and {file} is one file of weights; give the folder that it is in")
    if not ema and (file.name.startswith("ema") or AVERAGE in _header(file)):
        raise UserError(
            f"{file} holds averaged weights, and the others are asked for; give the {MODEL} of a checkpoint"
        )


def weight_file(checkpoint: Path, *, ema: bool | float) -> Path:
    """The weight file of a checkpoint that ``ema`` means; see :func:`load`."""
    if not (checkpoint / MODEL).is_file() and list(checkpoint.glob("ema-length-*.safetensors")):
        raise UserError(f"{checkpoint} is a snapshot for advect ema; give the file that it writes, or the run folder")
    main = checkpoint / EMA_FILE
    if isinstance(ema, bool):
        return main if ema and main.is_file() else checkpoint / MODEL
    decay = read_model_metadata(checkpoint / MODEL).config["training"]["ema_decay"]
    files = {decay: main} if main.is_file() else {}
    for file in sorted(checkpoint.glob("ema-[0-9]*.safetensors")):
        files[float(file.stem.removeprefix("ema-"))] = file
    if ema not in files:
        raise UserError(
            f"{checkpoint} has no average of decay {ema}"
            + (f"; it has {', '.join(map(str, files))}" if files else ": it was trained with --no-use-ema")
        )
    return files[ema]


def flow_of(card: ModelMetadata, net: nn.Module, place: torch.device) -> Flow:
    """The flow of a network on the device ``place``, with all else as the card says."""
    output, training = card.config["output"], card.config["training"]
    return Flow(
        net,
        card.spec,
        card.transform,
        path=build_path(card.method, card.noise),
        source=build_source_distribution(card.noise, card.source_tensors),
        prediction=card.method.prediction,
        margin=card.method.margin,
        null=label_dropout(card.method, card.spec) > 0,
        facts=card.facts,
        sampler=SamplerConfig(solver=output["solver"], steps=output["sample_steps"], grid=output["grid"]),
        device=place,
        autocast=pick_precision(training["mixed_precision"], place, training.get("half", "auto")),
    )


def read_model_metadata(file: Path) -> ModelMetadata:
    """The card of a weight file, with the tensors that lie beside it in its checkpoint."""
    beside = file.parent / DATA
    return ModelMetadata.from_text(_header(file).get(CARD), file, load_weights(beside) if beside.is_file() else None)


def read_average(file: Path) -> dict[str, float] | None:
    """Length, step and error of an average that ``advect ema`` made; None for any other weight file."""
    text = _header(file).get(AVERAGE)
    return None if text is None else json.loads(text)


def _header(file: Path) -> dict[str, str]:
    try:
        with safe_open(file, framework="pt") as tensors:
            return tensors.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is not a whole safetensors file ({error}); take another checkpoint") from error
