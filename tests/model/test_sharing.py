"""Flows shared in folders and on a hub: the same samples come back, and what goes wrong is one sentence."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors import safe_open

import advect
from advect import from_pretrained, load
from advect.core.errors import UserError
from advect.model.flow import Flow
from advect.model.hub import is_folder, save_pretrained
from advect.model.load import METADATA
from fake_hub import Hub, serve


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub on loopback, where who is logged in may write."""
    one = Hub()
    with serve(one) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", one.token)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between its tries
        yield one


def same_samples(one: Flow, other: Flow) -> None:
    for a, b in zip(one.sample(5, seed=3).x, other.sample(5, seed=3).x, strict=True):
        assert torch.equal(a, b)


def weights(run: Path) -> Path:
    return sorted(run.glob("checkpoints/step-*/model.safetensors"))[-1]


def header(file: Path) -> dict[str, Any]:
    with safe_open(file, framework="pt") as opened:
        return json.loads(opened.metadata()[METADATA])


def test_a_folder_holds_the_same_flow_whatever_becomes_of_the_run(moons_run: Path, tmp_path: Path) -> None:
    flow, place = advect.load(moons_run), tmp_path / "new" / "shared"
    files = flow.save_pretrained(place, license="cc-by-4.0")
    assert [file.name for file in files] == ["samples.png", "model.safetensors", "README.md"]
    assert sorted(os.listdir(place)) == sorted(file.name for file in files)
    again = advect.from_pretrained(place)
    same_samples(flow, again)
    x = flow.sample(4, seed=0).x
    torch.testing.assert_close(flow.log_prob(x, steps=8), again.log_prob(x, steps=8), rtol=0, atol=0)
    same_samples(flow, advect.load(place / "model.safetensors"))
    card = (place / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: advect\nlicense: cc-by-4.0\n") and 'from_pretrained("shared")' in card
    same_samples(flow, advect.from_pretrained(again.save_pretrained(tmp_path / "copy")[0].parent))


def test_weights_are_those_of_now_and_a_checkpoint_is_one(moons_run: Path, tmp_path: Path) -> None:
    checkpoint = weights(moons_run).parent
    same_samples(advect.from_pretrained(checkpoint), advect.load(checkpoint))  # its averages, not its raw weights
    flow = advect.load(checkpoint)
    with torch.no_grad():
        next(flow.net.parameters()).add_(0.5)
    flow.save_pretrained(tmp_path / "changed")
    same_samples(flow, advect.from_pretrained(tmp_path / "changed"))
    assert "changed since it was loaded" in (tmp_path / "changed" / "README.md").read_text()


def test_conditions_and_their_names_come_back(digits_run: Path, tmp_path: Path) -> None:
    flow = advect.load(digits_run)
    flow.save_pretrained(tmp_path / "a")
    again = advect.from_pretrained(tmp_path / "a")
    assert again.spec == flow.spec
    assert torch.equal(flow.sample(3, cond={"label": "7"}).x, again.sample(3, cond={"label": "7"}).x)
    assert "Condition `label`: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9." in (tmp_path / "a" / "README.md").read_text()


def test_data_bring_the_tensors_of_their_transform_and_no_path_of_this_machine(
    advect: Callable[..., None], tmp_path: Path, hub: Hub
) -> None:
    (tmp_path / "secret").mkdir()
    counts = np.random.default_rng(0).poisson(2.0, (60, 80)).astype(np.float32)
    anndata.AnnData(counts).write_h5ad(tmp_path / "secret" / "a.h5ad")
    words = "--pca 4 --width 8 --depth 2 --batch-size 32 --max-steps 3 --threads 1 --sample-every 0"
    advect("train --data", tmp_path / "secret" / "a.h5ad", words, "--run-dir run")
    advect("push run ./shared")
    advect("push run ada/rows")
    flow = load(tmp_path / "run")
    for place in (tmp_path / "shared", "ada/rows"):
        same_samples(flow, from_pretrained(place))
    for content in hub.repositories["ada/rows"][-1].values():
        assert b"secret" not in content
    assert header(tmp_path / "shared" / "model.safetensors")["config"] != header(weights(tmp_path / "run"))["config"]
    assert "state/data.safetensors" in hub.repositories["ada/rows"][-1]
    (tmp_path / "shared" / "state" / "data.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be used apart from its checkpoint"):
        from_pretrained(tmp_path / "shared")


def test_what_was_measured_of_these_weights_alone_is_on_the_card(advect: Callable[..., None], tmp_path: Path) -> None:
    train = "train moons --width 8 --depth 2 --batch-size 64 --threads 1 --sample-every 0 --run-dir run"
    advect(train, "--max-steps 2")
    advect("push run ./before")
    assert "Not measured." in (tmp_path / "before" / "README.md").read_text()
    advect("eval run --metrics energy --num-samples 50")
    advect("push run ./after")
    assert "energy" in (tmp_path / "after" / "README.md").read_text()
    advect("push run ./raw --no-use-ema")  # other weights
    assert "Not measured." in (tmp_path / "raw" / "README.md").read_text()


def test_a_repository_gives_back_what_was_pushed_also_without_a_network(
    moons_run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = advect.load(moons_run)
    address = flow.push_to_hub("ada/moons", private=True)
    assert address == f"{constants.ENDPOINT}/ada/moons"
    assert hub.made[0].get("private") is True or hub.made[0]["visibility"] == "private"
    assert set(hub.repositories["ada/moons"][-1]) == {"README.md", "samples.png", "model.safetensors"}
    same_samples(flow, advect.from_pretrained("ada/moons"))
    flow.push_to_hub("ada/moons")  # again: another commit
    assert len(hub.repositories["ada/moons"]) == 2 and len(hub.made) == 1
    same_samples(flow, advect.from_pretrained("ada/moons", revision="main"))
    assert 'from_pretrained("ada/moons")' in hub.repositories["ada/moons"][-1]["README.md"].decode()
    assert not any("pickle" in line or line.endswith((".bin", ".pt")) for line in hub.asked)
    hub.broken = True
    same_samples(flow, advect.from_pretrained("ada/moons"))


def test_the_repository_wins_over_nothing_and_a_folder_over_a_repository(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for word, folder in {
        "ada/moons": False, "./ada/moons": True, "shared": True, "/a/b": True, "~/a": True, "a/b/c": True,
    }.items():  # fmt: skip
        assert is_folder(word) is folder, word
    (tmp_path / "ada" / "moons").mkdir(parents=True)
    assert is_folder("ada/moons")


# --- Mistakes. ---


def test_what_the_hub_refuses_is_one_sentence(moons_run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = advect.load(moons_run)
    flow.push_to_hub("ada/moons")
    hub.repositories["ada/other"] = [{"README.md": b"of another library"}]
    hub.gated.add("ada/gated")
    for repo, options, message in [
        ("ada/nothing", {}, "has no repository ada/nothing, or it is private"),
        ("ada/other", {}, "ada/other has no model.safetensors, so that it holds no flow"),
        ("ada/moons", {"revision": "v9"}, "ada/moons has no such revision; leave it out"),
        ("ada/gated", {}, "ada/gated is gated: accept its terms on the hub"),
        ("moons", {}, "moons is no folder, and no repository of the hub, which is OWNER/NAME"),
        ("a--b/c", {}, "is no name of a repository; give OWNER/NAME"),
        (str(moons_run), {"revision": "main"}, "is a folder on disk, which has none; leave it out"),
    ]:
        with pytest.raises(UserError, match=message):
            advect.from_pretrained(repo, **options)
    for repo in ("moons", "a/b/c", "a b/c", "", "ada/"):
        with pytest.raises(UserError, match=r"is no repository of the hub; give OWNER/NAME"):
            flow.push_to_hub(repo)
    with pytest.raises(UserError, match=r"refused ada/moons \(HTTP 401\); log in with hf auth login"):
        flow.push_to_hub("ada/moons", token="hf_wrong")
    assert len(hub.repositories["ada/moons"]) == 1
    hub.repositories["ada/junk"] = [{"model.safetensors": b"not one"}]
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        advect.from_pretrained("ada/junk")


def test_no_network_is_one_sentence(moons_run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere + "/{repo_id}/resolve/{revision}/{filename}")
    with pytest.raises(UserError, match=r"the hub does not answer"):
        advect.from_pretrained("ada/moons")
    with pytest.raises(UserError, match=r"the hub does not answer \(.*\); check the network"):
        advect.load(moons_run).push_to_hub("ada/moons")


def test_folders_and_flows_that_cannot_be_shared(moons_run: Path, tmp_path: Path) -> None:
    flow, place = advect.load(moons_run), tmp_path / "full"
    place.mkdir()
    (place / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty; give another one, or --overwrite"):
        flow.save_pretrained(place)
    assert (place / "README.md").read_text() == "mine"
    flow.save_pretrained(place, overwrite=True)
    assert (place / "README.md").read_text() != "mine"
    (place / "README.md").unlink()
    (place / ".push.lock").write_text("")  # as a killed one leaves it
    flow.save_pretrained(place)
    assert sorted(os.listdir(place)) == ["README.md", "model.safetensors", "samples.png"]
    with pytest.raises(UserError, match=r"license is 'a\\nb: c'; give an identifier"):
        flow.save_pretrained(tmp_path / "new", license="a\nb: c")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        flow.save_pretrained(tmp_path / "file")
    del flow.origin  # as of a flow that was built in Python
    with pytest.raises(UserError, match=r"was not loaded from a file, so that there is nothing to share"):
        save_pretrained(flow, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("push run", "needs a run and a repo"),
        ("push run ./new --private", "--private is for the hub, and ./new is a folder"),
        ("push run ada/moons --overwrite", "--overwrite is for a folder, and ada/moons is a repository"),
        ("push run ./new --no-use-ema --ema-decay 0.9", "contradict each other"),
        ("push nothing ./new", "nothing"),
    ],
)
def test_mistakes_on_the_command_line(
    advect: Callable[..., None], moons_run: Path, tmp_path: Path, words: str, message: str
) -> None:
    (tmp_path / "run").symlink_to(moons_run)
    with pytest.raises(UserError, match=message):
        advect(words)
    assert not (tmp_path / "new").exists()


def test_the_library_that_is_not_installed_is_named(moons_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert huggingface_hub
    with pytest.raises(UserError, match=r"huggingface_hub is not installed; run: pip install 'advect\[hub\]'"):
        advect.load(moons_run).push_to_hub("ada/moons")
