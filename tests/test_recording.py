"""Recordings: what plays, in which order, and the exact words about what does not."""

import time
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from firmware_bridge.errors import BadRecording, EndOfSource
from firmware_bridge.registry import make_source
from firmware_bridge.sample import SampleId

X = np.arange(24, dtype=np.int16).reshape(6, 4)
Y = np.array([2, 0, 1, 0, 2, 1], np.uint8)
PUBLIC = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"


@pytest.fixture
def save(tmp_path):
    def save(**arrays):
        np.savez(tmp_path / "r.npz", **arrays)
        return f"recording:{tmp_path / 'r.npz'}"

    return save


def play(url, *after):
    with make_source(url, after=after) as source:
        samples = []
        with suppress(EndOfSource):
            while (sample := source.read(10.0)) is not None:
                samples.append(sample)
        return source, samples


def test_samples_play_in_the_order_of_the_file_as_they_are(save):
    source, samples = play(save(x=X, y=Y))
    assert [(sample.seq, sample.label) for sample in samples] == list(enumerate(Y))
    for sample, row in zip(samples, X, strict=True):
        np.testing.assert_array_equal(sample.values, row)
        assert sample.values.dtype == np.int16
        assert not sample.values.flags.writeable
    assert source.schema.window is None
    assert source.held_out is None
    assert source.can_wait


