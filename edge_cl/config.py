"""From a YAML file and `-s key=value` overrides to one frozen Config, or to all that is wrong with them at once.

Every problem reads `FILE:LINE: key.path: what is wrong (got …)`. Nothing is corrected silently and no bad value falls
back to its default: a device far away must not run on a guess. The settings themselves are in settings.py.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from edge_cl import yaml_lines
from edge_cl.errors import ConfigError, OperatorError, Problem
from edge_cl.settings import Config

__all__ = ["DEFAULT", "SAMPLE", "Config", "Resolved", "as_yaml", "chosen", "load", "parse", "resolve"]

SAMPLE: Final = Path(__file__).with_name("config.yaml")
DEFAULT: Final = "default"

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Resolved:
    """A Config, and for each key path where its value comes from: 'FILE:LINE', '-s', or 'default'."""

    config: Config
    origins: Mapping[str, str]


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The Config of a file. Raises ConfigError with every problem, OperatorError if the file cannot be read."""
    return resolve(path, overrides).config


def parse(text: str, name: str = "config", overrides: Sequence[str] = ()) -> Config:
    """The Config of a text; an empty one means all defaults. Raises ConfigError with every problem."""
    return _Reading(name, text, overrides).resolved().config


def chosen(file: Path | None) -> Path | None:
    """The file that is named, else ./config.yaml if there is one, else None: the built-in defaults."""
    here = Path("config.yaml")
    return file or (here if os.path.lexists(here) else None)


def resolve(path: Path | None, overrides: Sequence[str] = ()) -> Resolved:
    """The Config of a file (None: of the defaults) with overrides on top, and where each value comes from.

    An override is a text `key.path=value`, the value in YAML. Raises ConfigError, OperatorError as `load` does.
    """
    text = "" if path is None else _read_text(path)
    return _Reading(str(path), text, overrides).resolved()


def as_yaml(resolved: Resolved) -> str:
    """The effective values as YAML that reads back to the same Config, each with its origin as a comment."""
    rows: list[tuple[str, str]] = []
    for key, value in resolved.config.model_dump().items():
        if isinstance(value, dict):
            rows.append((f"{key}:", ""))
            rows += [(f"  {name}: {_scalar(leaf)}", resolved.origins[f"{key}.{name}"]) for name, leaf in value.items()]
        else:
            rows.append((f"{key}: {_scalar(value)}", resolved.origins[key]))
    width = min(48, max(len(left) for left, _ in rows))
    return "\n".join(f"{left:<{width}}  # {origin}" if origin else left for left, origin in rows)


