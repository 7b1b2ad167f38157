"""The report: one page that holds all it shows, looked at in a real browser, with its pictures beside it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from test_result import result_of, run_of

from edge_cl.errors import OperatorError
from edge_cl.evaluation import plots, theme
from edge_cl.evaluation.plots import _apart, _looked_up, draw
from edge_cl.evaluation.report import PAGE, prepare, write_report
from edge_cl.evaluation.result import Result

COMMAND = "edge-cl evaluate digits --compare er,<b>&none --seeds 2"
VOID = {"meta", "br", "hr", "img", "link", "input"}
ALL = {"accuracy-over-time", "accuracy-matrix", "accuracy-against-bytes", "prequential-accuracy"}


def compared() -> list[Result]:
    """Three results in which every figure has something to show, one with a name that must be escaped."""
    runs = run_of(0), run_of(1, no_change=0.8)
    other = run_of(0, replay_bytes=2000), run_of(1, replay_bytes=2000)
    none = run_of(0, replay_bytes=0), run_of(1, replay_bytes=0)
    return [result_of(*runs), result_of(*other), result_of(*none, strategy="<b>&none", settings=("replay.samples=0",))]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(compared(), tmp_path_factory.mktemp("report"), command=COMMAND)


class Reading(HTMLParser):
    """A page read tag by tag: that they are balanced, the texts, and whatever it would load or lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                self.loads.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_is_well_formed_and_loads_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    reading = Reading(text)
    assert reading.open == []
    assert "script" not in text.lower()
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert len(reading.ids) == len(set(reading.ids))
    inside = [load[1:] for load in reading.loads if load.startswith("#")]
    assert set(inside) <= set(reading.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(reading.ids)
    assert {load for load in reading.loads if not load.startswith("#")} == {f"{name}.png" for name in ALL}


def test_every_picture_named_is_there_and_wide_enough(page: Path) -> None:
    assert {file.name for file in page.parent.iterdir()} == {PAGE, *(f"{name}.png" for name in ALL)}
    for name in ALL:
        assert imread(page.parent / f"{name}.png").shape[1] >= 720


def test_the_page_says_what_came_out_and_how_it_was_made(page: Path) -> None:
    words = " ".join(" ".join(Reading(page.read_text(encoding="utf-8")).texts).split())
    for expected in (
        "digits, class-incremental",
        "best of 2 strategies: er, average accuracy 76.7 %",
        COMMAND,
        "<b>&none",
        "replay.samples=0",
        "85.0 ± 7.1",  # no change, of 0.9 and 0.8
        "torch",
        "numpy",
        "0 1",
    ):
        assert expected in words


def test_what_else_is_in_the_directory_stays(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / PAGE).write_text("an older report", encoding="utf-8")
    write_report(compared()[:1], tmp_path, command=COMMAND)
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert Reading((tmp_path / PAGE).read_text(encoding="utf-8")).open == []
    assert {file.suffix for file in tmp_path.iterdir()} == {".txt", ".html", ".png"}


def test_a_directory_is_made_with_all_above_it(tmp_path: Path) -> None:
    prepare(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_report_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OperatorError, match=re.escape(f"cannot write a report into {directory}")) as caught:
            prepare(directory)
        assert "--report" in caught.value.hint


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
def test_a_library_that_is_missing_is_named(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(OperatorError, match=f"a report needs {library}") as caught:
        prepare(tmp_path)
    assert "edge-cl[evaluation]" in caught.value.hint


# The figures


def test_a_stream_has_only_the_figure_of_a_stream() -> None:
    run = run_of(accuracy_matrix=[[None]], untrained=[None], curve=[], lowest_old_accuracy=None)
    drawings = draw([result_of(run, experiences=("elec2",), ends=(300,), scenario="stream")])
    assert [drawing.name for drawing in drawings] == ["prequential-accuracy"]
    assert {"no change", "majority", "er"} <= set(texts(drawings[0]))


def test_the_matrix_shows_every_number_and_the_panels_their_ends() -> None:
    drawing = next(drawing for drawing in draw([result_of()]) if drawing.name == "accuracy-matrix")
    found = texts(drawing)
    assert [word for word in found if word in {"90", "10", "20", "70", "80", "30", "60", "75", "95"}] == [
        "90", "10", "20", "70", "80", "30", "60", "75", "95",
    ]  # fmt: skip
    assert "er: 76.7 % at the end" in found


def test_two_results_stand_side_by_side_on_the_same_axis() -> None:
    low = run_of(curve=[(50, [0.31, None, None]), (300, [0.31, 0.31, 0.31])])
    drawing = next(d for d in draw([result_of(), result_of(low, strategy="ewc")]) if d.name == "accuracy-over-time")
    titles = [element for element in elements(drawing) if (element.text or "").endswith("% at the end")]
    assert len({element.attrib["y"] for element in titles}) == 1
    assert len({element.attrib["x"] for element in titles}) == 2
    assert [word for word in texts(drawing) if word == "40"] == ["40"]  # one scale for both


def test_the_names_of_lines_at_the_bottom_stay_inside_the_panel() -> None:
    flat = run_of(curve=[(at, [0.0, 0.0, 0.0]) for at in (50, 150, 250, 300)])
    drawing = next(d for d in draw([result_of(flat)]) if d.name == "accuracy-over-time")
    ticks = [element for element in elements(drawing) if element.text == "100"]
    bottom = max(float(element.attrib["y"]) for element in elements(drawing) if element.text == "0")
    ends = sorted(float(e.attrib["y"]) for e in elements(drawing) if e.text in {"1", "2", "3"})[-3:]
    assert ticks
    assert max(ends) < bottom
    assert min(b - a for a, b in pairwise(ends)) > 7  # points: none upon another


def test_the_same_results_give_the_same_bytes() -> None:
    once, again = draw([result_of()]), draw([result_of()])
    assert once == again


def test_a_figure_takes_the_colours_of_its_page() -> None:
    named = set(re.findall(r"--([\w]+):", theme.variables(dark=False)))
    assert named == set(re.findall(r"--([\w]+):", theme.variables(dark=True)))
    for drawing in draw(compared()):
        used = set(re.findall(r"var\(--(\w+)\)", drawing.svg))
        assert used <= named
        assert {"muted", "grid"} <= used
        assert not re.search(f"{theme.INK}|{theme.MUTED}|{theme.GRID}", drawing.svg)


def test_runs_looked_at_in_other_places_are_compared_in_the_same() -> None:
    curve = [(100, [0.2, None]), (200, [0.4, 0.5]), (300, [0.6, 0.7])]
    found = _looked_up(curve, np.array([50.0, 150.0, 250.0]))
    np.testing.assert_allclose(found, [[np.nan, np.nan], [0.3, np.nan], [0.5, 0.6]])


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12))
@settings(max_examples=60)
def test_names_keep_their_order_their_distance_and_their_frame(heights: list[float]) -> None:
    ordered = sorted(heights)
    places = _apart(ordered, 4.0, 0.0, 100.0)
    assert all(b - a >= 4.0 - 1e-9 for a, b in pairwise(places))
    assert places[0] >= -1e-9
    assert places[-1] <= 100 + 1e-9
    if all(b - a >= 4.0 for a, b in pairwise(ordered)):
        assert places == pytest.approx(ordered)  # nothing is moved without need


