"""The tables beside peers and comparators: short forms of the commands, and what makes their figures comparable."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from river import metrics
from river.evaluate import progressive_val_score
from river.linear_model import LogisticRegression
from river.preprocessing import StandardScaler

from edge_cl.evaluation.data import load_dataset
from edge_cl.evaluation.evaluate import Request, contender_of, evaluate
from edge_cl.evaluation.streams import Scenario
from tests.recordings import save, signals

ROOT = Path(__file__).parent.parent
STREAM = Scenario("stream")
LATE = 20


def run(tool: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / tool), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made  # where dataclasses look up what their annotations mean
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return module("bench_stream")


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    return module("compare_families")


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 vectors of two classes that come in runs, as prices do, and turn round halfway."""
    rng = np.random.default_rng(0)
    y = np.cumsum(rng.random(600) < 0.2) % 2
    turned = np.where(np.arange(600) < 300, y, 1 - y)
    x = turned[:, None] + rng.normal(0, 0.7, (600, 4))
    return save(tmp_path_factory.mktemp("stream") / "market.npz", x=x.astype(np.float32), y=y)


@pytest.fixture(scope="module")
def signs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with something like traffic signs: class after class, each with ten tracks numbered from 0."""
    x, y = signals(180)
    rows = np.argsort(y, kind="stable")
    x, y = x[rows], y[rows]
    track = np.concatenate([np.minimum(np.arange(n) * 12 // n, 9) for n in np.bincount(y)])
    folder = tmp_path_factory.mktemp("signs")
    test_x, test_y = signals(30, seed=1)
    save(folder / "gtsrb_tracks.npz", x_train=x, y_train=y, track_train=track, x_test=test_x, y_test=test_y)
    return folder


def share_of_repeats(labels: NDArray[Any], late: int) -> float:
    """How often a label is that of `late` + 1 samples before; those that have none before them count as misses."""
    return float((labels[late + 1 :] == labels[: -late - 1]).sum() / len(labels))


def test_bench_stream_scores_everyone_at_once_and_late(market: Path) -> None:
    done = run("bench_stream.py", "--data", str(market), "--limit", "500", "--label-delay", str(LATE), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    labels = load_dataset(str(market), test=0).y[:500]
    assert (found["data"], found["samples"]) == ("market", 500)
    assert set(found["labels_late"]) == {"0", str(LATE)}
    for late, scores in found["labels_late"].items():
        assert list(scores) == [
            "edge_cl default",
            "river logistic regression",
            "river Hoeffding adaptive tree",
            "river adaptive random forest of 10",
            "no change",
            "majority",
        ]
        assert scores["no change"]["accuracy"] == pytest.approx(share_of_repeats(labels, int(late)))
        assert all(0 < one["accuracy"] < 1 and one["samples_per_s"] > 0 for one in scores.values())


def test_bench_stream_draws_a_table_without_the_forest(
    bench: ModuleType, market: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["", "--data", str(market), "--limit", "50", "--no-forest"])
    assert bench.main() == 0
    drawn = capsys.readouterr().out
    assert "100 late" in drawn
    assert "Hoeffding" in drawn
    assert "forest" not in drawn


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "digits"], r"digits: must be vectors .* \(got \(1797, 8, 8, 1\), 10 labels\); take elec2"),
        (["--data", "none.npz"], "none.npz: no such file"),
        (["--limit", "0"], "limit: must be at least 1"),
    ],
)
def test_bench_stream_refuses_what_not_every_contender_takes(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["", *options])
    with pytest.raises(SystemExit, match=said):
        bench.main()


@pytest.mark.parametrize("late", [0, 1, LATE])
def test_rivers_models_are_scored_as_river_does(bench: ModuleType, market: Path, late: int) -> None:
    data = load_dataset(str(market), test=0)
    stream = [(dict(enumerate(row)), label) for row, label in zip(data.x.tolist(), data.y.tolist(), strict=True)]
    model = StandardScaler() | LogisticRegression()
    theirs = progressive_val_score(stream, model, metrics.Accuracy(), delay=late + 1 if late else None)
    ours = bench.theirs(bench.RIVER["river logistic regression"](), data, None, late, lambda share: None)
    assert ours.accuracy == theirs.get()


def test_our_learner_is_scored_as_edge_cl_evaluate_does(bench: ModuleType, market: Path) -> None:
    scenario, heard = Scenario("stream", limit=120), list[float]()
    ours = bench.ours(str(market), scenario, 120, LATE, heard.append)
    (result,) = evaluate(Request(str(market), scenario, (contender_of("default"),), label_delay=LATE))
    assert ours.accuracy == result.prequential_accuracy.mean
    assert heard == sorted(heard)
    assert heard[-1] == 1


def test_compare_families_gives_every_method_the_same_bytes(compare: ModuleType, signs: Path) -> None:
    options = ["--part", "gtsrb", "--data", str(signs), "--seeds", "1", "--limit", "10", "--json"]
    done = run("compare_families.py", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    (study,) = found["studies"].values()
    assert {name: tuple(own) in compare.GRID[name] for name, own in study["chosen"].items()} == dict.fromkeys(
        compare.GRID, True
    )
    results = {result["strategy"]: result for result in study["results"]}
    assert list(results) == list(compare.WITHOUT_RAW_SLDA)
    assert study["best"] in results.keys() - {"iid"}
    for name, result in results.items():
        assert len(result["experiences"]) == 10
        assert 0 < result["average_accuracy"]["mean"] <= 1
        # Room for whole samples only, one of which takes 240 bytes and its label.
        held = found["replay_bytes"] - result["replay_bytes"]
        assert 0 <= held < 500 if name in ("default", "er", "er-ace", "der++") else result["replay_bytes"] == 0
    for name in ("er", "er-ace", "der++"):
        assert set(study["chosen"][name]) <= {*results[name]["settings"], "learning.learning_rate=0.1"}


def test_compare_families_says_which_recording_is_missing(
    compare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["", "--part", "cwru", "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"cwru_bearing.npz: no such file"):
        compare.main()


@pytest.mark.parametrize("within", [None, "track"])
def test_what_is_tuned_on_is_the_end_of_the_training_split(
    compare: ModuleType, signs: Path, tmp_path: Path, within: str | None
) -> None:
    data = load_dataset(str(signs / "gtsrb_tracks.npz"))
    tuning = load_dataset(str(compare.held_out(data, within, tmp_path / "tuning.npz")))
    groups: list[NDArray[np.bool_]] = [
        (data.y == label) & ((data.marks["track"] == value) if within else True)
        for label in range(3)
        for value in (range(10) if within else [0])
    ]
    last = np.concatenate([rows[-int(np.ceil(len(rows) / 10)) :] for rows in map(np.flatnonzero, groups)])
    held = np.isin(np.arange(len(data.y)), last)
    np.testing.assert_array_equal(tuning.x, data.x[~held])
    np.testing.assert_array_equal(tuning.test_x, data.x[held])
    np.testing.assert_array_equal(tuning.test_y, data.y[held])
    np.testing.assert_array_equal(tuning.marks["track"], data.marks["track"][~held])
    np.testing.assert_array_equal(tuning.test_marks["track"], data.marks["track"][held])


def test_the_grid_is_of_settings_that_there_are(compare: ModuleType) -> None:
    """Every contender of every study can be made, and the default is never touched."""
    studies = [study for part in compare.PARTS.values() for study in part]
    assert "default" not in compare.GRID
    for study in studies:
        made = {name: compare.contender(study, name, ()) for name in study.strategies}
        tried = [compare.contender(study, name, own) for name, grid in compare.GRID.items() for own in grid]
        assert made["default"] == contender_of("default", before=study.model)
        assert {one.config.learning.learning_rate for one in tried} == {0.03, 0.1}
        assert made["slda-random"].config.model.width == 395  # 395 x 395 x 4 bytes
