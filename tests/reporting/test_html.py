"""The report: one file, whole, tolerant of what is absent or damaged."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from advect.core.errors import UserError
from advect.reporting import write_report


class Page(HTMLParser):
    """Text, tags, ids and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses, self.ids, self.text, self.open = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.addresses += [values[k] for k in ("src", "href", "xlink:href", "action", "data", "poster") if k in values]
        self.ids += [values["id"]] if "id" in values else []
        self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            self.open.reverse()
            self.open.remove(tag)
            self.open.reverse()

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data + " "


def read(run) -> Page:
    return Page(write_report(run).read_text())


def test_the_report_tells_the_run(run):
    path = write_report(run)
    assert path == run / "report.html"
    text = " ".join(Page(path.read_text()).text.split())
    assert "preset digits · 1 x 8 x 8 images, 1,234 training examples" in text
    assert "Frechet distance 0.3 floor of real data: 0.15" in text
    assert "label as asked for 95.0% classifier on real data: 98.7%" in text
    assert "steps 200 20 epochs" in text and "samples seen 25,600" in text and "1 min 40 s" in text
    assert "held-out: 0.125" in text
    assert "midpoint at 4 evaluations reaches 0.3, 2 times the floor" in text
    assert "100 samples a point against 80 held-out rows, in pixel space" in text
    assert "Nothing points to copying" in text
    assert f"advect train --config {run}/config.yaml --run-dir {run}-again" in text
    assert "advect train digits --seed 3" in text
    assert "learning rate 0.001" in text and "versions: torch 2.13.0" in text


def test_it_needs_nothing_but_itself(run):
    page = write_report(run).read_text()
    assert "http" not in page.replace("http-equiv", "")
    addresses = Page(page).addresses
    assert len([a for a in addresses if a.startswith("data:image/")]) == 3 + 1 + 12 * 4
    assert all(a.startswith(("data:image/", "#")) for a in addresses)
    assert "url(" not in re.sub(r"url\(#", "", page)


def test_links_inside_the_page_lead_somewhere(run):
    page = read(run)
    assert len(page.ids) == len(set(page.ids))
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= set(page.ids)


def test_the_same_folder_gives_the_same_bytes(run):
    assert write_report(run).read_bytes() == write_report(run).read_bytes()
    assert not list(run.glob(".*"))


def test_everything_is_escaped(tmp_path, make_run):
    evil = "<script>alert(1)</script>"
    run = make_run(tmp_path / "<img src=x onerror=alert(1)>")
    (run / "config.yaml").write_text(f"preset: '{evil}'\ntraining:\n  '{evil}': '{evil}'\n")
    (run / "environment.json").write_text(json.dumps({"command": evil, "device": evil, evil: [evil]}))
    page = write_report(run).read_text()
    assert evil not in page and "<img src=x" not in page and "<b>one</b>" not in page
    assert page.count("<script") == 2


def test_absent_parts_name_the_command_that_makes_them(tmp_path):
    run = tmp_path / "my run"
    run.mkdir()
    (run / "config.yaml").write_text("preset: digits\n")
    text = read(run).text
    assert "advect train --sample-every" in text
    assert f"advect report '{run}'" in text
    assert "No training metrics yet" in text
    assert f"--config '{run}/config.yaml'" in text


@pytest.mark.parametrize("name", ["trajectories", "neighbours"])
def test_an_absent_part_of_the_evaluation_is_named(run, name):
    (run / f"evaluation/{name}.npz").unlink()
    text = read(run).text
    assert "not there" in text and "advect report" in text and "Quality against cost" in text


@pytest.mark.parametrize(
    "name", ["evaluation/quality.json", "evaluation/neighbours.npz", "evaluation/trajectories.npz", "environment.json"]
)
@pytest.mark.parametrize("harm", ["half", "empty", "other"])
def test_damaged_parts_are_noted_and_left_out(run, name, harm):
    data = (run / name).read_bytes()
    (run / name).write_bytes({"half": data[: len(data) // 2], "empty": b"", "other": b"[1, 2]"}[harm])
    text = read(run).text
    assert "Training" in text
    if harm != "empty" or name.endswith("npz"):
        assert f"{name} is damaged" in text


def test_pickles_are_not_opened(run):
    np.savez(run / "evaluation/trajectories.npz", t=np.array([{}], dtype=object), x=np.zeros(3))
    assert "trajectories.npz is damaged" in read(run).text


def test_a_file_of_another_version_is_not_guessed_at(run):
    (run / "evaluation/quality.json").write_text('{"format": 99}')
    assert "of another version of advect" in read(run).text


def test_half_a_last_line_is_normal_and_half_a_middle_line_is_not(run):
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(whole + '{"step": 201, "lo')
    assert "could not be read" not in read(run).text
    (run / "metrics.jsonl").write_text('{"step": 0\n' + whole + '{"step": 201, "loss": NaN}\n')
    text = read(run).text
    assert "1 of 204 lines of metrics.jsonl could not be read" in " ".join(text.split())
    assert "25,600" in text


def test_a_broken_picture_is_left_out(run):
    (run / "samples/step-00000900.png").write_bytes(b"\x89PNG nonsense")
    text = read(run).text
    assert "step-00000900.png is not a whole picture" in text and "step 200" in text


def test_many_large_pictures_stay_under_three_megabytes(tmp_path, make_run):
    run = make_run(tmp_path / "celeba", shape=(3, 64, 64), pictures=14, pixels=24)
    page = write_report(run).read_text()
    assert len(page) < 3_000_000
    assert page.count('alt="Samples at step') == 12
    assert "Samples at step 0" in page and "Samples at step 1,300" in page


def test_vectors_get_lines_and_no_tiles(tmp_path, make_run):
    run = make_run(tmp_path / "moons", shape=(2,))
    page = write_report(run).read_text()
    assert "2-dimensional vectors" in page and "means and covariances only" in page
    assert 'aria-label="trajectories"' in page and 'alt="training image"' not in page


def test_copied_data_are_called_out(run):
    file = run / "evaluation/quality.json"
    values = json.loads(file.read_text())
    values["memorisation"]["share_closer"] = 0.4
    file.write_text(json.dumps(values))
    assert "training data may have been copied" in read(run).text


def test_it_reads_without_script(run):
    page = write_report(run).read_text()
    bare = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    style = re.search(r"<style>.*?</style>", page, re.DOTALL).group()
    hidden = [
        line for line in style.splitlines() if "display: none" in line and not line.startswith((".js", "@media"))
    ]
    assert [line.split()[0] for line in hidden] == [".scrub", ".copy"]  # what only a script can move
    assert bare.count('alt="Samples at step') == 3


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a run folder: it has no config\.yaml"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="is not a run folder"):
        write_report(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []
