"""The dashboard shows what the status says, in any width, without colour, and whatever a source calls itself."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.screen import Screen

from edge_cl.errors import IOFault
from edge_cl.service import plot
from edge_cl.service.dashboard import clock, drops, exam_panel, plain, plan_table, render
from edge_cl.service.status import FILE, ExamPoint, Status, Summary, blank, read_status, write_status
from edge_cl.service.summary import summary

NAMES = ["normal", "unbalance", "looseness"]


def busy() -> Status:
    """A status with something to show in every place."""
    status = blank()
    status.update(
        state="running",
        started_s=1000.0,
        updated_s=1061.0,
        source="simulated:motor",
        model="cnn1d",
        label_names=NAMES,
        samples=9812,
        learned=5934,
        steps=594,
        consolidations=3,
        samples_per_s=208.4,
        prequential_accuracy=0.893,
        prequential_history=[0.2, 0.5, 0.8, 0.9],
        exam=[
            {"label": "normal", "samples": 24, "accuracy": 0.42},
            {"label": "unbalance", "samples": 20, "accuracy": 0.96},
            {"label": "looseness", "samples": 3, "accuracy": None},
        ],
        exam_history=[
            ExamPoint(steps=100, accuracy={"normal": 1.0}),
            ExamPoint(steps=200, accuracy={"normal": 0.6, "unbalance": 0.96}),
        ],
        replay_samples=212,
        replay_capacity=300,
        replay_bytes=162816,
        budget_bytes=8 << 20,
        plan=[{"part": "parameters", "bytes": 1 << 20}, {"part": "replay", "bytes": 3 << 20}],
        step_p50_ms=3.12,
        step_p99_ms=8.21,
        step_budget_ms=50.0,
        predict_p50_ms=0.11,
        predict_p99_ms=23.2,
        predict_budget_ms=20.0,
        rss_bytes=312 << 20,
        rss_peak_bytes=330 << 20,
        dropped={"queue_oldest": 12, "crc": 0, "nonfinite": 3},
        snapshot="run/snapshots/current/model.onnx",
        snapshot_age_s=65.0,
        true_label="looseness",
        predicted_label="normal",
        message="snapshot 000003 published",
    )
    return status


def drawn(what: RenderableType, width: int = 80, height: int | None = None, **options: object) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, highlight=False, _environ={}, **options)  # type: ignore[arg-type]
    console.print(what)
    return out.getvalue()


def on_screen(status: Status, width: int, height: int) -> list[str]:
    """The lines of a whole terminal, as Live draws it."""
    return drawn(Screen(render(status, full_screen=True)), width, height).splitlines()


@pytest.mark.parametrize("width", [80, 100, 130, 250])
def test_the_screen_shows_every_figure_and_keeps_to_its_width(width: int) -> None:
    text = drawn(render(busy()), width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    for figure in (
        "simulated:motor", "cnn1d", "running 1:01", "208 samples/s", "5,934 learnt", "3 consolidations", "89.3%",
        "says normal, was looseness", "42.0%", "96.0%", "4.00 MiB of 8.00 MiB", "replay 212/300, 159 KiB", "312 MiB",
        "330 MiB", "p50 3.12  p99 8.21 of 50 ms", "p99 23.2 of 20 ms", "queue_oldest 12, nonfinite 3",
        "run/snapshots/current/model.onnx, 1:05 old", "snapshot 000003 published",
    ):  # fmt: skip
        assert figure in text, figure


@pytest.mark.parametrize("width", [20, 40, 60])
def test_a_narrow_terminal_is_no_error(width: int) -> None:
    assert max(cell_len(line) for line in drawn(render(busy()), width).splitlines()) <= width


@pytest.mark.parametrize(("width", "height", "hidden"), [(80, 24, 15), (80, 30, 9), (120, 24, 12), (120, 40, 0)])
def test_it_fits_the_terminal_and_shows_the_worst_classes_first(width: int, height: int, hidden: int) -> None:
    status = busy()
    status["exam"] = [{"label": f"class {i}", "samples": 9, "accuracy": i / 20} for i in range(20)]
    status["plan"] = [{"part": f"part {i}", "bytes": 1 << 18} for i in range(10)]
    text = "\n".join(lines := on_screen(status, width, height))
    assert len(lines) <= height
    assert "snapshot 000003 published" in text  # the last line is on it
    assert "class 0" in text
    assert ("class 19" in text) == (hidden == 0)
    assert hidden == 0 or f"the worst; {hidden} more" in text


def test_a_higher_terminal_shows_a_higher_curve() -> None:
    bottom = [
        next(number for number, line in enumerate(on_screen(busy(), 120, height)) if line.startswith("│   0% "))
        for height in (20, 24, 50, 90)
    ]
    assert bottom == sorted(bottom)
    assert bottom[0] < bottom[1] < bottom[2] == bottom[3]


def test_forgetting_shows_as_points_lost_since_the_best() -> None:
    status = busy()
    row = next(
        line for line in drawn(exam_panel(status["exam"], status["exam_history"])).splitlines() if "normal" in line
    )
    assert row.split()[-2] == "58"  # once 100 %, now 42 %
    assert "█▅" in row, "how it did after each of the two consolidations"
    better = next(
        line for line in drawn(exam_panel(status["exam"], status["exam_history"])).splitlines() if "unbal" in line
    )
    assert "·█" in better, "not known yet at the first"


def test_a_time_over_its_budget_is_red_and_one_below_is_not() -> None:
    lines = drawn(render(busy()), force_terminal=True, color_system="standard").splitlines()
    over = next(line for line in lines if "23.2" in line)
    assert "\x1b[1;31mp99 23.2" in over
    within = next(line for line in lines if "8.21" in line)
    assert "\x1b[32mp99 8.21" in within


def test_what_the_governor_withholds_is_in_the_title_and_in_the_summary() -> None:
    status = busy()
    assert ", replay" not in drawn(render(status), 120)
    status["governor"].update(
        replay_per_step=0, replay_wanted=20, skipping=3, lowered=6, raised=1, skipped_samples=1230, skipped_batches=123
    )
    status["step_limit"] = {"kept": False, "recent_seconds": 100, "recent_late": 4, "seconds": 300, "late": 9}
    assert "latency, replay 0 of 20, learns 1 of 4, late in 4 of 100 s" in drawn(render(status), 200)
    told = drawn(summary({"governor": status["governor"], "step_limit": status["step_limit"]}), 160)
    assert "steps late in 9 of 300 seconds; replay lowered 6 and raised 1 times, 1,230 samples not learnt" in told
    assert "governor" not in drawn(summary({"governor": busy()["governor"], "step_limit": busy()["step_limit"]}))


def test_no_color_takes_the_colour_and_leaves_the_shapes() -> None:
    out = io.StringIO()
    Console(file=out, width=80, force_terminal=True, _environ={"NO_COLOR": "1", "TERM": "xterm-256color"}).print(
        render(busy())
    )
    text = out.getvalue()
    assert "\x1b[3" not in text
    assert "\x1b[9" not in text
    assert "█" in text
    assert "░" in text


def test_a_label_cannot_steer_the_terminal() -> None:
    status = busy()
    evil = "\x1b]0;owned\x07\x9b31m\u202e[red]x"
    status["exam"] = [{"label": evil, "samples": 1, "accuracy": 1.0}]
    status["exam_history"] = [ExamPoint(steps=1, accuracy={evil: 1.0})]
    for place in ("source", "model", "message", "snapshot", "true_label", "predicted_label"):
        status[place] = evil  # type: ignore[literal-required]
    status["dropped"] = {evil: 1}
    status["plan"] = [{"part": evil, "bytes": 1}]
    text = drawn(render(status), 200) + drawn(summary({"snapshot": evil, "exam": status["exam"]}), 200)
    assert not set(text) & set("\x1b\x07\x9b\u202e")
    assert "[red]x" in text, "and no markup is read into it"


def test_a_daemon_that_has_just_started_can_be_drawn() -> None:
    text = drawn(render(blank()))
    assert "starting" in text
    assert "no exam yet" in text
    assert "none yet" in text


def test_the_plan_adds_up_to_the_budget() -> None:
    text = drawn(plan_table(busy()["plan"], 8 << 20))
    assert "replay      3,145,728      37.5%" in text
    assert "free        4,194,304      50.0%" in text


def test_the_summary_names_what_a_script_promises_and_leaves_out_what_there_is_not() -> None:
    result: Summary = {
        "samples": 9812, "learned": 5934, "steps": 594, "consolidations": 3, "prequential_accuracy": 0.893,
        "test_accuracy": 0.921, "exam": busy()["exam"], "exam_history": busy()["exam_history"],
        "learner_bytes": 3 << 20, "budget_bytes": 8 << 20, "replay_bytes": 162816, "step_p50_ms": 3.1,
        "step_p99_ms": 8.2, "step_budget_ms": 50.0, "predict_p99_ms": 0.3, "predict_budget_ms": 20.0,
        "rss_peak_bytes": 330 << 20, "dropped": {"crc": 2}, "snapshot": "run/snapshots/current/model.onnx",
        "seconds": 61.2,
    }  # fmt: skip
    text = drawn(summary(result))
    for figure in (
        "5,934 samples in 594 steps, 3 consolidations, 1:01", "89.3%", "92.1%, the snapshot in onnxruntime",
        "3.00 MiB of 8.00 MiB, replay 159 KiB", "330 MiB", "p50 3.1  p99 8.2 of 50 ms", "crc 2",
        "run/snapshots/current/model.onnx", "unbalance",
    ):  # fmt: skip
        assert figure in text, figure
    assert "test split" not in drawn(summary({**result, "test_accuracy": None}))
    assert "none" in drawn(summary({}))
    assert "edge-cl export --state run" in drawn(summary(result, next_step="edge-cl export --state run"))


def test_the_summary_says_what_was_forgotten_and_what_was_not() -> None:
    result: Summary = {
        "exam": [
            {"label": "normal", "samples": 20, "accuracy": 0.75},
            {"label": "unbalance", "samples": 20, "accuracy": 1.0},
        ],
        "exam_history": [{"steps": 10, "accuracy": {"normal": 0.95}}, {"steps": 20, "accuracy": {"normal": 0.75}}],
    }
    assert "normal most: 20 points below its best exam" in drawn(summary(result))
    result["exam"][0]["accuracy"] = 0.95
    assert "nothing: in its last exam every class did as well as in its best" in drawn(summary(result))


# The pieces


@given(st.floats(-1, 2), st.integers(1, 60))
def test_a_bar_is_as_wide_as_asked_and_as_full_as_its_fraction(fraction: float, width: int) -> None:
    text = plot.bar(fraction, width, "red").plain
    assert len(text) == width
    full = text.count("█")
    assert full - 1 <= min(max(fraction, 0), 1) * width <= full + 1


@given(st.lists(st.integers(0, 1000), max_size=8), st.integers(1, 60))
def test_a_stacked_bar_keeps_its_width_and_shows_what_is_free(parts: list[int], width: int) -> None:
    text = plot.stacked(parts, 2 * sum(parts), width).plain
    assert len(text) == width
    assert abs(text.count("░") - (width / 2 if sum(parts) else width)) <= 1


@given(st.lists(st.floats(0, 1), max_size=100), st.integers(1, 40), st.integers(1, 6))
def test_a_curve_has_its_size_and_every_value_a_mark(values: list[float], width: int, height: int) -> None:
    lines = [line.plain for line in plot.curve(values, width, height)]
    assert [len(line) for line in lines] == [width] * height
    assert lines[-1].rstrip() == lines[-1][: min(len(values), width)]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=300), st.integers(1, 80))
def test_resampling_keeps_the_course_between_its_extremes(values: list[float], width: int) -> None:
    shorter = plot.resample(values, width)
    assert len(shorter) == min(len(values), width)
    assert all(min(values) - 1e-9 <= value <= max(values) + 1e-9 for value in shorter)


def test_small_words() -> None:
    assert [clock(s) for s in (0, 59.9, 60, 3661, 90061)] == ["0 s", "59 s", "1:00", "1:01:01", "1 d 01:01"]
    assert drops({"crc": 0}).plain == "none"
    assert drops({"a": 1, "b": 20}).plain == "b 20, a 1"
    assert plain("é\tü").plain == "é\N{REPLACEMENT CHARACTER}ü"


# status.json


def test_a_status_survives_its_file(tmp_path: Path) -> None:
    write_status(tmp_path, busy())
    assert read_status(tmp_path) == busy()
    assert [entry.name for entry in tmp_path.iterdir()] == [FILE], "no temporary file stays"


def test_an_older_or_newer_file_reads_as_far_as_it_goes(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"steps": 3, "of_the_future": 1}), encoding="utf-8")
    assert read_status(tmp_path) == {**blank(), "steps": 3}


def test_a_status_that_is_no_json_crashes_instead_of_being_written(tmp_path: Path) -> None:
    write_status(tmp_path, busy())
    with pytest.raises(ValueError, match="JSON compliant"):
        write_status(tmp_path, {**busy(), "samples_per_s": float("nan")})
    assert read_status(tmp_path) == busy(), "and the one before is still there"


def test_a_status_that_may_not_be_read_is_an_error_and_not_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(IOFault, match=r"status\.json: Is a directory"):
        read_status(tmp_path)
