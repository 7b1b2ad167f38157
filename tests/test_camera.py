"""Cameras against real processes: every pixel of a file, the newest frame of a stream, and a camera that hangs."""

import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from videos import numbered, write_video

from firmware_bridge.devices import Device
from firmware_bridge.errors import BadSourceUrl, EndOfSource, SourceLost, SourceUnavailable
from firmware_bridge.registry import make_source
from firmware_bridge.sample import SampleId
from firmware_bridge.sources.camera_frames import Rate, fitted, size_of
from firmware_bridge.sources.camera_process import Settings
from tools.fakes.rtsp_server import RtspServer
from tools.fakes.video_server import MjpegServer

PATIENCE_S = 30.0
N = 12
FRAMES = numbered(N)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "v.mkv", FRAMES)


@pytest.fixture
def server():
    found = MjpegServer()
    yield found
    found.stop()


def read_all(source):
    samples = []
    try:
        while (sample := source.read(PATIENCE_S)) is not None:
            samples.append(sample)
    except EndOfSource:
        return samples
    pytest.fail(f"nothing came in {PATIENCE_S} s; {source.said}")


def next_frame(source):
    """The next one, whatever happens before it."""
    deadline = time.monotonic() + PATIENCE_S
    while (sample := source.read(0.2)) is None:
        assert time.monotonic() < deadline, f"{source.said}; {source.counters}"
    return sample


def read_on(source):
    """Read until that raises."""
    while source.read(PATIENCE_S) is not None:
        pass


def gone(source):
    """Read until it is said that the camera is gone."""
    deadline = time.monotonic() + PATIENCE_S
    while not source.said.startswith("gone"):
        source.read(0.05)
        assert time.monotonic() < deadline
    return source.said


# A file


def test_every_frame_of_a_file_comes_once_with_its_time_in_red_green_and_blue(video):
    with make_source(f"camera:{video}") as source:
        assert (source.schema.dtype, source.schema.shape) == ("uint8", (16, 24, 3))
        assert source.schema.channels == ("red", "green", "blue")
        assert source.can_wait
        samples = read_all(source)
        assert source.counters == {"overtaken": 0, "hung": 0, "reconnects": 0}
    assert [sample.seq for sample in samples] == list(range(N))
    assert [sample.time_us for sample in samples] == [40_000 * seq for seq in range(N)]
    assert len({sample.boot for sample in samples}) == 1
    for sample, frame in zip(samples, FRAMES, strict=True):
        np.testing.assert_array_equal(sample.values, frame)
        assert (sample.values.dtype, sample.values.flags.writeable, sample.gap) == (np.uint8, False, False)


def test_gray_has_no_third_axis(video):
    with make_source(f"camera:{video}?channels=gray") as source:
        assert (source.schema.shape, source.schema.channels) == ((16, 24), ())
        luma = FRAMES[0] @ [0.299, 0.587, 0.114]
        np.testing.assert_allclose(source.read(PATIENCE_S).values, luma, atol=1)


def test_a_limit_of_frames_per_second_leaves_frames_out_and_they_are_no_loss(video):
    with make_source(f"camera:{video}?fps=5") as source:
        samples = read_all(source)
    assert [(sample.seq, sample.time_us, sample.gap) for sample in samples] == [
        (0, 0, False),
        (1, 200_000, False),
        (2, 400_000, False),
    ]
    np.testing.assert_array_equal(samples[1].values, FRAMES[5])


def test_a_resumed_file_goes_on_behind_the_last_frame(video):
    with make_source(f"camera:{video}?width=12") as source:
        first = [source.read(PATIENCE_S) for _ in range(5)]
    with make_source(f"camera:{video}?width=12", after=[first[-1].id]) as source:
        rest = read_all(source)
    assert [sample.seq for sample in rest] == list(range(5, N))
    assert not any(sample.gap for sample in rest)
    with make_source(f"camera:{video}", after=[rest[-1].id]) as source:
        assert source.schema.shape == (16, 24, 3)
        assert read_all(source) == []
    with make_source(f"camera:{video}", after=[SampleId(0, rest[0].boot ^ 1, 5)]) as source:
        assert source.read(PATIENCE_S).seq == 0


