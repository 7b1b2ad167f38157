"""What a person wants to know of snapshots: one as a row, two beside each other, and whether all are sound.

Reads the shelf and changes nothing; must not know how it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edge_cl.storage.errors import DamagedFile, ShelfError
from edge_cl.storage.published import Published, ShelfReader

IsGenuine = Callable[[bytes, bytes], bool]  # of a manifest's bytes and its signature

_ALWAYS_DIFFER = ("id", "created", "verification")


def row(entry: Published, *, current: bool) -> dict[str, Any]:
    """The facts by which snapshots are told apart; samples: learnt from until then; None where nothing is known."""
    manifest = entry.manifest
    return {
        "id": entry.id,
        "state": entry.state,
        "created": manifest["created"],
        "samples": manifest.get("training", {}).get("learned"),
        "exam_accuracy": exam_accuracy(manifest),
        "bytes": manifest["bytes"],
        "sha256": manifest["sha256"],
        "current": current,
    }


def exam_accuracy(manifest: Mapping[str, Any]) -> float | None:
    """Share of the exam's samples that were answered right: Σ nᵢaᵢ / Σ nᵢ over its classes; None without an exam."""
    classes = manifest.get("training", {}).get("exam", {}).values()
    n = sum(found["samples"] for found in classes)
    return sum(found["samples"] * found["accuracy"] for found in classes) / n if n else None


def differences(before: Published, after: Published) -> list[dict[str, Any]]:
    """Every fact in which two manifests differ, as key (nested ones joined by dots), before and after; None: not there.

    Neither the id nor the instant is one, nor what the publisher measured while it verified.
    """
    old, new = ({"state": entry.state, **facts(entry.manifest)} for entry in (before, after))
    differing = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return [
        {"key": key, "before": old.get(key), "after": new.get(key)}
        for key in differing
        if key.split(".")[0] not in _ALWAYS_DIFFER
    ]


def facts(manifest: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A manifest without nesting: {"training": {"steps": 3}} becomes {"training.steps": 3}."""
    found: dict[str, Any] = {}
    for name, value in manifest.items():
        if isinstance(value, Mapping):
            found.update(facts(value, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = value
    return found


def damage_of(shelf: ShelfReader, number: str, is_genuine: IsGenuine | None = None) -> list[str]:
    """What is wrong with one snapshot, nothing if it is sound; without `is_genuine` signatures are not looked at.

    Raises StorageFault.
    """
    try:
        entry = shelf.get(number)
        entry.read()
    except (DamagedFile, ShelfError) as exc:  # ShelfError: it has no manifest
        return [str(exc)]
    if is_genuine is None:
        return []
    manifest, signature = entry.signed()
    if signature is None:
        return ["not signed"]
    return [] if is_genuine(manifest, signature) else ["not signed by this key, or changed since"]


def damage(shelf: ShelfReader, is_genuine: IsGenuine | None = None) -> dict[str, list[str]]:
    """The same of each snapshot, by id, oldest first. Raises StorageFault."""
    found = {number: damage_of(shelf, number, is_genuine) for number in shelf.ids()}
    there = shelf.ids()  # a running daemon may have removed one while we looked
    return {number: wrong for number, wrong in found.items() if number in there}


def damage_of_current(shelf: ShelfReader, not_older_than: str | None = None) -> list[str]:
    """What is wrong with `current` itself: it points at nothing, at a bad one, or at an older one than demanded."""
    try:
        current = shelf.current()
    except DamagedFile as exc:
        return [str(exc)]
    if current is None:
        return [] if not_older_than is None else ["nothing is current"]
    wrong = []
    if current.state == "bad" and shelf.pinned() != current.id:
        wrong.append(f"current is {current.id}, which is bad ({current.why}): the next change moves it on")
    if not_older_than is not None and int(current.id) < int(not_older_than):
        wrong.append(f"current is {current.id}, which is older than {not_older_than}")
    return wrong
