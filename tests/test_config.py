"""A configuration is taken as it is meant or refused with all that is wrong with it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from edge_cl.config import SAMPLE, Config, as_yaml, load, parse, resolve
from edge_cl.errors import ConfigError, OperatorError
from edge_cl.units import BYTES, format_bytes, parse_bytes
from edge_cl.yaml_lines import MAX_BYTES, MAX_DEPTH

SOURCE_RULE = "must be a source, such as serial:///dev/ttyUSB0, or a list of several"


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "c.yaml", overrides)
    assert caught.value.exit_code == 78
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return [str(problem) for problem in caught.value.problems]


def problem(text: str, *overrides: str) -> str:
    (only,) = problems(text, *overrides)
    return only


def leaves(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    found: list[str] = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += leaves(field.annotation, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


# The sample file


def test_the_sample_holds_exactly_the_defaults() -> None:
    assert load(SAMPLE) == Config()


def test_the_sample_names_every_key_and_comments_on_it() -> None:
    origins = resolve(SAMPLE).origins
    assert set(origins) == set(leaves())
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()
    for key, origin in origins.items():
        assert origin.startswith(f"{SAMPLE}:"), f"{key} is not in the sample"
        number = int(origin.rpartition(":")[2])
        above = lines[number - 2].strip()
        assert above.startswith("#"), f"{key}, line {number}: no comment above it"
        block = [line.strip() for line in _comment_above(lines, number)]
        assert any("Default" in line for line in block), f"{key}: the comment does not name the default"


def _comment_above(lines: list[str], number: int) -> list[str]:
    block: list[str] = []
    while number >= 2 and lines[number - 2].strip().startswith("#"):
        block.append(lines[number - 2])
        number -= 1
    return block


def test_the_root_sample_is_the_packaged_one() -> None:
    root = Path(__file__).parent.parent / "config.yaml"
    assert root.is_symlink()
    assert not root.readlink().is_absolute()
    assert root.resolve() == SAMPLE.resolve()


def test_every_key_is_described_for_editors() -> None:
    groups = [field.annotation for field in Config.model_fields.values()]
    for model in [Config, *(group for group in groups if isinstance(group, type) and issubclass(group, BaseModel))]:
        for name, field in model.model_fields.items():
            nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
            assert nested or (field.description and len(field.description) > 30), f"{model.__name__}.{name}"


def test_a_config_cannot_be_changed() -> None:
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.learning.batch_size = 3


# What is accepted


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing but a comment\n", "---\n", "{}", "\ufeff"])
def test_an_empty_file_means_all_defaults(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text, encoding="utf-8")
    assert load(file) == Config()


@pytest.mark.parametrize(
    ("written", "n_bytes"),
    [
        ("8388608", 8388608),
        ("8 MiB", 8 << 20),
        ("64 MB", 64_000_000),
        ("'1.5 KiB'", 1536),
        ("2GiB", 2 << 30),
        ("4kB", 4000),
    ],
)
def test_sizes_are_bytes_or_carry_a_unit(written: str, n_bytes: int) -> None:
    assert parse(f"budget: {{memory_bytes: {written}}}").budget.memory_bytes == n_bytes


@pytest.mark.parametrize("written", ["50", "50.0", "50 ms", "50ms", "'50 ms'"])
def test_durations_are_numbers_or_repeat_their_unit(written: str) -> None:
    assert parse(f"budget: {{step_ms: {written}}}").budget.step_ms == 50.0


@pytest.mark.parametrize(("written", "rate"), [("1e-3", 0.001), ("1.0e-3", 0.001), (".5", 0.5), ("1", 1.0)])
def test_numbers_may_be_written_as_people_write_them(written: str, rate: float) -> None:
    assert parse(f"learning: {{learning_rate: {written}}}").learning.learning_rate == rate


def test_null_and_auto_have_their_meaning() -> None:
    config = parse("replay: {samples: null}\nwindow: {length: null, stride: null}\nlabels: ['no', b]")
    assert config.replay.samples is None
    assert config.window.length is None
    assert config.labels == ("no", "b")


# What is refused: one line for each mistake


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning:\n  batchsize: 3", "c.yaml:2: learning.batchsize: unknown key, did you mean batch_size? (got 3)"),
        ("batch_size: 3", "c.yaml:1: batch_size: unknown key, did you mean learning.batch_size? (got 3)"),
        (
            "bridge: {zzz: 1}",
            "c.yaml:1: bridge.zzz: unknown key, valid here: queue_bytes, align_ms, label_wait_bytes, label_wait_s, "
            "labels_per_s, labels_per_class_hour (got 1)",
        ),
        ("learning:\n  batch_size: -4", "c.yaml:2: learning.batch_size: must be ≥ 1 (got -4)"),
        ("learning: {batch_size: '10'}", "c.yaml:1: learning.batch_size: must be a whole number (got '10')"),
        ("learning: {batch_size: 1.5}", "c.yaml:1: learning.batch_size: must be a whole number (got 1.5)"),
        ("learning: {batch_size: true}", "c.yaml:1: learning.batch_size: must be a whole number (got true)"),
        ("learning: {batch_size: null}", "c.yaml:1: learning.batch_size: must be a whole number (got null)"),
        ("learning: {learning_rate: 0}", "c.yaml:1: learning.learning_rate: must be > 0 (got 0)"),
        ("learning: {learning_rate: .nan}", "c.yaml:1: learning.learning_rate: must be a finite number (got .nan)"),
        ("learning: {learning_rate: -.inf}", "c.yaml:1: learning.learning_rate: must be a finite number (got -.inf)"),
        ("learning: {learning_rate: 1e999}", "c.yaml:1: learning.learning_rate: must be a finite number (got 1e999)"),
        ("exam: {share: true}", "c.yaml:1: exam.share: must be a number (got true)"),
        ("source: true", f"c.yaml:1: source: {SOURCE_RULE} (got true)"),
        ("source: 7", f"c.yaml:1: source: {SOURCE_RULE} (got 7)"),
        ("source:", f"c.yaml:1: source: {SOURCE_RULE} (got null)"),
        ("source: []", f"c.yaml:1: source: {SOURCE_RULE} (got [])"),
        ("source: [a, 1]", f"c.yaml:1: source: {SOURCE_RULE} (got [a, 1])"),
        ("source: [a, b, a]", "c.yaml:1: source: every source may be there once, a is there twice (got [a, b, a])"),
        ("source: ''", f"c.yaml:1: source: {SOURCE_RULE} (got '')"),
        (
            "model: {kind: cnn1}",
            "c.yaml:1: model.kind: must be auto, mlp, cnn1d, cnn2d, nearest_mean, slda, slda_random, "
            "autoencoder or predictor, did you mean cnn1d? (got 'cnn1')",
        ),
        ("exam:", "c.yaml:1: exam: must be a group of keys: share, samples (got null)"),
        ("exam: [1]", "c.yaml:1: exam: must be a group of keys: share, samples (got [1])"),
        ("budget: {step_ms: 5 s}", "c.yaml:1: budget.step_ms: is given in ms, not in s: write '5000 ms' (got '5 s')"),
        (
            "storage: {checkpoint_every_s: 500 ms}",
            "c.yaml:1: storage.checkpoint_every_s: is given in s, not in ms: write '0.5 s' (got '500 ms')",
        ),
        (
            "budget: {step_ms: 5 parsecs}",
            "c.yaml:1: budget.step_ms: has no such unit as 'parsecs': it is given in ms (got '5 parsecs')",
        ),
        (
            "budget: {memory_bytes: 8 mb}",
            "c.yaml:1: budget.memory_bytes: has no such unit as 'mb': "
            "write MiB (1,048,576 bytes) or MB (1,000,000 bytes) (got '8 mb')",
        ),
        ("budget: {memory_bytes: 100}", "c.yaml:1: budget.memory_bytes: must be ≥ 1024 (got 100)"),
        (
            "window: {length: 0, stride: 1}",
            "c.yaml:1: window.length: must be auto, null, a whole number of rows, 1 or more, or a time such as 500 ms "
            "or 2 s (got 0)",
        ),
        ("window:\n  length: null", "c.yaml:1: window: length and stride must both be null or neither"),
        ("labels: [a, b, a]", "c.yaml:1: labels: every class name may be there once, a is there twice (got [a, b, a])"),
        ("labels: [1]", "c.yaml:1: labels: every class name must be a text: put 1 in quotes (got [1])"),
        ("labels: []", "c.yaml:1: labels: must be null or a list of class names, such as [normal, unbalance] (got [])"),
        (
            "labels: [a, b, c]\nmodel: {max_classes: 2}",
            "c.yaml:1: labels: 3 names, but model.max_classes is 2",
        ),
        ("source: a\n\nsource: b", "c.yaml:3: source: is there twice, first in line 1: keep one"),
        ("? [a, b]\n: 1", "c.yaml:1: a key must be a word"),
        ("- 1", "c.yaml:1: must be keys with values, such as 'source: …' (got a list)"),
        ("source", "c.yaml:1: must be keys with values, such as 'source: …' (got source)"),
        ("source: a\n---\nsource: b", "c.yaml:2: a second document is not allowed: remove the line '---'"),
        ("source: !!str a", "c.yaml:1: tags are not allowed: write the plain value (got tag:yaml.org,2002:str)"),
        (
            "source: !!python/name:os.system a",
            "c.yaml:1: tags are not allowed: write the plain value (got tag:yaml.org,2002:python/name:os.system)",
        ),
        ("source: &x a", "c.yaml:1: anchors are not allowed: write the value where it is used (got &x)"),
        ("source: a\n\tlabels: b", "c.yaml:2: not valid YAML: a tab: YAML indents with spaces"),
        ("labels: [a", "c.yaml:1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("source: a\x07", "c.yaml:1: not text: a character that YAML does not allow (got U+0007)"),
        ('source: "\\ud800"', "c.yaml:1: source: half a character: nothing could print this (got \\ud800)"),
        ('"\\ud800": 1', "c.yaml:1: a key must be a word"),
        ('source: "\\UFFFFFFFF"', "c.yaml:1: not valid YAML: an escape that is no character"),
    ],
)
def test_a_mistake_is_named_with_its_line_its_key_and_what_was_found(text: str, expected: str) -> None:
    assert problem(text) == expected


@pytest.mark.parametrize(
    ("written", "meant"),
    [("no", "false"), ("Yes", "true"), ("on", "true"), ("OFF", "false")],
)
@pytest.mark.parametrize("place", ["source: {}", "replay: {{samples: {}}}", "labels: [a, {}]"])
def test_words_that_yaml_takes_for_truth_values_are_refused_wherever_they_stand(
    place: str, written: str, meant: str
) -> None:
    assert f"YAML reads this word as {meant}" in problem(place.format(written))
    assert f"(got {written})" in problem(place.format(written))


@pytest.mark.parametrize("written", ["12:30:45", "010", "0x10", "1_000", "0b11", "9" * 30, "1:30.5"])
def test_numbers_that_are_not_what_they_look_like_are_refused(written: str) -> None:
    assert "not a plain decimal number" in problem(f"replay: {{samples: {written}}}")


def test_a_date_is_refused_as_a_class_name() -> None:
    assert "reads this as a timestamp" in problem("labels: [2026-11-20]")


def test_all_mistakes_of_a_file_are_reported_at_once_by_line() -> None:
    found = problems("width: 3\nlearning:\n  batch_size: no\n  treads: 1\nexam: {share: 2}\nsource: 1\nsource: 2\n")
    places = [re.match(r"c\.yaml:(\d+): ([\w.]+)", line) for line in found]
    assert [place.groups() for place in places if place] == [
        ("1", "width"),
        ("3", "learning.batch_size"),
        ("4", "learning.treads"),
        ("5", "exam.share"),
        ("6", "source"),
        ("7", "source"),
    ]


def test_an_alias_bomb_is_refused_without_being_unfolded() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert any("aliases are not allowed" in line for line in problems(bomb))


def test_deep_nesting_is_refused_before_it_can_exhaust_the_stack() -> None:
    assert problem("labels: " + "[" * 5000) == f"c.yaml:1: nested deeper than {MAX_DEPTH} levels"


def test_a_file_larger_than_a_mebibyte_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match=r"c\.yaml:1: larger than 1 MiB"):
        load(file)


def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(b"source: a\nlabels: [\xff]\n")
    with pytest.raises(ConfigError, match=r"c\.yaml:2: not UTF-8 text \(got byte 0xff\)"):
        load(file)


def test_a_missing_file_and_a_folder_are_the_operators_fault(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="there is no such file") as caught:
        load(tmp_path / "missing.yaml")
    assert "config sample" in caught.value.hint
    with pytest.raises(OperatorError, match="cannot be read: Is a directory"):
        load(tmp_path)


@given(
    st.text(alphabet=st.characters(codec="utf-8"), max_size=60) | st.text("[]{}:-?!&*'\"\\|>%@ \n\tab01.", max_size=40)
)
def test_no_text_gets_past_the_reader_as_anything_but_a_config_or_a_list_of_problems(text: str) -> None:
    try:
        config = parse(text)
    except ConfigError as exc:
        assert exc.problems  # noqa: PT017 - either outcome is right, and each has its own property
    else:
        assert parse(_json_lines(config)) == config


def _json_lines(config: Config) -> str:
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in config.model_dump(mode="json").items())


# Overrides and origins


def test_overrides_win_over_the_file_and_say_so(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("replay:\n  per_step: 5\n  samples: 7\n", encoding="utf-8")
    resolved = resolve(file, ["replay.per_step=40", "labels=[a, b]", "window={length: 128, stride: 64}"])
    assert (resolved.config.replay.per_step, resolved.config.replay.samples) == (40, 7)
    assert (resolved.config.labels, resolved.config.window.length) == (("a", "b"), 128)
    assert resolved.origins["replay.per_step"] == "-s"
    assert resolved.origins["window.stride"] == "-s"
    assert resolved.origins["replay.samples"] == f"{file}:3"
    assert resolved.origins["model.kind"] == "default"


def test_an_override_heals_a_mistake_in_the_file() -> None:
    assert parse("replay: {per_step: no}", overrides=["replay.per_step=3"]).replay.per_step == 3


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("replay.per_step", "-s replay.per_step: must be key.path=value, as in replay.per_step=40"),
        ("=3", "-s =3: must be key.path=value, as in replay.per_step=40"),
        ("replay.perstep=3", "-s: replay.perstep: unknown key, did you mean per_step? (got 3)"),
        ("source.x=3", "-s: source.x: unknown key, there are no keys below source (got 3)"),
        ("replay.per_step=-1", "-s: replay.per_step: must be ≥ 0 (got -1)"),
        ("budget.step_ms=5 s", "-s: budget.step_ms: is given in ms, not in s: write '5000 ms' (got '5 s')"),
    ],
)
def test_a_wrong_override_is_named(override: str, expected: str) -> None:
    assert problem("", override) == expected


def test_what_show_prints_reads_back_to_the_same_config() -> None:
    resolved = resolve(
        None, ["labels=['no', \"a: b #c\", 'é']", "learning.learning_rate=1e-5", "budget.memory_bytes=1 GB"]
    )
    assert parse(as_yaml(resolved)) == resolved.config


# Sizes


@given(st.integers(0, 2**50))
def test_a_whole_number_of_bytes_survives_its_own_spelling(n: int) -> None:
    assert parse_bytes(n) == parse_bytes(str(n)) == parse_bytes(f"{n} B") == n


@given(st.integers(1, 2**20), st.sampled_from(sorted(BYTES)))
def test_units_multiply(n: int, unit: str) -> None:
    assert parse_bytes(f"{n} {unit}") == n * BYTES[unit]


@given(st.integers(0, 2**50))
def test_a_size_for_a_person_is_within_one_percent(n: int) -> None:
    number, unit = format_bytes(n).split()
    assert abs(float(number) * BYTES[unit] - n) <= 0.01 * n
