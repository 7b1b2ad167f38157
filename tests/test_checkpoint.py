"""CheckpointStore: exact round trips, every damage noticed, full disks and kills survived."""

import hashlib
import json
import random
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_atomic import names, soft_limit, tiny_disk, watched

from edge_cl.storage import record
from edge_cl.storage.checkpoint import SLOTS, CheckpointStore, decode, encode
from edge_cl.storage.errors import DamagedFile, StateDirError, StorageFault

DTYPES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64"),
]
META: dict[str, Any] = {"steps": 7, "rng": {"state": 2**127 + 1}, "rate": 0.1, "names": ["ok", "worn – größer"]}

arrays_of_any_kind = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    ),
    max_size=4,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def some_arrays(generation: int = 0, n: int = 100) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(generation)
    return {"weights": rng.normal(size=n).astype(np.float32), "replay": rng.integers(0, 256, (n, 3), dtype=np.uint8)}


def assert_same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == array.dtype, name
        assert got[name].shape == array.shape, name
        assert got[name].tobytes() == array.tobytes(), name  # bytes: NaN payloads and -0.0 included


@settings(deadline=None)  # a shared machine's pauses are no failure
@given(arrays=arrays_of_any_kind, meta=st.dictionaries(st.text(), json_values, max_size=4))
def test_arrays_and_meta_come_back_to_the_bit(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    found = decode(encode(3, arrays, meta, model="m"))
    assert_same(found.arrays, arrays)
    assert found.meta == meta
    assert repr(found.meta) == repr(meta)  # == alone would take 1 for 1.0 for True, and -0.0 for 0.0
    assert (found.generation, found.model) == (3, "m")


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_writable_in_any_memory_order(dtype: str, tmp_path: Path) -> None:
    square = np.arange(12).reshape(3, 4).astype(dtype)
    arrays = {
        "plain": square,
        "transposed": square.T,
        "strided": square[::2, ::-1],
        "big_endian": square.astype(square.dtype.newbyteorder(">")),
        "scalar": np.asarray(square[1, 1]),
        "empty": square[:, :0],
    }
    store = CheckpointStore(tmp_path)
    store.save(arrays, {})
    found = CheckpointStore(tmp_path).load()
    assert found is not None
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array, strict=name != "big_endian")
        assert found.arrays[name].dtype == np.dtype(dtype)
        assert found.arrays[name].flags.writeable
        assert found.arrays[name].flags.owndata


def test_rng_states_and_odd_floats_survive(tmp_path: Path) -> None:
    state = np.random.PCG64(1).state
    floats = [0.1, 5e-324, 1.7976931348623157e308, -0.0, float("inf"), float("-inf"), float("nan")]
    CheckpointStore(tmp_path).save({}, {"rng": state, "floats": floats})
    found = CheckpointStore(tmp_path).load()
    assert found is not None
    assert found.meta["rng"] == state
    assert repr(found.meta["floats"]) == repr(floats)


@pytest.mark.parametrize(
    ("meta", "where"),
    [({"a": {1: 2}}, "meta.a: keys"), ({"a": [(1, 2)]}, "meta.a\\[0\\]"), ({"a": np.int64(1)}, "meta.a: not a JSON")],
)
def test_meta_that_would_come_back_changed_is_refused(tmp_path: Path, meta: dict[str, Any], where: str) -> None:
    with pytest.raises(TypeError, match=where):
        CheckpointStore(tmp_path).save({}, meta)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("array", [np.array([None]), np.array(["a"]), np.zeros(1, "c16"), np.zeros(1, "M8[s]")])
