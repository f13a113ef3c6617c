"""``flow.export``: a folder with the network, the sampler, an example and what they take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from advect.config.resume import versions
from advect.core import registry
from advect.core.bounds import GuidanceScale, SampleCount, Seed, Steps, Time, bounded
from advect.core.errors import UserError, did_you_mean
from advect.core.files import atomic_write, check_name, claim_folder
from advect.core.types import Conditions
from advect.data.numpy_files import save_arrays
from advect.export import card, tracing
from advect.export.modules import NetworkModule, SamplerModule, is_rectified, on_cpu
from advect.export.recurrence import MOST_CALLS, find_recurrence
from advect.model.conditions import ConditionValue
from advect.model.coordinates import Angle
from advect.model.flow import Flow
from advect.model.integrators import ODEIntegrator
from advect.model.sampler_config import SamplerConfig
from advect.solvers import FlowMap, Solver, TimeGrid

Format = Literal["torch-export", "onnx"]

SUFFIXES: dict[str, str] = {"torch-export": ".pt2", "onnx": ".onnx"}
CARD, EXAMPLE = "export.json", "example.npz"

_TRACED = 3
"""Rows of the trace: 0 and 1 would be taken as sizes of their own."""


@bounded
def export(
    flow: Flow,
    folder: str | Path,
    *,
    format: Format = "torch-export",
    steps: Steps | None = None,
    solver: str | Solver | None = None,
    grid: str | TimeGrid | None = None,
    cond: Mapping[str, ConditionValue] | None = None,
    guidance: GuidanceScale = 1.0,
    guidance_interval: tuple[Time, Time] | None = None,
    model_units: bool = False,
    num_samples: SampleCount = 4,
    seed: Seed = 0,
    overwrite: bool = False,
) -> list[Path]:
    """Write the network and a sampler of fixed steps as files that run without advect, of any batch size.

    ``network`` gives the velocity (B, *S) in model units of x_t (B, *S), t (B,) and conditions, ``sampler`` samples in
    data units of noise (B, *S) and conditions; ``export.json`` names inputs and outputs, ``example.npz`` has noise,
    conditions and samples of ``seed``, as :meth:`Flow.sample` draws them. Computed in float32.

    Args:
        folder: a new one, or one with an export to be replaced with ``overwrite``.
        format: "torch-export" for ``torch.export.load``, or "onnx" for ONNX Runtime.
        steps, solver, grid, guidance, guidance_interval: as of :meth:`Flow.sample`, fixed in the sampler.
        cond: conditions fixed to one value; others are inputs.
        model_units: leave the transform to data units, and its rules, out.
        num_samples: rows of the example.

    Raises UserError for what a graph of fixed steps cannot hold, before anything is written: tokens, adaptive and
    stochastic solvers, rows that rules draw anew.
    """
    if format not in get_args(Format):
        raise UserError(f"format has no choice {format!r}{did_you_mean(str(format), get_args(Format))}")
    if format == "onnx":
        tracing.require_onnx()
    place = Path(folder)
    _check_folder(place, overwrite)
    config = SamplerConfig(solver, steps, grid, None, guidance, guidance_interval)
    made = Exported.of(flow, config, cond, model_units=model_units)
    example = made.example(num_samples, seed)
    files = made.files(format, example)
    with claim_folder(place, "--output"):
        _check_folder(place, overwrite)
        return _write(place, files, example)


_OWN = {CARD, EXAMPLE, *(f"{part}{suffix}" for part in ("network", "sampler") for suffix in SUFFIXES.values())}


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Raise UserError for a whole export without ``overwrite``, and for a folder of other files."""
    check_name(folder, "--output")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file; name a folder")
    if (folder / CARD).exists() and not overwrite:
        raise UserError(f"--output {folder} holds an export already; name another folder, or give --overwrite")
    others = [p.name for p in folder.iterdir() if p.name not in _OWN and p.name[0] != "."] if folder.is_dir() else []
    if others:
        raise UserError(f"--output {folder} holds {min(others)!r}, which is no export; name a folder of its own")


