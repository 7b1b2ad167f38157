"""The learner in a state directory, rebuilt from its checkpoint alone: how it was configured is saved beside it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edge_cl import assembly
from edge_cl.config import Config
from edge_cl.errors import OperatorError
from edge_cl.learning.online_learner import OnlineLearner
from edge_cl.storage.checkpoint import Checkpoint, CheckpointStore
from firmware_bridge.sample import Schema


@dataclass(frozen=True)
class Saved:
    """A learner as it was when it was last saved, and what it was made of."""

    config: Config
    schema: Schema
    task: assembly.Task
    learner: OnlineLearner
    label_names: tuple[str, ...]

    @property
    def made_of(self) -> tuple[Config, Schema, int]:
        """What another learner must be made of, too, to be the same one."""
        return self.config, self.schema, self.task.n_streams


def described(config: Config, schema: Schema, n_streams: int) -> dict[str, Any]:
    """What `load_saved` needs of a checkpoint's meta, beside the learner's own state and `label_names`."""
    told = {"config": config.model_dump(mode="json"), "schema": json.loads(json.dumps(asdict(schema)))}
    return {**told, "n_streams": n_streams}


def load_saved(state: Path) -> Saved:
    """The learner as it was last saved in a state directory, without the journal behind it; changes nothing there.

    Raises OperatorError if none was saved yet, or by an edge_cl that did not note how it was configured, and
    StorageError as `CheckpointStore.load`.
    """
    found = CheckpointStore(state).load()
    if found is None:
        raise OperatorError(
            f"{state}: no learner was saved there yet", hint="a daemon saves one every storage.checkpoint_every_s"
        )
    return rebuilt(found, state)


def rebuilt(found: Checkpoint, state: Path) -> Saved:
    """The learner of a checkpoint. Raises OperatorError if the checkpoint does not say how it is configured."""
    try:
        config = Config.model_validate(found.meta["config"])
        schema = Schema(**{key: _as_tuple(value) for key, value in found.meta["schema"].items()})
    except (KeyError, TypeError, ValidationError):
        raise OperatorError(
            f"{state}: the checkpoint does not say how its learner is configured, as this edge_cl would read it",
            hint="start the edge_cl that wrote it once more and stop it, then this one; or name another directory",
        ) from None
    task = assembly.task_of(config, schema, found.meta.get("n_streams", 1))
    blueprint = assembly.blueprint_of(config, task)
    learner = assembly.make_learner(config, task, blueprint, assembly.plan_of(config, task, blueprint), seed=0)
    learner.restore(found.arrays, found.meta["learner"])
    return Saved(config, schema, task, learner, tuple(found.meta["label_names"]))


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
