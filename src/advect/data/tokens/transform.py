"""Tokens as rows of numbers: the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from advect.core.categorical import codes_of, one_hot
from advect.core.errors import UserError
from advect.data.transforms import Transform

MOST = 65_536
"""Largest vocabulary: each token is a row of as many numbers."""

Code = Annotated[int, Meta(ge=-(2**53), le=2**53)]


@dataclass(frozen=True)
class TokenTransform(Transform):
    """Codes (B, L) of tokens, NaN where there is none, as rows (B, L, K) of which number k is 1 for ``codes[k]``.

    Raises UserError for a vocabulary that is not rising, or too large.
    """

    codes: tuple[Code, ...]
    kind: ClassVar[str] = "tokens"

    def __post_init__(self) -> None:
        object.__setattr__(self, "codes", tuple(int(code) for code in self.codes))
        if not 1 <= len(self.codes) <= MOST or any(a >= b for a, b in zip(self.codes, self.codes[1:], strict=False)):
            raise UserError(f"a vocabulary has 1 to {MOST:,} codes that rise, got {len(self.codes)} others")

    @cached_property
    def _codes(self) -> Tensor:
        return torch.tensor(self.codes, dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        """Raises UserError for a value outside the vocabulary."""
        codes, absent = (
            self._codes.to(x.device),
            x.isnan() if x.is_floating_point() else torch.zeros_like(x, dtype=torch.bool),
        )
        wanted = torch.where(absent, self.codes[0], x).to(torch.float64)
        place = torch.searchsorted(codes.double(), wanted.contiguous()).clamp(max=len(codes) - 1)
        unknown = codes[place].double() != wanted
        if bool(unknown.any()):
            raise UserError(
                f"the token {wanted[unknown][0].item():g} is not in the vocabulary of the training data, which has "
                f"{len(codes):,}; leave it out, or train on data that have it"
            )
        return one_hot(torch.where(absent, -1, place), len(codes))

    def inverse(self, x: Tensor) -> Tensor:
        place = codes_of(x)
        codes = self._codes.to(x.device)[place.clamp(min=0)].double()
        return torch.where(place < 0, torch.nan, codes)

    def log_det(self, elements: int) -> float:
        raise UserError("tokens have probabilities and no density; take log_prob_bound")

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind, "codes": list(self.codes)}