def _write(place: Path, files: Mapping[str, bytes | str], example: Mapping[str, np.ndarray]) -> list[Path]:
    """Write an export, ``export.json`` last: without it none is there."""
    (place / CARD).unlink(missing_ok=True)
    for name in _OWN - files.keys() - {EXAMPLE}:
        (place / name).unlink(missing_ok=True)
    save_arrays(place / EXAMPLE, example)
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        atomic_write(place / name, lambda path, data=data: path.write_bytes(data))
    return [place / name for name in (*list(files)[:-1], EXAMPLE, CARD)]


def check_exportable(flow: Flow, config: SamplerConfig, *, model_units: bool) -> SamplerConfig:
    """The resolved sampler. Raises UserError for what a graph of fixed steps cannot hold."""
    if flow.discrete:
        raise UserError("this flow is one of tokens, which jump at random, and has no export; take advect sample")
    stochastic = set(registry.choices("sde-solver")) - set(registry.choices("solver"))
    if config.solver in stochastic:
        raise UserError(f"solver {config.solver!r} draws noise at each step, and has no export; take midpoint or heun")
    config = config.resolve(flow.sampler)
    if config.adaptive:
        raise UserError(
            f"solver {config.ode_solver.name!r} chooses its own steps, and an export has fixed ones; take midpoint"
        )
    if isinstance(config.ode_solver, FlowMap) and config.ode_solver.noise:
        raise UserError("solver 'flow-map' with noise draws at each step, and has no export; leave its noise at 0")
    if flow.transform.constraints is not None and not model_units:
        raise UserError(
            "rows that break --rule are drawn anew, which an export does not; give --model-units, and check them"
        )
    if isinstance(flow.coordinates, Angle) and not flow.coordinates.density:
        raise UserError("a bridge from rows of data draws noise at its start, and has no export; take advect sample")
    flow._check_guidance(config.guidance, config.guidance_interval)
    if (config.steps or 0) > MOST_CALLS:
        raise UserError(f"num_steps is {config.steps}, and an export calls the network up to {MOST_CALLS:,} times")
    return config


@dataclass(frozen=True, eq=False)
class Exported:
    """A flow's network and sampler, ready to be traced."""

    flow: Flow
    config: SamplerConfig
    fixed: Conditions
    cond: Mapping[str, ConditionValue]
    network: NetworkModule
    sampler: SamplerModule
    model_units: bool

    @classmethod
    def of(
        cls,
        flow: Flow,
        config: SamplerConfig,
        cond: Mapping[str, ConditionValue] | None,
        *,
        model_units: bool,
    ) -> Exported:
        """Of a flow sampled by ``config``, with conditions ``cond`` fixed. Raises UserError."""
        config, flow = check_exportable(flow, config, model_units=model_units), on_cpu(flow)
        fixed = _fixed(flow, cond or {})
        names = [name for name in flow.spec.conditions if name not in fixed]
        integrator = flow._integrator(config, False)
        assert isinstance(integrator, ODEIntegrator)
        recurrence = find_recurrence(integrator, flow.nfe(config) or 0)
        sampler = SamplerModule(
            flow,
            recurrence,
            names,
            fixed,
            rectified=is_rectified(integrator.coordinates),
            guidance=_scales(config, recurrence.times[:, 0]),
            model_units=model_units,
        )
        network = NetworkModule(flow, names, fixed)
        return cls(flow, config, fixed, cond or {}, network, sampler, model_units)

    def example(self, n: int, seed: int) -> dict[str, np.ndarray]:
        """Noise, conditions and samples of a seed, as ``Flow.sample`` draws them."""
        arguments = {name: value for name, value in self.config.arguments().items() if name != "image_size"}
        found = self.flow.sample(n, seed=seed, cond=self.cond, model_units=self.model_units, **arguments)
        noise = self.flow.noise(n, seed=seed, cond=self.cond)
        given = {_input_name(name): found.encoded[name] for name in self.sampler.names}
        return {name: value.numpy() for name, value in {"noise": noise, **given, "samples": found.x}.items()}

    def files(self, format: str, example: Mapping[str, np.ndarray]) -> dict[str, bytes | str]:
        """Content by name, ``export.json`` last. Raises UserError for a part that has no place in a graph."""
        rows = {name: torch.from_numpy(value) for name, value in example.items()}
        samples = rows.pop("samples")
        given = [rows[_input_name(name)] for name in self.sampler.names]
        few = [_rows(value, _TRACED) for value in (rows["noise"], *given)]
        t = torch.full((_TRACED, 2) if self.flow.learns_steps else (_TRACED,), 0.5)
        calls = {
            "network": (self.network, [few[0], t, *few[1:]], ["x_t", "t"], "velocity"),
            "sampler": (self.sampler, few, ["noise"], "samples"),
        }
        files: dict[str, bytes | str] = {}
        parts: dict[str, Any] = {}
        for what, (module, inputs, first, output) in calls.items():
            names = [*first, *(_input_name(name) for name in self.sampler.names)]
            program = tracing.trace(module, inputs, f"the {what}")
            name = what + SUFFIXES[format]
            if format == "onnx":
                content = tracing.to_onnx_bytes(program, names, [output], f"the {what}")
            else:
                content = tracing.to_torch_bytes(program)
            if what == "sampler":
                _check_same(_run(format, content, program, names, [rows["noise"], *given]), samples, format)
            out = card.describe_tensors([output], [samples if what == "sampler" else inputs[0]])
            described = {"inputs": card.describe_tensors(names, inputs), "outputs": out}
            files[name], parts[what] = content, {"file": name, **described}
        return {**files, CARD: self._card(format, parts)}

    def _card(self, format: str, parts: Mapping[str, Any]) -> str:
        null, conditions = self.flow.null, self.flow.spec.conditions
        facts = {
            "format": format,
            "advect": versions().get("advect", "unknown"),
            "torch": torch.__version__,
            **parts,
            "conditions": {
                name: {"input": _input_name(name), **card.describe_condition(conditions[name], null=null)}
                for name in self.sampler.names
            },
            "fixed": {name: value[0].tolist() for name, value in self.fixed.items()},
            **card.describe_sampler(self.flow, self.config),
            "noise": card.describe_noise(self.flow),
            "data": card.describe_data(self.flow, model_units=self.model_units),
            "example": EXAMPLE,
        }
        return json.dumps(facts, indent=2, allow_nan=False, default=list) + "\n"