class _Reading:
    """One text with its overrides, on the way to a Config: values, the place each came from, the problems so far."""

    def __init__(self, name: str, text: str, overrides: Sequence[str]) -> None:
        document = yaml_lines.read(text)
        self.values: dict[str, Any] = document.values
        self.places: dict[KeyPath, tuple[str, int | None]] = {
            path: (name, line) for path, line in document.lines.items()
        }
        self.problems = [
            Problem(name, fault.line, _dotted(fault.path), fault.what, fault.got) for fault in document.faults
        ]
        for override in overrides:
            self._override(override)

    def resolved(self) -> Resolved:
        """The Config and its origins. Raises ConfigError with all problems if there is one."""
        try:
            config = Config.model_validate(self.values)
        except ValidationError as exc:
            self.problems += map(self._problem, exc.errors(include_url=False))
        if self.problems:
            raise ConfigError(self.problems, hint="`edge-cl config sample` prints every key with its unit and default")
        return Resolved(config, {_dotted(path): self._origin(path) for path in _leaves()})

    def _override(self, text: str) -> None:
        key, equals, value_text = text.partition("=")
        path: KeyPath = tuple(key.strip().split("."))
        value, faults = yaml_lines.read_value(value_text)
        if not equals or not all(path):
            self.problems.append(Problem(f"-s {text}", None, "", "must be key.path=value, as in replay.per_step=40"))
            return
        if path[-1] not in _children(path[:-1]):
            self.problems.append(Problem("-s", None, key, _unknown_key(path), _show(value)))
            return
        if faults:
            self.problems += [Problem("-s", None, key, fault.what, fault.got) for fault in faults]
            return
        _put(self.values, path, value)
        self.places = {place: where for place, where in self.places.items() if place[: len(path)] != path}
        self.places[path] = ("-s", None)
        self.problems = [problem for problem in self.problems if problem.key != key]

    def _problem(self, error: ErrorDetails) -> Problem:
        path: KeyPath = tuple(error["loc"])
        key, what = _dotted(path), _sentence(error)
        if not path:  # a rule between two groups names its key itself
            key, _, what = what.partition(": ")
            path = tuple(key.split("."))
        name, line = self._place(path)
        between_keys = error["type"] == "value_error" and isinstance(error["input"], dict)
        return Problem(name, line, key, what, "" if between_keys else _show(error["input"]))

    def _place(self, path: KeyPath) -> tuple[str, int | None]:
        known = (self.places[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.places)
        return next(known, (DEFAULT, None))

    def _origin(self, path: KeyPath) -> str:
        group: Any = self.values
        for part in path:
            if not isinstance(group, dict) or part not in group:
                return DEFAULT
            group = group[part]
        name, line = self._place(path)
        return name if line is None else f"{name}:{line}"


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(yaml_lines.MAX_BYTES + 1)
    except FileNotFoundError as exc:
        raise OperatorError(
            f"{path}: there is no such file", hint="`edge-cl config sample > config.yaml` writes one with all defaults"
        ) from exc
    except OSError as exc:
        raise OperatorError(f"{path}: cannot be read: {exc.strerror}", hint="name a readable YAML file") from exc
    if len(data) > yaml_lines.MAX_BYTES:
        raise ConfigError([Problem(str(path), 1, "", "larger than 1 MiB: this is no configuration")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise ConfigError([Problem(str(path), line, "", "not UTF-8 text", f"byte 0x{data[exc.start]:02x}")]) from exc


def _sentence(error: ErrorDetails) -> str:
    """Pydantic's error in our words."""
    limits = error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return _unknown_key(tuple(error["loc"]))
        case "value_error":
            return str(limits["error"])
        case "model_type":
            return f"must be a group of keys: {', '.join(_children(tuple(error['loc'])))}"
        case "literal_error":
            return f"must be {limits['expected'].replace(chr(39), '')}{_nearest_value(error)}"
        case "int_type" | "int_from_float":
            return "must be a whole number"
        case "float_type":
            return "must be a number"
        case "finite_number":
            return "must be a finite number"
        case "string_type":
            return "must be a text"
        case "string_too_short":
            return "must not be empty"
    signs = {"greater_than": ">", "greater_than_equal": "≥", "less_than": "<", "less_than_equal": "≤"}
    sign = signs.get(error["type"])
    return f"must be {sign} {next(iter(limits.values())):.12g}" if sign else error["msg"]


def _unknown_key(path: KeyPath) -> str:
    siblings = _children(path[:-1])
    if not siblings:
        return f"unknown key, there are no keys below {_dotted(path[:-1])}"
    wanted = str(path[-1])
    near = difflib.get_close_matches(wanted, siblings, n=1)
    if not near:  # right word, wrong group?
        everywhere = {str(leaf[-1]): _dotted(leaf) for leaf in _leaves()}
        near = [everywhere[name] for name in difflib.get_close_matches(wanted, everywhere, n=1, cutoff=0.8)]
    return f"unknown key, did you mean {near[0]}?" if near else f"unknown key, valid here: {', '.join(siblings)}"


def _nearest_value(error: ErrorDetails) -> str:
    choices = error["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
    near = difflib.get_close_matches(str(error["input"]), choices, n=1)
    return f", did you mean {near[0]}?" if near else ""


def _model_at(path: KeyPath) -> type[BaseModel] | None:
    model: type[BaseModel] = Config
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return None
        model = field.annotation
    return model


def _children(path: KeyPath) -> list[str]:
    model = _model_at(path)
    return list(model.model_fields) if model else []


def _leaves(path: KeyPath = ()) -> Iterator[KeyPath]:
    for name in _children(path):
        below = (*path, name)
        if _model_at(below):
            yield from _leaves(below)
        else:
            yield below


def _put(values: dict[str, Any], path: KeyPath, value: Any) -> None:
    for part in path[:-1]:
        below = values.get(str(part))
        if not isinstance(below, dict):
            below = values[str(part)] = {}
        values = below
    values[str(path[-1])] = value


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def _show(value: object) -> str:
    if isinstance(value, dict):
        return "a group of keys"
    text = repr(value) if isinstance(value, str) else _scalar(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _scalar(value: object) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=2**20)
    return text.removesuffix("...\n").strip()
