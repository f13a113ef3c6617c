"""advect push RUN REPO: share a flow, on the Hugging Face hub or in a folder, with a model card."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from advect.checkpoint.manifest import named_checkpoint
from advect.config.flags import parse_words
from advect.config.places import split_words
from advect.config.section import Section
from advect.core.bounds import Share
from advect.core.errors import UserError
from advect.model.hub import is_folder, push_to_hub, save_pretrained
from advect.model.load import load

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class PushArguments(Section):
    """Flags of ``advect push``."""

    license: str | None = None
    """Licence of the weights for the card, such as apache-2.0 or cc-by-4.0."""
    private: bool = False
    """Make a new repository private."""
    overwrite: bool = False
    """Write over what a folder holds."""
    checkpoint: str | None = None
    """Checkpoint of the run: epoch-50, step-1000, best or latest, the default."""
    use_ema: bool = True
    """Share the averaged weights."""
    ema_decay: Share | None = None
    """Share the average of this decay, one of the run's."""

    groups: ClassVar = {
        "repository": ("license", "private", "overwrite"),
        "weights": ("checkpoint", "use_ema", "ema_decay"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ema_decay is not None and not self.use_ema:
            raise UserError("--no-use-ema and --ema-decay contradict each other; give one of them")


def run(words: list[str]) -> None:
    """Run ``advect push`` with the words after it. Raises UserError."""
    (run, repo), flags = split_words(words, "advect push", PushArguments, ("run", "repo"), "runs/digits ada/digits")
    about = (
        "Share a flow: its weights as safetensors, a picture of samples and a model card, in a repository OWNER/NAME"
        " of the Hugging Face hub (log in with hf auth login first) or, for a path such as ./shared, in a folder.\n\n"
        'advect.from_pretrained("OWNER/NAME") loads it.'
    )
    a = parse_words(PushArguments, flags, prog="advect push RUN REPO", description=about)
    source = named_checkpoint(Path(run), a.checkpoint)
    flow = load(source, ema=a.use_ema if a.ema_decay is None else a.ema_decay)
    if is_folder(repo):
        if a.private:
            raise UserError(f"--private is for the hub, and {repo} is a folder; leave it out")
        files = save_pretrained(flow, Path(repo).expanduser(), license=a.license, overwrite=a.overwrite)
        logger.info(f"shared: {', '.join(map(str, files))}")
        return
    if a.overwrite:
        raise UserError(
            f"--overwrite is for a folder, and {repo} is a repository, which keeps its history; leave it out"
        )
    logger.info(f"shared: {push_to_hub(flow, repo, private=a.private or None, license=a.license)}")