def _fixed(flow: Flow, cond: Mapping[str, ConditionValue]) -> Conditions:
    """The conditions of ``cond`` (1, ...) as the network takes them. Raises UserError for several values of one."""
    two = flow.conditions(2, cond)
    for name in cond:
        if not torch.equal(two[name][:1].nan_to_num(7e9), two[name][1:].nan_to_num(7e9)):
            raise UserError(f"condition {name!r} is fixed to one value in an export, got {cond[name]!r}; leave it out")
    return {name: two[name][:1].clone() for name in flow.spec.conditions if name in cond}


def _scales(config: SamplerConfig, times: Tensor) -> Tensor | None:
    """Guidance at each call; None where there is none."""
    if config.guidance == 1:
        return None
    low, high = config.guidance_interval or (0.0, 1.0)
    here = (times.float() >= low) & (times.float() <= high)
    return torch.where(here, config.guidance, 1.0).double()


def _input_name(name: str) -> str:
    return f"condition {name}" if name in ("noise", "x_t", "t", "samples", "velocity") else name


def _rows(value: Tensor, n: int) -> Tensor:
    """n rows, those there are in turn."""
    return value[torch.arange(n) % len(value)].contiguous()


def _run(format: str, content: bytes, program: Any, names: Sequence[str], inputs: Sequence[Tensor]) -> Tensor:
    """The output of a traced module for rows of another number than it was traced with."""
    if format == "onnx":
        return tracing.run_onnx(content, dict(zip(names, inputs, strict=True)))
    with torch.no_grad():
        return program.module()(*inputs)


def _check_same(got: Tensor, wanted: Tensor, format: str) -> None:
    """Raise UserError unless samples of the export are those of the flow, but for a few at the edge of a rounding."""
    got, wanted = got.double(), wanted.double()
    near = (got - wanted).abs() <= 1e-4 * (1 + wanted.abs())
    near |= got.isnan() & wanted.isnan()
    if got.shape != wanted.shape or near.double().mean() < 0.99:
        raise UserError(f"samples of the {format} export are not those of the flow; take another solver, or format")