def test_class_order_keeps_the_order_of_the_file_within_a_class(save):
    _, samples = play(save(x=X, y=Y) + "?order=class")
    assert [int(sample.values[0]) // 4 for sample in samples] == [1, 3, 2, 5, 0, 4]
    assert [sample.seq for sample in samples] == list(range(6))


def test_limit_counts_in_playing_order(save):
    _, samples = play(save(x=X, y=Y) + "?order=class&limit=3")
    assert [sample.label for sample in samples] == [0, 0, 1]


def test_a_resume_belongs_to_a_recording_and_an_order(save):
    url = save(x=X, y=Y)
    _, samples = play(url)
    assert [sample.seq for sample in play(url, samples[3].id)[1]] == [4, 5]
    assert len(play(url + "?order=class", samples[3].id)[1]) == 6
    assert len(play(url + "?limit=3", samples[3].id)[1]) == 0
    assert len(play(save(x=X + 1, y=Y), samples[3].id)[1]) == 6
    assert len(play(url, SampleId(0, samples[0].boot ^ 1, 3))[1]) == 6


def test_names_units_and_the_test_split_are_handed_out(save):
    source, _ = play(
        save(
            x_train=X.reshape(3, 2, 4),
            y_train=Y[:3],
            x_test=X.reshape(3, 2, 4)[:2],
            y_test=[1, 2],
            label_names=["a", "b", "c"],
            channel_names=["p", "q", "r", "s"],
            scale=np.float32(0.25),
            fs_hz=50,
        )
    )
    schema, held_out = source.schema, source.held_out
    assert (schema.name, schema.dtype, schema.shape) == ("r", "int16", (2, 4))
    assert (schema.label_names, schema.channels) == (("a", "b", "c"), ("p", "q", "r", "s"))
    assert (schema.scale, schema.rate_hz) == (0.25, 50.0)
    assert held_out.x.shape == (2, 2, 4)
    assert held_out.y.tolist() == [1, 2]
    assert not held_out.x.flags.writeable


def test_time_comes_from_time_s_else_from_the_rate_else_is_zero(save):
    assert [s.time_us for s in play(save(x=X, time_s=np.arange(6) / 8 + 100))[1]] == [125_000 * i for i in range(6)]
    assert [s.time_us for s in play(save(x=X.reshape(3, 2, 4), fs_hz=100))[1]] == [0, 20_000, 40_000]
    assert [s.time_us for s in play(save(x=X))[1]] == [0] * 6


def test_speed_plays_at_the_recordings_own_pace(save):
    url = save(x=X, time_s=np.arange(6) / 10)
    start = time.monotonic()
    assert len(play(url + "?speed=10")[1]) == 6
    assert time.monotonic() - start >= 0.05  # five steps of 10 ms; there is no upper bound on a busy machine
    with make_source(url + "?speed=1") as source:
        assert source.read(0.0).seq == 0
        assert source.read(0.0) is None


def test_samples_with_nan_or_inf_are_dropped_counted_and_flagged(save):
    x = np.zeros((5, 2), np.float32)
    x[1, 0], x[2, 1] = np.nan, np.inf
    source, samples = play(save(x=x, x_test=x, y=np.arange(5), y_test=np.arange(5)))
    assert [(sample.seq, sample.gap) for sample in samples] == [(0, False), (3, True), (4, False)]
    assert source.counters == {"nonfinite": 2, "nonfinite_held_out": 2}
    assert source.held_out.y.tolist() == [0, 3, 4]


@pytest.mark.parametrize(
    ("given", "played"),
    [("bool", "uint8"), ("int64", "int32"), ("uint32", "int32"), ("float64", "float32"), (">i2", "int16")],
)
def test_what_fits_a_sensor_type_is_narrowed(save, given, played):
    source, samples = play(save(x=np.array([[0, 1], [1, 0]], given)))
    assert source.schema.dtype == played
    assert [sample.values.tolist() for sample in samples] == [[0, 1], [1, 0]]


def test_a_float64_beyond_float32_is_dropped_as_not_finite(save):
    source, samples = play(save(x=np.array([[1e300], [1.0]])))
    assert len(samples) == 1
    assert source.counters["nonfinite"] == 1


def test_whole_numbers_in_floats_are_labels(save):
    assert [sample.label for sample in play(save(x=X, y=Y.astype(np.float64)))[1]] == Y.tolist()


DTYPES = "uint8, int8, int16, uint16, int32, float32, float16"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": Y}, "x: must be there, or x_train (got only y)"),
        ({"z": Y}, "x: must be there, or x_train (got only other arrays)"),
        ({"x": X, "x_train": X}, "x: must be there once (got x and x_train)"),
        ({"x": X, "y": Y[:5]}, "y: must hold one label for each of 6 samples (got shape (5,))"),
        ({"x": X, "y": X}, "y: must hold one label for each of 6 samples (got shape (6, 4))"),
        ({"x": X[:0]}, "x: must hold at least one sample (got shape (0, 4))"),
        ({"x": X[:, :0]}, "x: must hold at least one sample (got shape (6, 0))"),
        ({"x": np.int16(3)}, "x: must hold at least one sample (got shape ())"),
        ({"x": X.astype(complex)}, f"x: must be one of {DTYPES} (got dtype complex128)"),
        ({"x": X.astype(str)}, f"x: must be one of {DTYPES} (got dtype <U6)"),
        ({"x": X.astype(np.int64) + 2**40}, f"x: must fit int32 (got {2**40})"),
        ({"x": X, "y": np.array([0, 1, -2, 0, 1, 2])}, "y: must be whole numbers from 0 (got -2 at index 2)"),
        ({"x": X, "y": np.array([0, 1, 0.5, 0, 1, 2])}, "y: must be whole numbers from 0 (got 0.5 at index 2)"),
        ({"x": X, "y": np.array([0, np.nan, 1, 0, 1, 2])}, "y: must be whole numbers from 0 (got nan at index 1)"),
        ({"x": X, "y": np.array([0, 2**40, 1, 0, 1, 2])}, f"y: must be whole numbers from 0 (got {2**40} at index 1)"),
        ({"x": X, "y": Y.astype(str)}, "y: must be whole numbers from 0 (got dtype <U3)"),
        (
            {"x": X, "y": Y, "label_names": ["a", "b"]},
            "y: must be below 2, the number of label_names (got 2 at index 0)",
        ),
        ({"x": X, "label_names": [1, 2]}, "label_names: must be a list of texts (got int64 of shape (2,))"),
        ({"x": X, "channel_names": ["a"]}, "channel_names: must name the last axis of x (6, 4) (got 1 names)"),
        ({"x": X, "x_test": X}, "x_test and y_test: must be there both or not at all (got one of them)"),
        (
            {"x": X, "x_test": X[:, :3], "y_test": Y},
            "x_test: must be like x, int16 (4,) (got int16 (3,))",
        ),
        ({"x": X, "x_test": X, "y_test": Y[:1]}, "y_test: must hold one label for each of 6 samples (got shape (1,))"),
        ({"x": X, "scale": 0.0}, "scale: must be one number above 0 (got 0.0)"),
        ({"x": X, "scale": [1.0, 2.0]}, "scale: must be one number above 0 (got float64 of shape (2,))"),
        ({"x": X, "fs_hz": -5}, "fs_hz: must be one number above 0 (got -5.0)"),
        ({"x": X, "time_s": np.arange(5)}, "time_s: must hold one time for each of 6 samples (got int64 (5,))"),
        ({"x": X, "time_s": np.array([0, 1, np.inf, 3, 4, 5])}, "time_s: must be finite (got inf)"),
    ],
)
def test_a_bad_recording_is_refused_with_file_array_rule_and_value(save, arrays, message):
    url = save(**arrays)
    with pytest.raises(BadRecording) as caught:
        make_source(url).open()
    assert str(caught.value) == f"{url.removeprefix('recording:')}: {message}"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("option", "rule"), [("order=class", "needs labels"), ("speed=1", "needs time_s or fs_hz in it")]
)
def test_an_option_that_the_recording_cannot_serve_is_refused(save, option, rule):
    with pytest.raises(BadRecording, match=f"{option.partition('=')[0]}.*{rule}"):
        make_source(f"{save(x=X)}?{option}").open()


