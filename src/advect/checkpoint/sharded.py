"""Sharded state as PyTorch distributed checkpoints in safetensors files.

Every process writes its shards, and reads only the rows it needs, so another number of processes can resume.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from advect.distributed.comm import background_group, control_group, current
from advect.distributed.parallel import local

SHARDS = "state/shards"
"""Their folder in a checkpoint."""


@contextmanager
def _exchange() -> Iterator[None]:
    """Re-raise the first process's error from PyTorch's CheckpointException; silence its warnings about local
    reads.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except CheckpointException as failed:
            error, _ = next(iter(failed.failures.values()))
            raise error from failed


def save_shards(folder: Path, tensors: dict[str, Tensor]) -> list[Path]:
    """Write this process's shards of ``tensors`` into ``folder``; return its files. Collective."""
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save

    with _exchange():
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        save(tensors, storage_writer=writer, process_group=background_group())
    return sorted(folder.glob(f"shard-{current().rank + 1:05d}-*"))


def load_shards(folder: Path, like: Mapping[str, Tensor], group: str) -> tuple[dict[str, Tensor], Collection[str]]:
    """Load ``group``.NAME for each NAME in ``like``, sharded as ``like`` is; return local shards and missing names.
    Collective.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    there = names(folder, group)
    missing = like.keys() - there - {"updates"}
    if missing:
        return {}, missing
    wanted = {f"{group}.{name}": torch.empty_like(tensor) for name, tensor in like.items() if name in there}
    with _exchange():
        alone = not any(hasattr(x, "to_local") for x in wanted.values())
        reader = HuggingFaceStorageReader(str(folder))
        load(wanted, storage_reader=reader, process_group=control_group(), no_dist=alone)
    return {name.removeprefix(f"{group}."): local(tensor) for name, tensor in wanted.items()}, ()


def names(folder: Path, group: str) -> set[str]:
    """Names of the tensors of a group."""
    found: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            found |= {name.removeprefix(f"{group}.") for name in tensors.keys() if name.startswith(f"{group}.")}  # noqa: SIM118
    return found


def assemble(folder: Path, groups: Collection[str]) -> dict[str, Tensor]:
    """Load the whole tensors of ``groups``, without the prefix; later groups win. For one process."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    with _exchange():
        metadata = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        wanted: dict[str, Tensor] = {}
        for group in groups:
            for name in (name for name in metadata if name.startswith(f"{group}.")):
                facts = metadata[name]
                wanted[name] = torch.empty(facts.size, dtype=facts.properties.dtype)  # type: ignore[union-attr]
        load(wanted, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return {name.partition(".")[2]: tensor for name, tensor in wanted.items()}
