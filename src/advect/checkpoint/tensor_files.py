"""Tensors on the disk, as safetensors: whole, as far as this process needs them, or spread over processes."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from advect.core.errors import UserError
from advect.core.files import error_number, regular
from advect.distributed.comm import background_group, control_group, current
from advect.distributed.parallel import local, local_range

UNREADABLE = (SafetensorError, OSError, RuntimeError)
"""What safetensors raises of a file that is damaged, closed to this user, or gone."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file: the one writer of weights, averages, states and cached tensors.

    Takes tensors of any device, strides and shared memory. The same content makes the same bytes. Raises OSError
    naming ``path``.
    """
    written, seen = {}, set[int]()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        place = whole.untyped_storage().data_ptr()
        written[name] = whole.clone() if whole.numel() and place in seen else whole
        seen.add(place)
    path.touch()
    mode = path.stat().st_mode  # as the process makes files; the library replaces it by one for its owner alone
    try:
        save_file(written, path, metadata=None if header is None else dict(header))
        path.chmod(mode)
    except SafetensorError as error:
        number = error_number(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
    if header is not None and len(header) > 1:
        _sort_entries(path)


def _sort_entries(path: Path) -> None:
    """Put the entries of a header, which safetensors writes in random order, into that of their names."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        content = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(size)
        if len(content) == size:
            file.seek(8)
            file.write(content)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Load a safetensors file. Raises UserError if it is damaged."""
    try:
        return load_file(regular(path))
    except UNREADABLE as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); take another checkpoint") from error


def load_part(path: Path, owners: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Load a safetensors file; of sharded tensors, this process's rows.

    ``owners`` are parameters by name; a tensor may carry a prefix before the parameter's name.
    """
    with open_tensors(path) as file:
        part = {}
        for name in file.keys():  # noqa: SIM118
            owner = owners.get(name, owners.get(name.partition(".")[2]))
            rows = None if owner is None else local_range(owner)
            part[name] = file.get_tensor(name) if rows is None else file.get_slice(name)[rows.start : rows.stop]
        return part


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a safetensors file."""
    with open_tensors(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Context with an open safetensors file. Raises UserError if it cannot be read."""
    try:
        with safe_open(regular(path), framework="pt") as file:
            yield file
    except UNREADABLE as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); take another checkpoint") from error


def check_same_shapes(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, Tensor], source: Path) -> None:
    """Raise UserError naming the first differences between the shapes of a file and of a network."""
    differs = [
        f"{name} is {found[name]} there and {tuple(wanted[name].shape)} here"
        for name in wanted
        if name in found and found[name] != tuple(wanted[name].shape)
    ]
    differs += [f"{name} is only here" for name in wanted if name not in found]
    differs += [f"{name} is only there" for name in found if name not in wanted]
    if differs:
        more = f" and {len(differs) - 3} more" if len(differs) > 3 else ""
        raise UserError(
            f"{source} belongs to another network: {'; '.join(differs[:3])}{more}; "
            "use the flags that the run was started with (its config.yaml)"
        )


SHARDS = "state/shards"
"""Their folder in a checkpoint."""


@contextmanager
def _exchange() -> Iterator[None]:
    """Re-raise the first process's error from PyTorch's CheckpointException."""
    from torch.distributed.checkpoint.api import CheckpointException

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
    there = names(folder, group)
    missing = like.keys() - there - {"updates"}
    if missing:
        return {}, missing
    wanted = {f"{group}.{name}": torch.empty_like(tensor) for name, tensor in like.items() if name in there}
    _read(folder, wanted, alone=not any(hasattr(x, "to_local") for x in wanted.values()))
    return {name.removeprefix(f"{group}."): local(tensor) for name, tensor in wanted.items()}, ()


def _read(folder: Path, wanted: dict[str, Tensor], *, alone: bool) -> None:
    """Read shards into the tensors ``wanted``; collective unless ``alone``."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict  # `load` warns where it is alone

    with _exchange():
        group = None if alone else control_group()
        _load_state_dict(wanted, HuggingFaceStorageReader(str(folder)), group, no_dist=alone)  # pyright: ignore


def names(folder: Path, group: str) -> set[str]:
    """Names of the tensors of a group."""
    found: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(regular(file), framework="pt") as tensors:
            found |= {name.removeprefix(f"{group}.") for name in tensors.keys() if name.startswith(f"{group}.")}  # noqa: SIM118
    return found


def assemble(folder: Path, groups: Collection[str]) -> dict[str, Tensor]:
    """Load the whole tensors of ``groups``, without the prefix; later groups win. For one process."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    for file in folder.glob("*.safetensors"):
        regular(file)  # as PyTorch does not look
    with _exchange():
        metadata = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    wanted: dict[str, Tensor] = {}
    for group in groups:
        for name in (name for name in metadata if name.startswith(f"{group}.")):
            facts = metadata[name]
            wanted[name] = torch.empty(facts.size, dtype=facts.properties.dtype)  # type: ignore[union-attr]
    _read(folder, wanted, alone=True)
    return {name.partition(".")[2]: tensor for name, tensor in wanted.items()}