def test_object_arrays_are_refused_unread(save):
    url = save(x=np.array([{}, []], dtype=object))
    with pytest.raises(BadRecording, match=r"x: cannot be read .*Object arrays cannot be loaded"):
        make_source(url).open()


def test_files_that_are_no_recordings_are_named(tmp_path):
    np.save(tmp_path / "one.npy", X)
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "cut.npz", x=X)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:100])
    for name, message in {
        "none.npz": "no such file",
        "one.npy": "a single array, not an .npz file",
        "text.npz": "not an .npz file",
        "empty.npz": "not an .npz file",
        "cut.npz": "not an .npz file",
        ".": "no such file",
    }.items():
        with pytest.raises(BadRecording, match=message):
            make_source(f"recording:{tmp_path / name}").open()


def test_damage_inside_a_recording_is_found(save, tmp_path):
    url = save(x=X)
    data = bytearray((tmp_path / "r.npz").read_bytes())
    data[200] ^= 0xFF  # in the samples; the zip's own checksum tells
    (tmp_path / "r.npz").write_bytes(data)
    with pytest.raises(BadRecording, match="x: cannot be read"):
        make_source(url).open()


def test_an_array_that_claims_more_than_memory_is_refused(tmp_path):
    header = b"{'descr': '<i2', 'fortran_order': False, 'shape': (4000000000000000,), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(BadRecording, match="x: cannot be read"):
        make_source(f"recording:{tmp_path / 'huge.npz'}").open()


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public data sets are not beside this checkout")
@pytest.mark.parametrize(
    ("name", "n", "shape", "n_test"),
    [
        ("uci_har", 7352, (128, 9), 2947),
        ("cwru_bearing", 4329, (1024,), 0),
        ("elec2", 45312, (8,), 0),
        ("gtsrb_tracks", 3580, (32, 32, 3), 860),
        ("mnist", 60000, (28, 28), 10000),
        ("fashion_mnist", 60000, (28, 28), 10000),
        ("cifar10_10k", 8000, (32, 32, 3), 2000),
    ],
)
def test_the_public_data_sets_play_as_they_are(name, n, shape, n_test):
    source, samples = play(f"recording:{PUBLIC / name}.npz?order=class")
    assert (len(samples), source.schema.shape) == (n, shape)
    assert len(source.held_out.x if source.held_out else ()) == n_test
    labels = [sample.label for sample in samples]
    assert labels == sorted(labels)
    assert max(labels) < len(source.schema.label_names)
