"""Sharing flows: folders of weights with a model card, on disk or on the Hugging Face hub."""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from advect.checkpoint.manifest import MANIFEST
from advect.checkpoint.tensor_files import load_weights, save_tensors
from advect.core.errors import UserError, optional_import
from advect.core.files import atomic_write, atomic_write_text, claim_folder
from advect.data.figure import save_png
from advect.model.card import card_text
from advect.model.load import METADATA, load, read_model_metadata
from advect.training.state import DATA, MODEL

if TYPE_CHECKING:
    from advect.model.flow import Flow

CARD = "README.md"
_LOCK = ".push.lock"
_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_LICENCE = re.compile(r"[\w.+-]{1,60}", re.ASCII)


def save_pretrained(
    flow: Flow, folder: str | Path, *, name: str = "", license: str | None = None, overwrite: bool = False
) -> list[Path]:
    """Write a flow to a folder that :func:`from_pretrained` reads, and that can be shared: return its files.

    A model card, ``README.md``, with the data, the training, what was measured of these weights, and ``license``; a
    picture of samples; ``model.safetensors``, the weights as they are now; and ``state/data.safetensors``, tensors of
    the data's transform, if it has any. Paths of this machine are left out of the configuration. ``name`` is the
    card's, by default the folder's. Raises UserError for a flow that was not loaded from a file or has another network
    since, a folder with other files unless ``overwrite``, and one that cannot be written.
    """
    source, folder = flow.origin, Path(folder)
    if source is None:
        raise UserError("this flow was not loaded from a file, so that there is nothing to share; use advect.load")
    if license is not None and not _LICENCE.fullmatch(license):
        raise UserError(f"license is {license!r}; give an identifier, such as apache-2.0 or cc-by-4.0")
    unfinished = (folder / _LOCK).exists()
    if not (overwrite or unfinished):
        _check_empty(folder)
    metadata, (tensors, same) = read_model_metadata(source), _weights(flow, source)
    shared = replace(metadata, config=_without_places(metadata.config))
    card = card_text(
        flow, shared, source if same else None, name=name or folder.absolute().name, hub=bool(name), license=license
    )
    samples = flow.sample(flow.modality.shown, seed=0)
    picture = flow.modality.plot(samples.x, samples.encoded)
    files = [folder / "samples.png", *[folder / DATA] * bool(metadata.tensors), folder / MODEL, folder / CARD]
    with claim_folder(folder, "the folder", _LOCK):
        if not overwrite and (not unfinished or (folder / CARD).exists()):
            _check_empty(folder)
        try:
            save_png(picture, files[0])
            if metadata.tensors:
                (folder / DATA).parent.mkdir(exist_ok=True)
                atomic_write(folder / DATA, lambda partial: save_tensors(partial, metadata.tensors))
            atomic_write(folder / MODEL, lambda partial: save_tensors(partial, tensors, {METADATA: shared.to_text()}))
            atomic_write_text(
                folder / CARD, card
            )  # the last: a folder without it and with a lock is an unfinished one
        except BaseException:
            if not overwrite:
                _remove(folder, files)
            raise
    return files


def _weights(flow: Flow, source: Path) -> tuple[dict[str, Tensor], bool]:
    """Weights of a flow, and whether they are those of the file that it was loaded from."""
    now, then = flow.net.state_dict(), load_weights(source)
    if {name: x.shape for name, x in now.items()} != {name: x.shape for name, x in then.items()}:
        raise UserError(f"the network of this flow is no longer that of {source}; share one that advect.load gives")
    return now, all(torch.equal(x.cpu(), then[name]) for name, x in now.items())


def _check_empty(folder: Path) -> None:
    if folder.is_dir() and any(entry.name != _LOCK for entry in folder.iterdir()):
        raise UserError(f"the folder {folder} is not empty; give another one, or --overwrite (overwrite=True)")