def test_a_file_whose_reader_is_killed_is_read_on_without_loss(video):
    with make_source(f"camera:{video}") as source:
        samples = [source.read(PATIENCE_S) for _ in range(4)]
        os.kill(source.pid, signal.SIGKILL)
        while len(samples) < N:
            samples.append(next_frame(source))
        assert source.said.startswith("back after")
        assert source.counters == {"overtaken": 0, "hung": 0, "reconnects": 1}
    assert [sample.seq for sample in samples] == list(range(N))
    for sample, frame in zip(samples, FRAMES, strict=True):
        np.testing.assert_array_equal(sample.values, frame)


def test_a_frame_that_no_reader_survives_is_the_end_of_it(video):
    with make_source(f"camera:{video}") as source:
        source.read(PATIENCE_S)
        source.read(PATIENCE_S)
        first = source.pid
        os.kill(first, signal.SIGKILL)
        while source.pid in (first, None):
            assert source.read(0.01) is None
        os.kill(source.pid, signal.SIGKILL)
        with pytest.raises(SourceLost, match=r"frame 2 cannot be read \(its process was killed by signal 9"):
            source.read(PATIENCE_S)


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_what_is_no_video_is_refused(tmp_path, content):
    (tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(SourceUnavailable, match="it cannot be opened as a video") as caught:
        make_source(f"camera:{tmp_path}/v.mp4").open()
    assert "ffprobe" in caught.value.hint


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(SourceUnavailable, match="no such video file") as caught:
        make_source("camera:none.mp4").open()
    assert "camera:0" in caught.value.hint


# What is made of a picture: 4 high, 8 wide, its columns numbered

WIDE = np.repeat(np.repeat(np.arange(8, dtype=np.uint8)[None, :, None] * 10, 4, axis=0), 3, axis=2)
TALL = WIDE.transpose(1, 0, 2)


def test_crop_takes_the_middle_undistorted():
    np.testing.assert_array_equal(fitted(WIDE, 4, 4, "crop"), WIDE[:, 2:6])
    np.testing.assert_array_equal(fitted(TALL, 4, 4, "crop"), TALL[2:6])
    np.testing.assert_array_equal(fitted(WIDE, 2, 2, "crop")[0, :, 0], [25, 45])


def test_stretch_takes_all_of_it():
    np.testing.assert_array_equal(fitted(WIDE, 4, 4, "stretch")[0, :, 0], [5, 25, 45, 65])
    assert fitted(WIDE, 4, 4, "stretch").shape == (4, 4, 3)


def test_pad_puts_black_around_it():
    padded = fitted(WIDE, 8, 8, "pad")
    np.testing.assert_array_equal(padded[2:6], WIDE)
    assert not padded[:2].any()
    assert not padded[6:].any()
    np.testing.assert_array_equal(fitted(WIDE[..., 0], 4, 4, "pad")[:, 1], [0, 25, 25, 0])


@pytest.mark.parametrize(
    ("wished", "size"), [((None, None), (48, 64)), ((32, None), (24, 32)), ((None, 12), (12, 16)), ((9, 7), (7, 9))]
)
def test_a_side_that_is_not_given_follows_from_the_other(wished, size):
    settings = Settings("", "file", *wished, "crop", "rgb", None, 1.0)
    assert size_of(settings, 48, 64) == size


def test_a_live_limit_keeps_its_rate_although_frames_come_unevenly():
    rate = Rate(10, is_live=True)
    jitter = np.random.default_rng(1).integers(-8_000, 8_000, 300)
    taken = sum(rate.lets_through(int(33_333 * frame + jitter[frame])) for frame in range(300))
    assert 95 <= taken <= 105  # 10 s at 10 a second


def test_a_limit_of_the_cameras_own_rate_leaves_none_out():
    rate = Rate(25, is_live=True)
    jitter = np.random.default_rng(1).integers(0, 9_000, 300)
    assert all(rate.lets_through(int(40_000 * frame + jitter[frame])) for frame in range(300))


# A stream


def test_of_a_stream_the_newest_frame_is_read_and_those_in_between_are_a_gap(server):
    with make_source(f"{server.url}?width=16") as source:
        assert source.schema.shape == (12, 16, 3)
        assert not source.can_wait
        first = source.read(PATIENCE_S)
        red, green, blue = first.values.mean(axis=(0, 1))
        assert (red > 240, green < 15, blue < 15) == (True, True, True)
        server.wait_for(server.n_sent + 30)
        late = source.read(PATIENCE_S)
        assert late.boot == first.boot
        assert late.gap
        assert late.seq - first.seq - 1 == source.counters["overtaken"] > 10
        assert late.time_us > first.time_us


def test_a_gap_is_flagged_exactly_where_numbers_jump(server):
    with make_source(server.url) as source:
        samples = [source.read(PATIENCE_S) for _ in range(20)]
        assert source.counters["overtaken"] == samples[-1].seq - samples[0].seq - 19
    assert not samples[0].gap
    assert [sample.gap for sample in samples[1:]] == [b.seq - a.seq > 1 for a, b in pairwise(samples)]


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_camera_whose_process_is_killed_is_started_again_each_time(server):
    before = None
    with make_source(server.url) as source:
        for turn in range(1, 4):
            last = next_frame(source)
            os.kill(source.pid, signal.SIGKILL)
            assert "its process was killed by signal 9" in gone(source)
            first = next_frame(source)
            assert source.said.startswith("back after")
            assert (first.boot, first.gap) == ((last.boot + 1) % 65536, True)
            assert source.counters["reconnects"] == turn
            before = before or (descriptors(), threading.active_count())
        assert source.counters["hung"] == 0
        while source.pid is None:
            source.read(0.1)
        assert (descriptors(), threading.active_count()) == before


def test_a_process_that_hangs_is_killed_at_the_deadline(server):
    with make_source(f"{server.url}?deadline=0.5") as source:
        next_frame(source)
        hanging = source.pid
        os.kill(hanging, signal.SIGSTOP)
        assert gone(source).endswith("no frame in 0.5 s")
        with pytest.raises(ProcessLookupError):
            os.kill(hanging, 0)
        next_frame(source)
        assert (source.counters["hung"], source.counters["reconnects"]) == (1, 1)


def test_a_stream_that_hangs_is_left_at_the_deadline_and_tried_until_it_is_back(server):
    with make_source(f"{server.url}?deadline=0.5") as source:
        next_frame(source)
        server.hanging.set()
        assert gone(source).endswith("no frame in 0.5 s")
        assert source.read(0.2) is None
        server.hanging.clear()
        assert next_frame(source).gap
        assert source.counters["hung"] >= 1
        assert source.counters["reconnects"] == 1


def test_a_stream_that_ends_is_waited_for_by_one_process(server):
    with make_source(server.url) as source:
        next_frame(source)
        server.stop()
        assert gone(source).endswith("no more frames come")
        while source.pid is None:
            assert source.read(0.1) is None
        waiting = source.pid
        assert source.read(2.0) is None
        server.start()
        assert next_frame(source).gap
        assert source.pid == waiting
        assert source.counters == {**source.counters, "hung": 0, "reconnects": 1}


def test_a_camera_that_is_not_waited_for_is_lost(server):
    with make_source(f"{server.url}?reconnect=0") as source:
        next_frame(source)
        os.kill(source.pid, signal.SIGKILL)
        with pytest.raises(SourceLost, match="the camera is gone"):
            read_on(source)


def test_a_camera_that_does_not_come_back_in_time_is_lost(server):
    with make_source(f"{server.url}?reconnect=1") as source:
        next_frame(source)
        server.stop()
        with pytest.raises(SourceLost, match=r"the camera is gone \(it cannot be opened"):
            read_on(source)
        server.start()


def test_a_stream_that_is_not_there_is_named_without_its_password():
    with pytest.raises(SourceUnavailable, match="it cannot be opened as a video stream") as caught:
        make_source("camera:http://me:secret@127.0.0.1:1/x%3Fkey=secret").open()
    assert "secret" not in str(caught.value)


def test_the_process_ends_with_its_parent_even_out_of_a_camera_that_hangs(server):
    code = (
        "import sys; from firmware_bridge.registry import make_source\n"
        "source = make_source(sys.argv[1]); source.open(); source.read(20); print(source.pid, flush=True)\n"
        "import time; time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, server.url], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        server.hanging.set()
        parent.kill()
    deadline = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "an orphan goes on"
        time.sleep(0.05)


# A device


def cameras(monkeypatch, *found):
    """The kernel's list, which no test can plug a camera into."""
    there = [Device("camera", path, f"camera:{path[10:]}", name, "", problem, "do") for path, name, problem in found]
    monkeypatch.setattr("firmware_bridge.sources.camera.devices", lambda: there)


def test_an_index_that_is_not_there_leads_to_those_that_are(monkeypatch):
    cameras(monkeypatch, ("/dev/video0", "Webcam: front", ""), ("/dev/video2", "Microscope", ""))
    with pytest.raises(SourceUnavailable, match="camera:63: no such camera") as caught:
        make_source("camera:63").open()
    assert caught.value.hint == "cameras that are there: camera:0 (Webcam: front), camera:2 (Microscope)"


def test_without_any_camera_that_is_said():
    with pytest.raises(SourceUnavailable, match="camera:/dev/video63: no such camera") as caught:
        make_source("camera:/dev/video63").open()
    assert caught.value.hint.startswith(("no camera is there", "cameras that are there"))


def test_what_is_wrong_with_a_camera_is_said_before_it_is_opened(monkeypatch):
    cameras(monkeypatch, ("/dev/video0", "Webcam", "permission denied (group video)"))
    monkeypatch.setattr("pathlib.Path.exists", lambda path: True)
    with pytest.raises(SourceUnavailable, match=r"camera:0: permission denied \(group video\)") as caught:
        make_source("camera:0").open()
    assert caught.value.hint == "do"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("camera:ftp://host/x", "a stream is one of rtsp"),
        ("camera:0?fit=squeeze", "must be one of crop, stretch, pad"),
        ("camera:0?channels=bgr", "must be one of rgb, gray"),
        ("camera:0?width=0", "from 1 to 65535"),
        ("camera:0?fps=0", "above 0"),
    ],
)
def test_a_bad_url_is_refused_before_anything_is_opened(url, message):
    with pytest.raises(BadSourceUrl, match=message):
        make_source(url)


