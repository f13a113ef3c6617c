"""Model cards: what a shared flow is of, how it was trained, what was measured, how it is used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from advect.config.resume import versions
from advect.core.errors import UserError, printable
from advect.core.types import Category, Condition, Length
from advect.evaluation.results import read_result, table
from advect.model.load import ModelMetadata
from advect.model.sampling import weights_identity

if TYPE_CHECKING:
    from advect.model.flow import Flow

_HUB = "'advect[hub]'"

SHOWN = 20
"""Most values of a condition that are listed."""


def card_text(
    flow: Flow, metadata: ModelMetadata, source: Path | None, *, name: str, hub: bool, license: str | None
) -> str:
    """README.md of a flow, with the head that the Hugging Face hub reads.

    ``source`` is the file of its weights, None if they have changed since; ``name`` is the repository of the ``hub``
    or a folder.
    """
    tags = ["advect", "flow-matching", flow.spec.modality]
    head = ["---", "library_name: advect", *([f"license: {license}"] if license else []), "tags:"]
    head += [*(f"- {tag}" for tag in tags), "---", ""]
    what = f"{flow.modality.describe(flow.data_shape)}"
    body = [
        f"# {name}",
        "",
        f"A flow that draws {what}, by advect {versions().get('advect', 'of a source folder')}.",
        "",
    ]
    body += ["![Samples](samples.png)", "", "## Use", "", f"    pip install {_HUB if hub else 'advect'}", ""]
    body += ["```python", "import advect", "", f'flow = advect.from_pretrained("{name}")']
    body += ["samples = flow.sample(16, seed=0)  # .x in the data's units", "```", ""]
    body += ["## Data", "", f"{what[:1].upper()}{what[1:]}.", *_conditions(flow), ""]
    body += [
        "## Measured",
        "",
        *(_measured(source) if source else ["Not measured: changed since it was loaded."]),
        "",
        "## Training",
        "",
        *_training(metadata, flow),
        "",
    ]
    body += ["## Licence", "", license or "None was given: ask who shares it before you use it.", ""]
    return "\n".join([*head, *body])


def _conditions(flow: Flow) -> Iterator[str]:
    for name, condition in flow.spec.conditions.items():
        if not isinstance(condition, Length):
            yield f"Condition `{printable(name)}`: {_values(condition)}."


def _values(condition: Condition) -> str:
    if isinstance(condition, Category):
        names = [printable(value) for value in condition.names[:SHOWN]]
        more = len(condition.names) - len(names)
        return ", ".join(names) + (f" and {more:,} more" if more else "")
    assert not isinstance(condition, Length)
    pairs = zip(condition.names, condition.mean, condition.std, strict=True)
    return ", ".join(f"{printable(name)} (mean {mean:.4g}, deviation {std:.4g})" for name, mean, std in pairs)


def _measured(source: Path) -> list[str]:
    """The newest results of ``advect eval`` of these weights, beside the run that they lie in."""
    digest = weights_identity(source, ema=True)["sha256"]
    for folder in source.absolute().parents[:3]:
        found = sorted((folder / "evaluation").glob("eval-*.json"), key=lambda file: -file.stat().st_mtime)
        for file in found:
            try:
                result = read_result(file)
            except UserError:
                continue
            if result["subject"].get("sha256") == digest:
                rows = result["protocol"]["reference"]
                about = f"`advect eval`, against {rows:,} {result['protocol']['split']} rows:"
                return [about, "", *(f"    {line}" for line in table(result))]
    return ["Not measured. `advect eval RUN` before `advect push RUN` puts the figures here."]


def _training(metadata: ModelMetadata, flow: Flow) -> list[str]:
    method = metadata.method
    size = sum(p.numel() for p in flow.net.parameters())
    words = f"{method.objective}, path {method.path}, source {method.source}, prediction {method.prediction}"
    sampler = flow.sampler
    return [
        f"- {words}",
        f"- network {metadata.network.network}, {size:,} parameters",
        f"- samples by {sampler.solver}, {sampler.steps} steps, unless told otherwise",
        f"- data fingerprint `{metadata.fingerprint}`",
    ]