def _remove(folder: Path, files: list[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
    with suppress(OSError):
        (folder / DATA).parent.rmdir()


def push_to_hub(
    flow: Flow, repo: str, *, private: bool | None = None, license: str | None = None, token: str | None = None
) -> str:
    """Upload a flow to a repository ``OWNER/NAME`` of the Hugging Face hub, made if it is new: return its address.

    The files of :func:`save_pretrained` in one commit. ``token`` is by default that of ``hf auth login`` or HF_TOKEN.
    Raises UserError for a name of another form, missing rights, and a hub that does not answer.
    """
    hub = optional_import("huggingface_hub", "hub")
    _check_repo(repo)
    with tempfile.TemporaryDirectory() as place:
        save_pretrained(flow, place, name=repo, license=license)
        with _explained(repo):
            api = hub.HfApi(token=token, library_name="advect")
            api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repo, folder_path=place, commit_message="Upload a flow by advect", ignore_patterns=[".*"]
            )
            return str(api.endpoint) + "/" + repo


def from_pretrained(
    repo_or_folder: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    device: str | torch.device = "auto",
) -> Flow:
    """Load a flow that was shared: a folder of :func:`save_pretrained`, or a repository ``OWNER/NAME`` of the hub.

    Only safetensors are read, so that no code of a stranger runs. ``revision`` is a branch, tag or commit. What has
    been downloaded serves again without a network. Raises UserError if there is no such folder or repository, it holds
    no flow, or the hub does not answer.
    """
    folder = Path(repo_or_folder)
    if folder.is_dir():
        if revision is not None:
            raise UserError(
                f"revision is {revision!r}, but {folder} is a folder on disk, which has none; leave it out"
            )
        if (folder / MODEL).is_file() and not (folder / MANIFEST).is_file():  # a checkpoint, which has averages, too
            return load(folder / MODEL, device=device)
        return load(folder, device=device)
    repo = str(repo_or_folder)
    if not _REPO.fullmatch(repo):
        raise UserError(f"{repo} is no folder, and no repository of the hub, which is OWNER/NAME; give one of them")
    hub, options = optional_import("huggingface_hub", "hub"), {"revision": revision, "token": token}
    with _explained(repo):
        file = Path(hub.hf_hub_download(repo, MODEL, library_name="advect", **options))
        with suppress(_errors().EntryNotFoundError):  # if its data need tensors, the loading says so
            hub.hf_hub_download(repo, DATA, library_name="advect", **options)
    return load(file, device=device)


def is_folder(repo: str) -> bool:
    """Whether a place to push to is a folder on disk: it exists, or is written as a path."""
    return repo.startswith((".", "/", "~")) or Path(repo).is_dir() or not _REPO.fullmatch(repo)


def _check_repo(repo: str) -> None:
    if not _REPO.fullmatch(repo):
        raise UserError(f"{repo!r} is no repository of the hub; give OWNER/NAME, such as ada/digits")


def _errors() -> Any:
    optional_import("huggingface_hub", "hub")
    return importlib.import_module("huggingface_hub.errors")


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Context in which what the hub's library raises is one sentence."""
    errors = _errors()
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(f"{repo} is gated: accept its terms on the hub, and log in with hf auth login") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repo} has no such revision; leave it out for the newest") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"the hub has no repository {repo}, or it is private; check the name, and log in with hf auth login"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise UserError(f"the hub does not answer, and {repo} was not downloaded before; try again online") from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"{repo} has no {MODEL}, so that it holds no flow of advect; take another one") from error
    except errors.LocalTokenNotFoundError as error:
        raise UserError("the hub knows nobody here; log in with hf auth login, or set HF_TOKEN") from error
    except errors.HfHubHTTPError as error:
        code = getattr(error.response, "status_code", None)
        fix = "log in with hf auth login as who may write there" if code in (401, 403) else "try again later"
        raise UserError(f"the hub refused {repo} (HTTP {code}); {fix}") from error
    except errors.HFValidationError as error:
        raise UserError(f"{repo!r} is no name of a repository; give OWNER/NAME, such as ada/digits") from error
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
            raise
        raise UserError(
            f"the hub does not answer ({type(error).__name__}); check the network, and try again"
        ) from error


def _without_places(config: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A configuration with the last part of each path of this machine, which is nobody's business."""

    def cut(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: cut(v) for name, v in value.items()}
        if isinstance(value, list | tuple):
            return [cut(v) for v in value]
        if isinstance(value, str) and (Path(value).is_absolute() or value.startswith(("~", "./", "../"))):
            return Path(value).name
        return value

    return {name: cut(section) for name, section in config.items()}