def test_arrays_that_cannot_be_held_are_refused_by_name(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(TypeError, match=r"arrays\['odd'\]"):
        CheckpointStore(tmp_path).save({"odd": array}, {})
    assert names(tmp_path) == set()


def test_nothing_saved_is_none_and_no_fault(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    assert store.load() is None
    assert store.faults == []
    assert names(tmp_path) == set()


def test_saves_take_turns_and_the_newer_one_is_loaded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for generation in range(1, 6):
        untouched = SLOTS[generation % 2]
        before = (tmp_path / untouched).read_bytes() if generation > 1 else b""
        assert store.save(some_arrays(generation), {"n": generation}) == generation
        assert generation == 1 or (tmp_path / untouched).read_bytes() == before
        found = CheckpointStore(tmp_path).load()
        assert found is not None
        assert (found.generation, found.meta) == (generation, {"n": generation})
        assert_same(found.arrays, some_arrays(generation))
    assert names(tmp_path) == set(SLOTS)


def test_a_store_that_never_loaded_still_writes_the_older_slot(tmp_path: Path) -> None:
    for generation in range(1, 4):
        assert CheckpointStore(tmp_path).save({}, {"n": generation}) == generation


def test_every_bit_flip_and_every_truncation_of_a_file_is_noticed() -> None:
    content = encode(5, some_arrays(n=300), META, model="m")
    assert len(content) >= 2048
    decode(content)
    damaged = bytearray(content)
    for bit in range(8 * len(content)):
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedFile):
            decode(bytes(damaged))
        damaged[bit // 8] ^= 1 << bit % 8
    assert damaged == content
    for length in range(len(content)):
        with pytest.raises(DamagedFile):
            decode(content[:length])
    for extra in (b"\0", content):
        with pytest.raises(DamagedFile):
            decode(content + extra)


def test_two_thousand_flips_of_a_large_file_are_noticed() -> None:
    content = encode(5, {"weights": np.arange(60_000, dtype=np.float32)}, META, model="m")
    damaged, rng = bytearray(content), random.Random(0)
    for _ in range(2000):
        bit = rng.randrange(8 * len(content))
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedFile):
            decode(bytes(damaged))
        damaged[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("harm", ["flip", "truncate", "empty", "folder", "link"])
def test_a_damaged_newer_slot_falls_back_loudly_and_is_written_next(tmp_path: Path, harm: str) -> None:
    store = CheckpointStore(tmp_path)
    for generation in (1, 2):
        store.save(some_arrays(generation), {"n": generation})
    damage(tmp_path / SLOTS[1], harm)
    store = CheckpointStore(tmp_path)
    found = store.load()
    assert found is not None
    assert found.generation == 1
    assert_same(found.arrays, some_arrays(1))
    assert len(store.faults) == 2
    assert store.faults[0].startswith(SLOTS[1])
    assert store.faults[1] == f"went on from generation 1 in {SLOTS[0]}"
    if harm != "folder":  # which no rename can replace: that is a StorageFault, and an operator's job
        assert store.save(some_arrays(3), {}) == 2
        assert CheckpointStore(tmp_path).load() is not None
        assert decode((tmp_path / SLOTS[0]).read_bytes()).generation == 1


def damage(slot: Path, harm: str) -> None:
    content = bytearray(slot.read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 1
        slot.write_bytes(content)
    elif harm == "truncate":
        slot.write_bytes(content[:-1])
    elif harm == "empty":
        slot.write_bytes(b"")
    else:
        slot.unlink()
        if harm == "folder":
            slot.mkdir()
        else:
            (slot.parent / "elsewhere").write_bytes(content)
            slot.symlink_to("elsewhere")


def test_both_slots_damaged_is_an_error_that_names_both_and_touches_neither(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save({}, {})
    store.save({}, {})
    for slot in SLOTS:
        damage(tmp_path / slot, "flip")
    before = [(tmp_path / slot).read_bytes() for slot in SLOTS]
    store = CheckpointStore(tmp_path)
    with pytest.raises(DamagedFile, match=r"checkpoint\.a is damaged.*checkpoint\.b is damaged") as caught:
        store.load()
    assert "backup" in caught.value.hint
    with pytest.raises(DamagedFile):
        store.save({}, {})
    assert [(tmp_path / slot).read_bytes() for slot in SLOTS] == before


def test_the_only_slot_damaged_is_an_error_and_no_fresh_start(tmp_path: Path) -> None:
    CheckpointStore(tmp_path).save({}, {})
    damage(tmp_path / SLOTS[0], "truncate")
    with pytest.raises(DamagedFile, match=r"checkpoint\.a is damaged.*checkpoint\.b does not exist"):
        CheckpointStore(tmp_path).load()


def test_a_sound_file_that_is_no_checkpoint_is_damage_and_a_newer_version_is_refused() -> None:
    def sealed(header: bytes) -> bytes:
        return header + hashlib.sha256(header).digest()

    magic = b"\x89edgecl\n"
    empty = bytes(8 + 8)
    with pytest.raises(DamagedFile, match="not a checkpoint of edge_cl"):
        decode(sealed(b"PK\3\4PK\3\4" + b"\1\0\0\0" + empty))
    with pytest.raises(StateDirError, match="version 2"):
        decode(sealed(magic + b"\2\0\0\0" + empty))


def test_another_models_state_is_refused_untouched_by_load_and_by_save(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, model="cnn1d 128x9 6").save(some_arrays(), {})
    before = (tmp_path / SLOTS[0]).read_bytes()
    other = CheckpointStore(tmp_path, model="mlp 784 10")
    with pytest.raises(StateDirError, match=r"cnn1d 128x9 6 \(this one is mlp 784 10\)"):
        other.load()
    with pytest.raises(StateDirError):
        other.save({}, {})
    assert names(tmp_path) == {SLOTS[0]}
    assert (tmp_path / SLOTS[0]).read_bytes() == before
    found = CheckpointStore(tmp_path).load()  # a tool that only reads asks for no model
    assert found is not None
    assert found.model == "cnn1d 128x9 6"


def test_a_full_disk_leaves_the_old_generations_loadable_and_a_later_save_works(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", "512k") as disk:
        store = CheckpointStore(disk)
        store.save(some_arrays(1), {"n": 1})
        store.save(some_arrays(2), {"n": 2})
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(400_000))
        before = {slot: (disk / slot).read_bytes() for slot in SLOTS}
        with pytest.raises(StorageFault, match="ENOSPC"):
            store.save(some_arrays(3, n=50_000), {"n": 3})
        check_after_failure(store, disk, before, [ballast])


def test_a_file_size_limit_leaves_the_old_generations_loadable_and_a_later_save_works(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(some_arrays(1), {"n": 1})
    store.save(some_arrays(2), {"n": 2})
    before = {slot: (tmp_path / slot).read_bytes() for slot in SLOTS}
    with soft_limit(resource.RLIMIT_FSIZE, 64 << 10), pytest.raises(StorageFault, match="EFBIG"):
        store.save(some_arrays(3, n=50_000), {"n": 3})
    check_after_failure(store, tmp_path, before, [])


def check_after_failure(store: CheckpointStore, folder: Path, before: dict[str, bytes], ballast: list[Path]) -> None:
    assert {slot: (folder / slot).read_bytes() for slot in SLOTS} == before
    assert names(folder) == {*SLOTS, *(file.name for file in ballast)}
    found = CheckpointStore(folder).load()
    assert found is not None
    assert found.meta == {"n": 2}
    for file in ballast:
        file.unlink()
    assert store.save(some_arrays(3), {"n": 3}) == 3
    found = CheckpointStore(folder).load()
    assert found is not None
    assert_same(found.arrays, some_arrays(3))
    assert decode((folder / SLOTS[1]).read_bytes()).meta == {"n": 2}


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_sync_acknowledges_nothing_and_the_next_save_takes_the_same_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    store = CheckpointStore(tmp_path)
    store.save({}, {"n": 1})
    store.save({}, {"n": 2})
    with watched(monkeypatch, failing), pytest.raises(StorageFault, match="EIO"):
        store.save({}, {"n": 3})
    assert decode((tmp_path / SLOTS[1]).read_bytes()).meta == {"n": 2}
    assert store.save({}, {"n": 4}) == 3
    assert decode((tmp_path / SLOTS[0]).read_bytes()).meta == {"n": 4}
    assert decode((tmp_path / SLOTS[1]).read_bytes()).meta == {"n": 2}


SAVER = """
import sys
from pathlib import Path
import numpy as np
from edge_cl.storage.checkpoint import CheckpointStore
store = CheckpointStore(Path(sys.argv[1]))
found = store.load()
n = found.generation if found else 0
while True:
    n += 1
    acknowledged = store.save({"weights": np.full(40_000, n, np.float32)}, {"n": n})
    print(acknowledged, flush=True)
"""


def test_kills_at_random_instants_lose_nothing_acknowledged(tmp_path: Path) -> None:
    """30 kills; each run goes on from what the one before left, temporaries included."""
    rng, last = random.Random(0), 0
    for _ in range(30):
        acknowledged = killed_somewhere([sys.executable, "-c", SAVER, str(tmp_path)], rng)
        store = CheckpointStore(tmp_path)
        found = store.load()
        assert found is not None
        assert store.faults == []
        assert found.generation >= acknowledged > last
        assert found.meta == {"n": found.generation}
        np.testing.assert_array_equal(found.arrays["weights"], np.full(40_000, found.generation, np.float32))
        last = found.generation


def killed_somewhere(command: list[str], rng: random.Random) -> int:
    """Run the command, let it acknowledge a few times, kill it at a random instant; the last number it printed."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(rng.randint(1, 4))]
        time.sleep(rng.uniform(0, 0.01))  # not to wait for anything: it chooses the instant
        process.kill()
        lines += process.stdout.read().splitlines(keepends=True)
    finally:
        process.kill()
        process.communicate()
    # A line without its end was cut by the kill: that number was never acknowledged.
    return int([line for line in lines if line.endswith(b"\n")][-1])


def test_the_header_is_laid_out_as_documented() -> None:
    content = encode(258, {}, {"a": 1}, model=None)
    header, payload, trailer = content[:28], content[28:-32], content[-32:]
    assert header == b"\x89edgecl\n" + b"\1\0\0\0" + b"\2\1" + bytes(6) + len(payload).to_bytes(8, "little")
    assert trailer == hashlib.sha256(header + payload).digest()
    size = int.from_bytes(payload[:8], "little")
    inner = json.loads(payload[8 : 8 + size])["__metadata__"]["edge_cl"]
    assert json.loads(inner) == {"model": None, "meta": {"a": 1}}


def test_what_changes_after_it_was_taken_down_is_not_in_it(tmp_path: Path) -> None:
    store, weights = CheckpointStore(tmp_path), np.zeros(100_000, np.float32)
    saving = store.begin({"weights": weights}, {"steps": 1})
    weights += 1
    assert CheckpointStore(tmp_path).load() is None  # nothing counts before it is finished
    assert saving.finish() == 1
    found = CheckpointStore(tmp_path).load()
    assert found is not None
    assert not found.arrays["weights"].any()


def test_the_second_half_may_be_another_threads(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for generation in range(1, 5):
        saving = store.begin(some_arrays(generation), {"generation": generation})
        thread = threading.Thread(target=saving.finish)
        thread.start()
        thread.join()
        found = CheckpointStore(tmp_path).load()
        assert found is not None
        assert found.generation == found.meta["generation"] == generation
        assert_same(found.arrays, some_arrays(generation))
    assert names(tmp_path) == set(SLOTS)


@given(arrays=arrays_of_any_kind)
def test_the_library_reads_what_is_written(arrays: dict[str, np.ndarray]) -> None:
    assert_same(safetensors.numpy.load(record.pack(arrays, {})), arrays)
