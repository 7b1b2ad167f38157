"""Labels that nobody can learn: nothing learnt from them reaches `current`, and afterwards publishing goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import LABELS, features, images, save, signals

from edge_cl.config import resolve
from edge_cl.daemon import Daemon
from edge_cl.storage.shelf import Published, Shelf
from edge_cl.storage.snapshot import Deployed

CLEAN, POISONED = 1000, 2000
EVERY = 20  # steps
BATCH = 10
QUICK = ("consolidation.rehearsal_passes=1", "snapshots.trial_samples=60")
UNNOTICED = 60  # samples: so many of the stretch may have been learnt before it shows


@pytest.mark.parametrize("make", [signals, images, features])
def test_a_poisoned_stretch_never_reaches_current(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 2 * CLEAN + POISONED
    x, y = make(n + 200)
    x, test_x, y, test_y = x[:n], x[n:].astype(np.float32), y[:n], y[n:]
    poison = slice(CLEAN, CLEAN + POISONED)
    y[poison] = np.random.default_rng(5).permutation(y[poison])
    save(tmp_path / "r.npz", x=x, y=y, label_names=np.array(LABELS))
    became_current: list[tuple[int, float]] = []  # samples that had come, accuracy
    publish = Shelf.publish

    def seen(shelf: Shelf, *arguments: Any, **options: Any) -> Published:
        published = publish(shelf, *arguments, **options)
        right = Deployed(published.read())(test_x).argmax(1) == test_y
        became_current.append((published.manifest["training"]["steps"] * BATCH, right.mean()))
        return published

    monkeypatch.setattr(Shelf, "publish", seen)
    config = resolve(None, ("model.width=4", f"consolidation.every_steps={EVERY}", *QUICK)).config
    Daemon(config, tmp_path / "s", source_url=f"recording:{tmp_path / 'r.npz'}", once=True).run()

    assert [when for when, _ in became_current if CLEAN + UNNOTICED < when <= CLEAN + POISONED] == []
    before = [accuracy for when, accuracy in became_current if when <= CLEAN + UNNOTICED]
    after = [accuracy for when, accuracy in became_current if when > CLEAN + POISONED]
    assert before[-1] > 0.9
    assert after[-1] > 0.85  # a third of what is replayed still has a wrong label
    aside = [entry for entry in Shelf(tmp_path / "s").entries() if entry.state == "bad"]
    assert aside
    assert all(entry.why for entry in aside)


def test_class_after_class_is_no_poison(tmp_path: Path) -> None:
    x, y = signals(1800)
    test_x, test_y = signals(200, seed=9)
    save(tmp_path / "r.npz", x=x, y=y, label_names=np.array(LABELS))
    config = resolve(None, ("model.width=4", f"consolidation.every_steps={EVERY}", *QUICK)).config
    Daemon(config, tmp_path / "s", source_url=f"recording:{tmp_path / 'r.npz'}?order=class", once=True).run()
    current = Shelf(tmp_path / "s").current()
    assert current is not None
    assert current.manifest["training"]["steps"] > 180 - 2 * EVERY
    assert (Deployed(current.read())(test_x.astype(np.float32)).argmax(1) == test_y).mean() > 0.8
