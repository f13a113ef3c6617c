"""The command line as a person meets it: one sentence and exit code 2 for every mistake, nothing half-written."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advect import cli
from advect.core.errors import UserError

FLAGS = (
    "--data-dir faces --image-size 64 --model-channels 128 --channel-mult 1 2 2 4 --num-res-blocks 2 "
    "--attention-resolutions 16 8 --dropout 0.1 --sigma-min 1e-4 --batch-size 32 --num-epochs 100 "
    "--learning-rate 2e-4 --weight-decay 0 --grad-clip 1.0 --lr-warmup-steps 1000 --use-ema --ema-decay 0.9999 "
    "--mixed-precision --compile-model --sample-every 1000 --save-every 5000 --log-every 50 --num-samples 64 "
    "--sample-steps 50 --num-workers 4 --seed 42 --max-steps 10 --max-minutes 5 --run-dir out"
)


def exit_code(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["advect", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


MISTAKES = [
    ("trian", "command 'trian' is not known; did you mean 'train'?"),
    ("train digitz", "preset 'digitz' is not known; did you mean 'digits'?"),
    ("train digits --learnin-rate 1", "not a flag of advect train digits; did you mean '--learning-rate'"),
    ("train moons --channel-mult 1 2", "--channel-mult is not a flag of advect train moons"),
    ("train --max-steps 3 digits extra", "'extra' is one word too many"),
    ("train --conditions=a digits", "--conditions is not a flag of advect train digits"),
    ("sample --num-samples 3 nowhere", "nowhere does not exist"),
    ("sample --cond label=7 empty", "empty holds no checkpoint"),
    ("eval --no-use-ema --nfe 1 2 nowhere", "nowhere does not exist"),
    ("eval --features nowhere --guidance-interval 0 1", "advect eval needs a run, such as"),
    ("reflow --iterations 1 nowhere", "nowhere does not exist"),
    ("report --seed 1 nowhere", "nowhere is not a run folder"),
    ("data pack --image-size 8 nowhere", "nowhere"),
    ("doctor --samples 9 nowhere", "nowhere does not exist"),
    ("train digits extra", "'extra' is one word too many"),
    ("train digits --batch-size 0", "--batch-size must be at least 1 and at most 16,777,216, got 0"),
    ("train digits --learning-rate -1", "--learning-rate must be above 0 and at most 1,000, got -1.0"),
    ("train digits --dropout 1.5", "--dropout must be at least 0 and below 1, got 1.5"),
    ("train digits --ema-decay 1", "--ema-decay must be at least 0 and below 1, got 1.0"),
    ("train digits --ema-also 0.9 1", "--ema-also must be at least 0 and below 1, got 0.9 1.0"),
    ("train digits --ema-also 0.995", "--ema-also 0.995 names a decay twice, or --ema-decay 0.995"),
    ("train digits --posthoc-every 5", "--posthoc-every and --posthoc-lengths do nothing without --posthoc-ema"),
    ("train digits --posthoc-lengths 0.1", "--posthoc-every and --posthoc-lengths do nothing without --posthoc-ema"),
    ("train digits --posthoc-ema --no-use-ema", "--no-use-ema contradicts --ema-also and --posthoc-ema"),
    ("train digits --posthoc-ema --posthoc-lengths 0.1 0.1", "--posthoc-lengths needs different lengths"),
    ("train digits --posthoc-ema --posthoc-lengths 0.3", "must be above 0 and below 0.289, got 0.3"),
    ("train digits --posthoc-ema --posthoc-every 0", "--posthoc-every must be at least 1 and at most"),
    ("ema", "advect ema needs a run, such as"),
    ("ema nowhere --length 0.05", "nowhere does not exist"),
    ("train digits --batch-size many", "'many'"),
    ("train digits --times sometimes", "--times sometimes is not known; choose from uniform, stratified"),
    ("train digits --attention-resolutions 5", "5"),
    ("train digits --channel-mult 1 2 2 2 2", "8"),
    ("train moons --label-dropout 0.1", "--label-dropout is 0.1, but the data have no labels"),
    ("train digits --device abacus", "--device abacus cannot be used here"),
    ("train digits --config x.yaml", "contradict"),
    ("train --config missing.yaml", "--config missing.yaml cannot be read"),
    ("train --resume-from nowhere", "nowhere does not exist"),
    ("train fashion-mnist", "--data-dir is not given"),
    ("train fashion-mnist --data-dir missing", "missing"),
    ("train celeba64 --data-dir empty", "empty"),
    ("train celeba64 --data-dir faces --image-size 50 --channel-mult 1 2 2 4", "50"),
    ("sample", "advect sample needs a run, such as"),
    ("sample nowhere", "nowhere does not exist"),
    ("report nowhere", "nowhere is not a run folder"),
    ("eval", "advect eval needs a run, such as"),
    ("eval nowhere", "nowhere does not exist"),
    ("eval --compare notes/a.png", "--compare needs two files or more, got 1"),
    ("eval --compare notes/a.png notes/a.png", "notes/a.png is not whole JSON"),
    ("eval nowhere --compare notes/a.png", "'nowhere' is one word too many"),
    ("train digits --optimizer-betas 0.9 1.5", "--optimizer-betas must be at least 0 and below 1, got 0.9 1.5"),
    ("train digits --optimizer muon --optimizer-eps 0", "--optimizer-eps must be above 0 and at most 1, got 0"),
    ("train digits --optimizer-momentum 0.9", "it goes with --optimizer muon"),
    ("train digits --eval-every 5 --keep-best kernle", "nvalid choice"),
    ("train digits --lr 1", "did you mean --lr-schedule or --lr-warmup-steps?"),
    ("train moons --solver rk9", "--solver rk9 is not known; did you mean 'rk4'?"),
    ("report nowhere --no-measure --nfes 4", "measures nothing; leave --nfes"),
    ("presets now", "takes no arguments"),
    ("train --data nowhere", "'nowhere' does not exist; name a file or folder of data"),
    ("train --data empty", "'empty' is a folder without data that is known here; it may hold png, jpg, webp"),
    ("train --data faces --data-dir faces", "--data faces and --data-dir contradict each other"),
    ("train digits --data faces", "preset digits brings its own data, so --data faces does not go with it"),
    ("train table --data faces", "preset table does not train on a folder of images, so --data faces"),
    ("train --data faces --data-format cells", "--data faces cannot be read as --data-format cells"),
    ("train cells --data-format table --data-dir x", "--data-format table is none that preset cells takes"),
    ("train --data notes", "notes/a.png among them (it is in no image format that is known here)"),
    ("train --data ragged.csv", "ragged.csv line 3 has 1 fields, the header 2"),
    ("train --data hollow.csv", "column"),
    ("train --data steps.csv --conditions knd", "no column 'knd'; did you mean 'kind'?"),
    ("train sequences --data-dir steps.csv", "--id-column is not given; name the column of"),
    ("train --data twice.csv --id-column a", "not a flag of advect train table; it goes with --data-format sequences"),
    ("train --data bad.h5ad", "bad.h5ad is not an .h5ad file, or a damaged one"),
    ("train --data bad.zip", "bad.zip"),
    ("train images --data-dir faces --crop 0", "--crop must be at least 1 and at most 16,384, got 0"),
    ("train arrays --data-dir nan.npy", "nan.npy has NaN or an infinite value in row 1"),
    ("train cells", "--data-dir is not given; name the .h5ad file"),
    ("data", "advect data needs one of pack, verify"),
    ("data pakc faces", "advect data pakc is not known; did you mean 'pack'?"),
    ("data pack", "advect data pack needs a PATH, such as"),
    ("data pack empty", "empty holds no image to pack"),
    ("data verify faces", "faces is no pack, it has no manifest.json"),
    ("data verify faces --deep", "advect data verify takes a PATH alone"),
    ("data pack faces --image-size 0", "--image-size must be at least 1 and at most 16,384, got 0"),
]  # fmt: skip


def write_odd_data(folder: Path) -> None:
    (folder / "notes").mkdir()
    (folder / "notes" / "a.png").write_text("no image")
    (folder / "ragged.csv").write_text("a,b\n1,2\n3\n")
    (folder / "hollow.csv").write_text("a,b\n,\n,\n")
    (folder / "twice.csv").write_text("a,b\n1,2\n3,4\n")
    (folder / "steps.csv").write_text("id,t,x,kind\n" + "".join(f"{i // 3},{i},0.5,1\n" for i in range(9)))
    (folder / "bad.h5ad").write_bytes(b"no")
    (folder / "bad.zip").write_bytes(b"PK\3\4" + bytes(30))
    np.save(folder / "nan.npy", np.array([[1.0, 2], [np.nan, 3]]))


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    words: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "faces").mkdir()
    for i in range(2):
        Image.new("RGB", (80, 80), (i, 0, 0)).save(tmp_path / f"faces/{i}.png")
    write_odd_data(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert exit_code(words.split(), monkeypatch) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.startswith("advect: ")
    assert printed.err.count("\n") == 1 and "Traceback" not in printed.err
    assert sorted(tmp_path.rglob("*")) == before


def write_idx(folder: Path, *, images: bytes | None = None) -> None:
    folder.mkdir()
    for part, n in (("train", 6), ("t10k", 4)):
        pixels = bytes([0, 0, 8, 3, 0, 0, 0, n, 0, 0, 0, 28, 0, 0, 0, 28]) + bytes(n * 784)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(pixels))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, n]) + bytes(range(n)))
    if images is not None:
        (folder / "train-images-idx3-ubyte.gz").write_bytes(images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (bytes([0, 0, 8, 3, 0, 0, 0, 6, 0, 0, 0, 28, 0, 0, 0, 28]) + bytes(6 * 784 - 1), "train-images"),
        (bytes([9, 9, 9, 9]) + bytes(100), "train-images"),
        (gzip.compress(bytes(5000), mtime=0)[:-9], "train-images"),
    ],
    ids=["truncated", "magic number", "cut gzip"],
)
def test_damaged_idx_files_are_named(
    images: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    write_idx(tmp_path / "idx", images=images)
    assert exit_code(["train", "fashion-mnist", "--data-dir", "idx"], monkeypatch) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_idx_files_train(advect: Callable[..., None], tmp_path: Path) -> None:
    write_idx(tmp_path / "idx")
    advect(
        "train fashion-mnist --data-dir idx --model-channels 8 --channel-mult 1 2 --attention-resolutions 14",
        "--max-steps 2 --batch-size 4 --sample-every 0 --num-res-blocks 1 --log-every 1 --run-dir run",
    )
    assert (tmp_path / "run/checkpoints/step-00000002").is_dir()


@pytest.mark.parametrize("damage", ["truncate", "flip", "newer", "manifest"])
def test_a_damaged_checkpoint_is_refused(
    damage: str, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits_run, tmp_path / "run")
    checkpoint = tmp_path / "run/checkpoints/step-00000012"
    weights, manifest = checkpoint / "model.safetensors", checkpoint / "manifest.json"
    content = bytearray(weights.read_bytes())
    if damage == "truncate":
        weights.write_bytes(content[:-10])
    elif damage == "flip":
        content[-100] ^= 1
        weights.write_bytes(content)
    elif damage == "newer":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    else:
        manifest.write_text(manifest.read_text().replace('"step": 12', '"step": 13'))
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    for words in ("train --resume-from run", "sample run"):
        assert exit_code(words.split(), monkeypatch) == 2
        err = capsys.readouterr().err
        assert ("format 99" if damage == "newer" else "is damaged") in err and err.count("\n") == 1
        assert damage == "newer" or "step-00000006" in err  # the whole one beside it
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_every_listed_flag_is_parsed_and_dry_run_prints_the_configuration(
    advect: Callable[..., None], capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    advect("train celeba64", FLAGS, "--dry-run")
    text = capsys.readouterr().out
    (tmp_path / "config.yaml").write_text(text)
    for line in (
        "mixed_precision: true",
        "compile_model: true",
        "seed: 42",
        f"data_dir: {tmp_path}/faces",
        "sigma_min: 0.0001",
    ):
        assert line in text
    advect("train --config config.yaml --dry-run")
    assert capsys.readouterr().out == text
    assert not (tmp_path / "out").exists() and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("digits --dropout 2", "--dropout must be at least 0 and below 1, got 2.0"),
        ("digits --channel-mult 0", "--channel-mult must be at least 1 and at most 1,024, got 0"),
        ("digits --network mlp", "--network mlp does not take image data"),
        ("moons --path polynomial --path-n -1", "--path-n must be at least 1 and at most 100, got -1.0"),
        ("moons --times logit-normal --times-std -1", "--times-std must be above 0 and at most 100"),
        ("moons --grid shifted --grid-shift -1", "--grid-shift must be above 0 and at most 1,000"),
        ("moons --objective score-matching", "--prediction must be 'score' or 'noise'"),
        ("images --data faces --crop 0", "--crop"),
        (
            "celeba64 --data-dir later --image-size 30 --channel-mult 1 2 2 4",
            "(3, 30, 30) must have a height divisible by 8",
        ),
        ("arrays --data-dir later.npy --coupling sinkhorn --coupling-epsilon -1", "--coupling-epsilon"),
    ],
)
def test_a_dry_run_builds_every_part_and_writes_nothing(
    advect: Callable[..., None], tmp_path: Path, words: str, message: str
) -> None:
    (tmp_path / "faces").mkdir()
    for i in range(3):
        Image.new("RGB", (80, 80), (i, 0, 0)).save(f"faces/{i}.png")
    with pytest.raises(UserError) as error:
        advect("train", words, "--dry-run")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["faces"]


def test_no_preset_means_digits(advect: Callable[..., None], capsys: pytest.CaptureFixture) -> None:
    advect("train --dry-run")
    assert capsys.readouterr().out.startswith("preset: digits\n")


def test_sample_writes_arrays_pictures_and_facts(
    advect: Callable[..., None], digits_run: Path, tmp_path: Path
) -> None:
    advect("sample", digits_run, "--num-samples 6 --num-steps 2 --cond label=7 --guidance 2 --seed 3 --output-dir out")
    arrays = np.load("out/samples.npz")
    assert arrays["x"].shape == (6, 1, 8, 8) and arrays["label"].tolist() == [7] * 6
    facts = json.loads(Path("out/samples.json").read_text())
    assert facts["nfe"] == 4 and facts["seed"] == 3 and facts["guidance"] == 2.0
    Image.open("out/samples.png").verify()
    with pytest.raises(UserError, match="already holds samples"):
        advect("sample", digits_run, "--output-dir out")
    advect("sample", digits_run, "--num-samples 2 --num-steps 2 --output-dir out --overwrite --save-individual")
    assert len(list(Path("out").glob("sample-*.png"))) == 2


def test_the_same_seed_gives_the_same_bytes(advect: Callable[..., None], moons_run: Path) -> None:
    for folder in ("a", "b"):
        advect("sample", moons_run, "--num-samples 20 --num-steps 3 --seed 5 --output-dir", folder)
    assert np.array_equal(np.load("a/samples.npz")["x"], np.load("b/samples.npz")["x"])
    assert Path("a/samples.png").read_bytes() == Path("b/samples.png").read_bytes()


def test_report_of_images_and_of_vectors(advect: Callable[..., None], digits_run: Path, moons_run: Path) -> None:
    for run in (digits_run, moons_run):
        copy = Path(run.name)
        shutil.copytree(run, copy)
        advect("report", copy, "--num-samples 40 --nfes 2 4")
        page = (copy / "report.html").read_text()
        assert page.count("<svg") >= 3 and "data:image/png;base64," in page
        quality = json.loads((copy / "evaluation/quality.json").read_text())
        assert quality


@pytest.mark.parametrize("words", [[], ["--help"], ["presets", "--help"]])
def test_the_first_help_names_what_to_start_with(words: list[str], capsys: pytest.CaptureFixture) -> None:
    cli.run(words)
    assert "digits" in capsys.readouterr().out


def flags_in_help(words: str, capsys: pytest.CaptureFixture) -> tuple[set[str], str]:
    with pytest.raises(SystemExit) as stop:
        cli.run(words.split())
    assert not stop.value.code
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    return set(re.findall(r"^[│ ] (--[a-z0-9-]+)", text, flags=re.MULTILINE)), text


@pytest.mark.parametrize(
    ("command", "hidden"),
    [
        ("train", True),
        ("train moons", True),
        ("reflow RUN", True),
        ("eval RUN", True),
        ("eval --compare", False),
        ("sample", False),
        ("report RUN", False),
        ("ema RUN", False),
        ("doctor", False),
        ("data pack PATH", False),
    ],
)
def test_help_shows_two_dozen_flags_and_says_how_to_see_all(
    command: str, hidden: bool, capsys: pytest.CaptureFixture
) -> None:
    usual, text = flags_in_help(f"{command} --help", capsys)
    every, _ = flags_in_help(f"{command} --help-all", capsys)
    assert 1 < len(usual) <= 30 and usual <= every and (usual < every) is hidden
    assert ("--help-all shows all" if hidden else "These are all flags") in text


@pytest.mark.parametrize("words", ["data --help", "data verify PATH --help"])
def test_jobs_on_data_are_explained(words: str, capsys: pytest.CaptureFixture) -> None:
    cli.run(words.split())
    assert "verify PATH" in capsys.readouterr().out


def test_importing_advect_and_help_load_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "matplotlib", "sklearn", "tyro", "tensorboard", "PIL"}
    for code in ("import advect", "import advect.cli; advect.cli.run(['--help'])"):
        program = f"{code}; import sys; print('LOADED', *sorted(sys.modules))"
        out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        assert not heavy & set(out.split("LOADED")[1].split())


def test_warnings_of_libraries_are_not_shown_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    def noisy(words: list[str]) -> None:
        for kind in (DeprecationWarning, FutureWarning, RuntimeWarning, UserWarning):
            warnings.warn_explicit(f"old {kind.__name__}", kind, "library.py", 7)
        assert warnings.filters == filters

    filters = list(warnings.filters)
    before = warnings.showwarning
    monkeypatch.setattr("advect.commands.presets.run", noisy)
    monkeypatch.setattr(sys, "warnoptions", [])
    with caplog.at_level("DEBUG", "advect"):
        monkeypatch.setattr("advect.cli.log_to_console", lambda: None)  # which sets the level
        cli.run(["presets"], own_process=True)
    assert not recwarn and "library.py:7: FutureWarning: old FutureWarning" in caplog.messages
    assert (warnings.filters, warnings.showwarning) == (filters, before)
    monkeypatch.setattr(sys, "warnoptions", ["default"])
    cli.run(["presets"], own_process=True)
    assert "old UserWarning" in [str(found.message) for found in recwarn]
