"""Tokens through the commands: train, resume, sample, eval, report and doctor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import advect
from advect.checkpoint.tensor_files import load_weights
from advect.cli import run as command
from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.training.state import EMA_FILE, MODEL

SMALL = ["--width", "16", "--depth", "1", "--heads", "2", "--threads", "1", "--device", "cpu"]
SHORT = [*SMALL, "--batch-size", "32", "--num-epochs", "4", "--sample-steps", "4", "--num-samples", "4"]


def write_lines(folder: Path) -> Path:
    """Lines of a Markov chain of three letters, a and c in turn more often."""
    u = CounterRng(0, 0, 200).uniform((200, 9)).numpy()
    lines = []
    for row in u:
        text = "abc"[int(3 * row[0])]
        for v in row[1 : 4 + int(5 * row[-1])]:
            text += {"a": "bc", "b": "ca", "c": "ab"}[text[-1]][int(v < 0.8)]
        lines.append(text)
    (folder / "lines.txt").write_text("\n".join(lines) + "\n")
    return folder / "lines.txt"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    command(["train", "--data", str(write_lines(folder)), "--run-dir", str(folder / "run"), *SHORT])
    return folder / "run"


def test_samples_are_lines_of_the_vocabulary(run, tmp_path):
    command(["sample", str(run), "--num-samples", "30", "--output-dir", str(tmp_path / "a")])
    lines = (tmp_path / "a/samples.txt").read_text().splitlines()
    assert len(lines) == 30 and set("".join(lines)) <= set("abc") and all(lines)
    command(["sample", str(run), "--num-samples", "30", "--output-dir", str(tmp_path / "b"), "--part-size", "7"])
    assert (tmp_path / "b/samples.txt").read_text().splitlines() == lines
    how = ["--solver", "tau-leaping", "--solver-top-p", "0.5", "--solver-corrector", "1", "--num-steps", "3"]
    command(["sample", str(run), "--num-samples", "30", "--output-dir", str(tmp_path / "c"), *how])
    facts = json.loads((tmp_path / "c/samples.json").read_text())
    assert facts["nfe"] == 3 and facts["solver"] == "tau-leaping(corrector=1.0, top_p=0.5)"
    assert (tmp_path / "c/samples.txt").read_text().splitlines() != lines


def test_a_loaded_flow_samples_and_bounds(run):
    flow = advect.load(run)
    made = flow.sample(5, seed=3)
    texts = flow.modality.texts(made.x, made.encoded)
    assert all(0 < len(text) <= flow.spec.shape[0] for text in texts)
    bound = flow.log_prob_bound(made.x, cond=made.cond)
    assert bound.shape == (5,) and (bound < 0).all() and bound.isfinite().all()
    with pytest.raises(UserError, match="tokens jump"):
        flow.log_prob(made.x)


def test_it_resumes_bit_for_bit(run, tmp_path):
    data, first = run.parent / "lines.txt", tmp_path / "part"
    command(["train", "--data", str(data), "--run-dir", str(first), *SHORT, "--max-steps", "9"])
    command(["train", "--resume-from", str(first), "--max-steps", "10000"])
    ends = [folder / "checkpoints" / (folder / "checkpoints/latest").read_text().strip() for folder in (run, first)]
    assert ends[0].name == ends[1].name
    for name in (MODEL, EMA_FILE):
        a, b = (load_weights(end / name) for end in ends)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_it_is_measured_and_reported(run):
    command(["eval", str(run), "--num-samples", "60", "--device", "cpu"])
    result = json.loads(next((run / "evaluation").glob("eval-*.json")).read_text())
    assert 0 < result["flow"]["bits_per_token"]["mean"] < 2.5
    assert {"unigram_tv", "bigram_tv", "energy"} <= result["points"][0]["metrics"].keys()
    command(["report", str(run), "--num-samples", "30", "--nfes", "1", "2"])
    page = (run / "report.html").read_text()
    assert "tau-leaping" in page and "is a mask" in page and "bits a token" in page
    with pytest.raises(SystemExit):  # so few steps are a problem
        command(["doctor", str(run)])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--mask", "random"], "does not take --mask random"),
        (["--coupling", "ot"], "does not take --coupling ot"),
        (["--solver", "midpoint"], "--solver midpoint and --objective discrete-flow-matching contradict each other"),
        (["--source", "gaussian"], "starts from tokens; take --source masked or uniform"),
        (["--path", "bridge", "--sigma-min", "0.5"], "tokens have none; take --path cond-ot"),
        (["--path", "ddpm"], "alpha rises from 0 to 1"),
        (["--objective", "flow-matching", "--source", "masked"], "is of tokens"),
    ],
)
def test_what_contradicts_tokens_is_told(tmp_path, flags, words):
    data = write_lines(tmp_path)
    with pytest.raises(UserError, match=words):
        command(["train", "--data", str(data), "--dry-run", *SMALL, *flags])


def test_other_data_have_no_discrete_objective():
    with pytest.raises(UserError, match="is for tokens, and these are vector data"):
        command(["train", "moons", "--objective", "discrete-flow-matching", "--dry-run"])


def test_numbers_from_noise_are_another_way(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 4, (40, 6)))
    flags = ["--data", str(tmp_path / "x.npy"), "--data-format", "tokens", "--objective", "flow-matching"]
    command(["train", *flags, "--run-dir", str(tmp_path / "run"), *SHORT, "--early-stopping", "no"])
    made = advect.load(tmp_path / "run").sample(3, steps=2)
    assert made.x.shape == (3, 6) and set(made.x.flatten().tolist()) <= {0.0, 1.0, 2.0, 3.0}


def test_labels_and_uniform_tokens(tmp_path):
    rng = np.random.default_rng(0)
    kind = np.arange(60) % 2
    np.savez(tmp_path / "x.npz", values=rng.integers(0, 3, (60, 5)) + 3 * kind[:, None], kind=kind)
    flags = ["--data", str(tmp_path / "x.npz"), "--data-format", "tokens", "--conditions", "kind"]
    command(["train", *flags, "--source", "uniform", "--run-dir", str(tmp_path / "run"), *SHORT])
    out = tmp_path / "out"
    how = ["--cond", "kind=1", "--guidance", "2", "--num-samples", "4", "--output-dir", str(out)]
    command(["sample", str(tmp_path / "run"), *how])
    with np.load(out / "samples.npz") as found:
        assert found["values"].shape == (4, 5) and found["kind"].tolist() == [1] * 4


def test_blanks_of_a_file_are_filled_in(run, tmp_path):
    (tmp_path / "blanks.txt").write_text("a__a\nabcab\n_b\n")
    how = ["--draws", "2", "--output-dir", str(tmp_path / "out")]
    command(["sample", str(run), "--given", str(tmp_path / "blanks.txt"), *how])
    lines = (tmp_path / "out/samples.txt").read_text().splitlines()
    assert list(map(len, lines)) == [4, 4, 5, 5, 2, 2] and lines[2:4] == ["abcab"] * 2
    assert all(line[0] == line[3] == "a" for line in lines[:2]) and all(line[1] == "b" for line in lines[4:])
    (tmp_path / "blanks.txt").write_text("a__a" * 20 + "\n")
    with pytest.raises(UserError, match="has a line of 80 characters, and samples have 1 to"):
        command(["sample", str(run), "--given", str(tmp_path / "blanks.txt"), *how])


def test_commands_of_an_ode_refuse_tokens(run):
    for words, sentence in (
        (["reflow", str(run)], "straightens flows along an ODE, and the tokens of"),
        (["distill", str(run)], "begins from a flow of velocities"),
        (["eval", str(run), "--metrics", "straightness"], "is of a flow along an ODE, and tokens jump"),
        (["eval", str(run), "--metrics", "marginals"], "looks at values, which tokens data have not"),
    ):
        with pytest.raises(UserError, match=sentence):
            command(words)
