"""A moment of a run, held still in memory while it is written and training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from advect.training.parallel import local, whole_like


@dataclass
class Contents:
    """The files of a checkpoint: tensors by file and name with the file's header, and texts by file.

    Of a sharded run ``shards`` are this process's parts, as sharded tensors, under names that begin with a group such
    as ``model.``; the tensors of a file in ``gathered`` are those of its groups, later ones winning, and are put
    together from what all processes have written.
    """

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    shards: dict[str, Tensor] = field(default_factory=dict)
    gathered: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write all but the shards into ``folder``."""
        for name, tensors in self.tensors.items():
            self.write_tensors(folder / name, name, tensors)
        for name, text in self.texts.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")

    def write_tensors(self, path: Path, name: str, tensors: dict[str, Tensor]) -> None:
        """Write one file, with the header of ``name``."""
        path.parent.mkdir(exist_ok=True)
        save_file(tensors, path, metadata=self.headers.get(name))


class Stage:
    """Copies of tensors on the CPU. Those of a GPU go through pinned memory, which is kept for the next time."""

    def __init__(self) -> None:
        self._pinned: dict[str, Tensor] = {}

    @torch.no_grad()
    def copy(self, tensors: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
        """A copy of each tensor, or of this process's part of it, as a sharded tensor."""
        return {name: self._copied(tensor, f"{group}.{name}") for name, tensor in tensors.items()}

    def _copied(self, tensor: Tensor, key: str) -> Tensor:
        here = local(tensor.detach())
        if not here.is_cuda:
            return whole_like(here.clone(memory_format=torch.contiguous_format), tensor)
        if key not in self._pinned:
            self._pinned[key] = torch.empty(here.shape, dtype=here.dtype, pin_memory=True)
        return whole_like(self._pinned[key].copy_(here, non_blocking=True), tensor)

    def finish(self) -> None:
        """Wait until the copies from a GPU are done."""
        if self._pinned:
            torch.cuda.synchronize()
