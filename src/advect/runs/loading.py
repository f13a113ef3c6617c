"""From files to a flow."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from advect.core.errors import UserError
from advect.runs.build import build_network, pick_device, pick_precision
from advect.runs.card import Card
from advect.runs.flow import Flow, Sampler
from advect.runs.method import build_noise, build_path, label_dropout
from advect.training.checkpoint import find_checkpoint, verify_checkpoint
from advect.training.state import DATA, EMA, MODEL, check_same_shapes, load_weights


def load(path: str | Path, *, ema: bool = True, device: str = "auto") -> Flow:
    """Load a trained flow from a run folder, a checkpoint or a weight file, with EMA weights by default.

    A run folder means its newest checkpoint, which is verified first. Raises UserError when nothing is there, or the
    checkpoint is damaged or of a newer format.
    """
    path = Path(path)
    if path.is_file():
        if not ema and path.name == EMA:
            raise UserError(
                f"{path} holds the averaged weights, and the others are asked for; give the {MODEL} beside it"
            )
        file = path
    else:
        checkpoint = find_checkpoint(path)
        verify_checkpoint(checkpoint)
        file = weight_file(checkpoint, ema=ema)
    card = read_card(file)
    place = pick_device(device)
    net = build_network(card.network, card.spec)
    weights = load_weights(file)
    check_same_shapes(weights, net.state_dict(), file)
    net.load_state_dict(weights)
    return flow_of(card, net.to(place).eval(), place)


def weight_file(checkpoint: Path, *, ema: bool) -> Path:
    """The file in a checkpoint that :func:`load` takes: the averaged weights where they are asked for and there."""
    return checkpoint / (EMA if ema and (checkpoint / EMA).is_file() else MODEL)


def flow_of(card: Card, net: nn.Module, place: torch.device) -> Flow:
    """The flow of a network on the device ``place``, with all else as the card says."""
    output, training = card.config["output"], card.config["training"]
    return Flow(
        net,
        card.spec,
        card.transform,
        path=build_path(card.method, card.noise),
        source=build_noise(card.noise, card.noise_tensors),
        prediction=card.method.prediction,
        margin=card.method.margin,
        null=label_dropout(card.method, card.spec) > 0,
        facts=card.facts,
        sampler=Sampler(solver=output["solver"], steps=output["sample_steps"], grid=output["grid"]),
        device=place,
        autocast=pick_precision(training["mixed_precision"], place, training.get("half", "auto")),
    )


def read_card(file: Path) -> Card:
    """The card of a weight file, with the tensors that lie beside it in its checkpoint."""
    try:
        with safe_open(file, framework="pt") as tensors:
            text = (tensors.metadata() or {}).get("advect")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is not a whole safetensors file ({error}); take another checkpoint") from error
    beside = file.parent / DATA
    return Card.from_text(text, file, load_weights(beside) if beside.is_file() else None)
