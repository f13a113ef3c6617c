"""Base class of networks, and argument checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from advect.core.errors import UserError, did_you_mean
from advect.core.types import GIVEN, STEP, Conditions


class FlowNetwork(nn.Module):
    """``net(x_t (B, *S), t (B,), cond) -> (B, *S)``.

    A run sets ``shape`` S or ``dim``, ``conditions``, ``grad_checkpointing`` and ``outputs``; other arguments are
    flags. With ``outputs`` 2, a velocity and a score, the result has both one after the other on axis 1. With
    ``inputs`` 3, the channels of x_t are followed by as many of each mask (see :class:`WithGiven`).
    """

    part_kind: ClassVar[str] = "network"
    part_given: ClassVar[tuple[str, ...]] = (
        "shape",
        "dim",
        "conditions",
        "grad_checkpointing",
        "inputs",
        "outputs",
    )
    takes: ClassVar[Literal["vector", "image", "sequence"]]
    """Kind of data: S is (D,), (C, H, W) or (L, C)."""
    channels_last: ClassVar[bool] = False
    """Whether this memory format is faster."""

    def check_size(self, shape: Sequence[int]) -> None:
        """Raise UserError unless the network takes samples of ``shape`` beside those that it was made for."""
        raise UserError(f"{type(self).__name__} takes samples of one size; leave the image size out, or train a DiT")


class VelocityAndScore(nn.Module):
    """Two networks of the same inputs: their outputs (B, *S) one after the other on axis 1."""

    def __init__(self, velocity: nn.Module, score: nn.Module) -> None:
        super().__init__()
        self.velocity, self.score = velocity, score

    def check_size(self, shape: Sequence[int]) -> None:
        """Raise UserError unless both networks take samples of ``shape``."""
        for net in (self.velocity, self.score):
            net.check_size(shape)  # pyright: ignore[reportCallIssue]

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        return torch.cat([self.velocity(x_t, t, cond), self.score(x_t, t, cond)], 1)


class WithGiven(nn.Module):
    """``net`` of three inputs, told which entries of x_t (B, *S) are known, ``cond["given"]`` (B, *S); see ``GIVEN``.

    The network sees the known values without noise, never x_t there, and 0 where the data lack a value, each marked by
    a mask beside it on the axis of the channels. Without the condition all of x_t is to be drawn.
    """

    def __init__(self, net: Any, takes: str) -> None:
        super().__init__()
        self.net, self.axis = net, -1 if takes == "sequence" else 1

    def check_size(self, shape: Sequence[int]) -> None:
        """Raise UserError unless the network takes samples of ``shape``."""
        self.net.check_size(shape)

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        given = (cond or {}).get(GIVEN)
        rest = {name: value for name, value in (cond or {}).items() if name != GIVEN} or None
        if given is None:
            known = absent = torch.zeros_like(x_t)
        else:
            known, absent = given.isfinite(), given.isinf()
            x_t = torch.where(known, given.to(x_t.dtype), torch.where(absent, 0.0, x_t))
        return self.net(torch.cat([x_t, known.to(x_t.dtype), absent.to(x_t.dtype)], self.axis), t, rest)


class TokenLogits(nn.Module):
    """``net`` of K + 1 channels a token, for logits (B, L, K) of tokens x_t (B, L, K): the last one marks masks.

    Without it masks were rows of zeros, which have no direction for a network to normalise.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def check_size(self, shape: Sequence[int]) -> None:
        """Raise UserError unless the network takes samples of ``shape``."""
        self.net.check_size(shape)

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        masks = 1 - x_t.sum(-1, keepdim=True)
        return self.net(torch.cat([x_t, masks], -1), t, cond)[..., :-1]


class TwoTimes(nn.Module):
    """``net`` told where a step ends, for the average velocity over it: t (B, 2) are its start and end.

    t (B,) are steps of no length, so that the output is the velocity there. ``net`` sees the start as its time and the
    length as the condition ``STEP``, a number: of waves, losses with derivatives in time grow without bound. The
    condition starts without effect, so that the weights of a flow are a start.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def check_size(self, shape: Sequence[int]) -> None:
        """Raise UserError unless the network takes samples of ``shape``."""
        self.net.check_size(shape)

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        start, length = (t, torch.zeros_like(t)) if t.ndim == 1 else (t[:, 0], t[:, 1] - t[:, 0])
        return self.net(x_t, start, {**(cond or {}), STEP: length[:, None]})


def check_inputs(net: str, x_t: Tensor, t: Tensor, shape: Sequence[int | str]) -> None:
    """Raise UserError unless x_t is (B, *shape) and t (B,); a letter in ``shape`` matches any size."""
    right = x_t.ndim == len(shape) + 1 and all(
        isinstance(wanted, str) or wanted == got for wanted, got in zip(shape, x_t.shape[1:], strict=True)
    )
    if not right:
        raise UserError(f"this {net} takes x_t of shape (B, {', '.join(map(str, shape))}), got {tuple(x_t.shape)}")
    if t.shape == (x_t.shape[0], 2):
        raise UserError(
            f"this {net} takes one time a sample, got t of shape {tuple(t.shape)}, the starts and ends of steps; wrap "
            "it in networks.base.TwoTimes, or take a loss such as FlowMatching"
        )
    if t.shape != x_t.shape[:1]:
        raise UserError(f"t must have shape ({len(x_t)},), one time a sample, got {tuple(t.shape)}")


def check_choice(net: str, name: str, value: str, choices: Sequence[str]) -> None:
    """Raise UserError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise UserError(f"{net}.{name} has no choice {value!r}{did_you_mean(str(value), choices)}")


def check_divisible(net: str, sizes: Sequence[int], factor: int, why: str, *, other: str) -> None:
    """Raise UserError, with ``why`` and an ``other`` fix, unless the last two sizes are multiples of ``factor``."""
    for name, size in zip(("height", "width"), sizes[-2:], strict=True):
        if size % factor:
            below, above = size - size % factor, size - size % factor + factor
            nearest = f"{below} and {above}" if below else f"{above}"
            raise UserError(
                f"{net}.shape {tuple(sizes)} must have a {name} divisible by {factor}, since {why}, got {size}; "
                f"use {nearest}, or {other}"
            )