# What it costs who does not want it


def test_opencv_is_in_the_cameras_process_alone(video):
    code = (
        "import sys; from firmware_bridge.registry import make_source\n"
        "with make_source(sys.argv[1]) as source: source.read(20)\n"
        "assert 'cv2' not in sys.modules and 'paho' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, f"camera:{video}"], check=True)


def test_the_daemon_has_neither_opencv_nor_paho(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((20, 3), np.float32), y=np.arange(20) % 2)
    code = (
        "import sys; from edge_cl.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "assert 'edge_cl.daemon' in sys.modules and 'numpy' in sys.modules\n"
        "assert 'cv2' not in sys.modules and 'paho' not in sys.modules"
    )
    command = ["run", "--once", "--state", str(tmp_path / "state"), "--source", f"recording:{tmp_path}/x.npz"]
    subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True)


def test_without_the_extra_it_is_named(tmp_path, video, monkeypatch):
    (tmp_path / "cv2.py").write_text("raise ModuleNotFoundError(\"No module named 'cv2'\", name='cv2')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SourceUnavailable, match=r"OpenCV cannot be used \(No module named 'cv2'") as caught:
        make_source(f"camera:{video}").open()
    assert "edge-cl[camera]" in caught.value.hint


# RTSP


def test_a_network_camera_over_rtsp_is_read_and_waited_for():
    server = RtspServer()
    try:
        with make_source(f"{server.url}?width=32") as source:
            assert (source.schema.shape, source.can_wait) == ((24, 32, 3), False)
            first = next_frame(source)
            red, green, blue = first.values.mean(axis=(0, 1))
            assert (red < 15, green < 15, blue > 240) == (True, True, True)
            assert next_frame(source).boot == first.boot
            server.stop()
            assert gone(source)
            server.start()
            back = next_frame(source)
            assert (back.boot != first.boot, back.gap) == (True, True)
            assert source.counters["reconnects"] == 1
        assert server.n_clients >= 2
    finally:
        server.close()
