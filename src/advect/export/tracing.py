"""Modules as files of ``torch.export`` and of ONNX, of any batch size."""

from __future__ import annotations

import inspect
import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from advect.core.errors import UserError, optional_import

LARGEST = 2**31 - 2**24
"""Bytes that a file of ONNX holds, in one message of protocol buffers."""


def trace(module: nn.Module, inputs: Sequence[Tensor], what: str) -> Any:
    """The exported program of ``module(*inputs)``, whose first axes are one batch of any size.

    ``inputs`` are the first argument, and those of ``*given``. Raises UserError, naming ``what``, for a part that
    cannot be traced.
    """
    batch = torch.export.Dim("batch", min=1)
    shapes: list[Any] = [{0: batch} for _ in inputs]
    fixed = sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in _parameters(module))
    dynamic = (*shapes[:fixed], *([tuple(shapes[fixed:])] if shapes[fixed:] else []))
    with torch.no_grad(), _quiet():
        try:
            return torch.export.export(module.eval(), tuple(inputs), dynamic_shapes=dynamic, strict=False)
        except Exception as error:  # anything that a part may do which has no place in a graph
            raise UserError(
                f"{what} has a part that torch.export cannot trace ({_first_line(error)}); give --model-units if it "
                "is the transform to data units, else sample with advect"
            ) from error


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    return list(inspect.signature(module.forward).parameters.values())


def to_torch_bytes(program: Any) -> bytes:
    """A file for ``torch.export.load``."""
    file = io.BytesIO()
    with _quiet():
        torch.export.save(program, file)
    return file.getvalue()


def to_onnx_bytes(program: Any, inputs: Sequence[str], outputs: Sequence[str], what: str) -> bytes:
    """A file for ONNX Runtime. Raises UserError without the extra, for an operator that ONNX lacks, and above 2 GB."""
    require_onnx()
    size = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    if size > LARGEST:
        raise UserError(f"{what} has {size / 1e9:.1f} GB of weights, and a file of ONNX 2 GB; take torch-export")
    with torch.no_grad(), _quiet():
        try:
            made = torch.onnx.export(
                program, input_names=list(inputs), output_names=list(outputs), dynamo=True, verbose=False
            )
        except Exception as error:  # as of trace
            raise UserError(
                f"{what} has a part that ONNX has no operator for ({_first_line(error)}); take --format torch-export"
            ) from error
    assert made is not None
    made.model.graph.name = what
    return made.model_proto.SerializeToString()


def require_onnx() -> None:
    """Raise UserError unless the libraries of the extra ``export`` are installed."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        optional_import(name, "export")


def run_onnx(model: bytes, inputs: dict[str, Tensor]) -> Tensor:
    """The first output of a file of ONNX, by ONNX Runtime on the CPU. Raises UserError for what that cannot run."""
    runtime: Any = optional_import("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])
    except Exception as error:  # the runtime's own, of a base that it does not name
        raise UserError(
            f"ONNX Runtime cannot run the file ({_first_line(error)}); take --format torch-export"
        ) from error


def _first_line(error: Exception) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = str(cause).strip().splitlines() or ["no message"]
    return f"{type(cause).__name__}: {lines[0][:200]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes on their own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    before = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for log, level in zip(loggers, before, strict=True):
            log.setLevel(level)