def elements(drawing: plots.Drawing) -> list[ElementTree.Element]:
    """The texts of a figure; drawn by our own code, so no stranger's XML."""
    return list(ElementTree.fromstring(drawing.svg).iter("text"))


def texts(drawing: plots.Drawing) -> list[str]:
    return [(element.text or "").strip() for element in elements(drawing)]


# In a browser


def chromium(*arguments: str, profile: Path) -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert found, "the report is looked at in a browser: apt-get install chromium"
    command = [found, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def pixels(page: Path, folder: Path, *arguments: str) -> np.ndarray:
    """What the browser shows of it, (H, W, 3) from 0 to 1."""
    chromium("--window-size=900,1200", f"--screenshot={folder / 'shot.png'}", *arguments, page.as_uri(), profile=folder)
    return imread(BytesIO((folder / "shot.png").read_bytes()))[..., :3]


def test_it_is_light_or_dark_with_the_browser_and_figures_are_drawn_in_both(page: Path, tmp_path: Path) -> None:
    light = pixels(page, tmp_path)
    dark = pixels(page, tmp_path, "--blink-settings=preferredColorScheme=0")
    assert np.median(light) > 0.95
    assert np.median(dark) < 0.15
    for shown in (light, dark):
        figures = shown[450:]
        saturation = figures.max(2) - figures.min(2)
        assert (saturation > 0.3).mean() > 0.005  # coloured lines and cells, not only text


def test_on_a_phone_wide_parts_scroll_and_the_page_does_not(page: Path, tmp_path: Path) -> None:
    frame = tmp_path / "phone.html"
    widths = "document.documentElement.scrollWidth, innerWidth, document.querySelectorAll('svg').length"
    asked = f"top.document.title = [{widths}]"
    inner = page.read_text(encoding="utf-8").replace("</body>", f"<script>{asked}</script></body>")
    (tmp_path / "inner.html").write_text(inner, encoding="utf-8")
    frame.write_text('<iframe src="inner.html" width="360" height="640" style="border:0"></iframe>', encoding="utf-8")
    dom = chromium("--allow-file-access-from-files", "--dump-dom", frame.as_uri(), profile=tmp_path / "profile")
    found = re.search(r"<title>(\d+),(\d+),(\d+)</title>", dom)
    assert found, dom
    assert [int(number) for number in found.groups()] == [360, 360, len(ALL)]
