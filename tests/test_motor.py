"""The motor: physics that can be checked, a scenario that shows forgetting, states to be learnt and not guessed."""

import time

import numpy as np
import pytest

from firmware_bridge.motor import FRAME_ROWS, RATE_HZ, SCALE_G, STATES, STRETCH_FRAMES, Motor, boot_of, schema

WINDOW = 256
STRETCH_BLOCKS = STRETCH_FRAMES * FRAME_ROWS // RATE_HZ


def stretch_rows(motor, stretch):
    return np.concatenate([motor.rows(b) for b in range(stretch * STRETCH_BLOCKS, (stretch + 1) * STRETCH_BLOCKS)])


@pytest.fixture(scope="module")
def rounds():
    """Windows of the first two rounds (2, 5 states, 250, 256, 3) in counts."""
    motor = Motor(0)
    return np.stack([stretch_rows(motor, s) for s in range(10)]).reshape(2, 5, 250, WINDOW, 3).astype(np.float64)


def log_spectrum(windows):
    """Log magnitudes of the Hann-windowed spectrum, (N, 129 · 3)."""
    swing = windows - windows.mean(axis=1, keepdims=True)
    return np.log1p(np.abs(np.fft.rfft(swing * np.hanning(WINDOW)[:, None], axis=1))).reshape(len(windows), -1)


def mean_and_std(windows):
    return np.concatenate([windows.mean(axis=1), windows.std(axis=1)], axis=1)


def nearest_centroid(features, train, test):
    """Accuracy per state of a nearest-centroid classifier; train and test are (5, N, 256, 3)."""
    x = features(train.reshape(-1, WINDOW, 3))
    mean, scale = x.mean(axis=0), x.std(axis=0)
    centroids = ((x - mean) / scale).reshape(5, -1, x.shape[1]).mean(axis=1)
    z = (features(test.reshape(-1, WINDOW, 3)) - mean) / scale
    guess = ((z[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1).reshape(5, -1)
    return (guess == np.arange(5)[:, None]).mean(axis=1)


def line_g(windows, frequency_hz, axis):
    """Amplitude in g of the strongest line within 8 % of a frequency, over a whole stretch."""
    signal = windows.reshape(-1, 3)[:, axis] * SCALE_G
    spectrum = np.abs(np.fft.rfft(signal - signal.mean())) * 2 / len(signal)
    near = np.abs(np.fft.rfftfreq(len(signal), 1 / RATE_HZ) / frequency_hz - 1) < 0.08
    return np.sqrt((spectrum[near] ** 2).sum())


def envelope_peak_hz(windows, low_hz, high_hz):
    """Strongest frequency between two in the envelope of the resonance band, averaged over 1 s pieces of a stretch."""
    signal = windows.reshape(-1, RATE_HZ, 3)[:, :, 2]
    spectrum = np.fft.rfft(signal - signal.mean(axis=1, keepdims=True), axis=1)
    band = np.zeros((len(signal), RATE_HZ), complex)
    band[:, 800:1400] = 2 * spectrum[:, 800:1400]
    envelope = np.abs(np.fft.ifft(band, axis=1))
    lines = np.abs(np.fft.rfft(envelope - envelope.mean(axis=1, keepdims=True), axis=1)).mean(axis=0)
    return low_hz + int(lines[low_hz:high_hz].argmax())


def test_the_same_seed_gives_the_same_sample_whether_reached_or_jumped_to():
    reached = [sample for sample, _ in zip(Motor(3).samples(), range(4100), strict=False)]
    for start in (0, 99, 100, 1999, 2000, 4050):
        jumped = next(Motor(3).samples(start))
        assert (jumped.id, jumped.label, jumped.time_us) == (
            reached[start].id,
            reached[start].label,
            reached[start].time_us,
        )
        np.testing.assert_array_equal(jumped.values, reached[start].values)


def test_another_seed_is_another_board_with_other_noise():
    first, second = next(Motor(1).samples()), next(Motor(2).samples())
    assert first.boot == boot_of(1) != second.boot
    assert not np.array_equal(first.values, second.values)


def test_samples_keep_to_the_schema():
    sample = next(Motor(0).samples(123))
    assert (sample.values.dtype.name, sample.values.shape) == (schema().dtype, schema().shape)
    assert sample.time_us == 1_230_000
    assert not sample.values.flags.writeable


def test_every_round_holds_every_state_once_and_later_rounds_are_shuffled():
    states = [[Motor(0).state((5 * r + s) * STRETCH_FRAMES) for s in range(5)] for r in range(12)]
    assert states[0] == states[1] == [0, 1, 2, 3, 4]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in states)
    assert len({tuple(order) for order in states[2:]}) > 3


def test_the_operator_labels_truly_part_of_the_time_and_never_part_of_the_return():
    motor = Motor(0)
    labels = np.array([-1 if (label := motor.label(seq)) is None else label for seq in range(10 * STRETCH_FRAMES)])
    truth = np.array([motor.state(seq) for seq in range(10 * STRETCH_FRAMES)])
    assert (labels[labels >= 0] == truth[labels >= 0]).all()
    assert (labels.reshape(10, -1) >= 0).mean(axis=1).tolist() == [0.6] * 6 + [0.0, 0.6, 0.0, 0.6]


def test_gravity_and_range_are_those_of_the_sensor(rounds):
    mean_g = rounds.mean(axis=(0, 1, 2, 3)) * SCALE_G
    assert np.linalg.norm(mean_g) == pytest.approx(1.0, abs=0.05)
    assert np.abs(rounds).max() < 4095


def test_unbalance_turns_with_the_shaft_and_grows_with_the_square_of_speed():
    motor = Motor(0)
    for stretch in (1, 6):
        speed = motor._stretch(stretch).speed.mean
        severity = motor._stretch(stretch).severity
        amplitude = line_g(stretch_rows(motor, stretch), speed, axis=0)
        assert amplitude == pytest.approx((0.24 * severity + 0.05) * (speed / 25) ** 2, rel=0.15)


def test_looseness_has_subharmonics_that_no_other_state_has(rounds):
    half = [line_g(rounds[0, state], 12.5, axis=2) for state in range(5)]
    assert half[2] > 5 * max(half[:2] + half[3:])


def test_bearing_defects_strike_at_their_kinematic_frequencies():
    motor = Motor(0)
    for stretch, per_turn in ((3, 3.585), (4, 5.415), (8, 3.585), (9, 5.415)):
        expected = motor._stretch(stretch).speed.mean * per_turn
        peak = envelope_peak_hz(stretch_rows(motor, stretch), int(0.9 * expected), int(1.1 * expected))
        assert peak == pytest.approx(expected, rel=0.025)


def test_only_the_inner_race_is_modulated_by_the_shaft():
    motor = Motor(0)
    modulation = []
    for stretch in (3, 4):
        hits = motor._stretch(stretch)
        rows = stretch_rows(motor, stretch).astype(float)[:, 2]
        band = np.fft.rfft(rows - rows.mean())
        frequency = np.fft.rfftfreq(len(rows), 1 / RATE_HZ)
        analytic = np.fft.ifft(np.where(frequency > 800, 2 * band, 0), len(rows))
        energy = np.abs(analytic) ** 2
        turns = hits.speed.integral(np.arange(len(rows)) / RATE_HZ)
        modulation.append(abs((energy * np.exp(-2j * np.pi * turns)).mean()) / energy.mean())
    assert modulation[0] < 0.1
    assert modulation[1] > 0.3


def test_a_simple_classifier_on_spectra_tells_the_states_apart(rounds):
    accuracy = nearest_centroid(log_spectrum, rounds[0, :, :150], rounds[0, :, 150:])
    assert accuracy.min() > 0.95, dict(zip(STATES, accuracy, strict=True))


def test_mean_and_spread_alone_do_not(rounds):
    accuracy = nearest_centroid(mean_and_std, rounds[0, :, :150], rounds[0, :, 150:])
    assert accuracy.mean() < 0.9
    assert nearest_centroid(mean_and_std, rounds[0, :, :150], rounds[1]).mean() < 0.65


def test_the_return_is_the_same_states_under_other_conditions(rounds):
    accuracy = nearest_centroid(log_spectrum, rounds[0, :, :150], rounds[1])
    assert 0.6 < accuracy.mean() < 0.97
    speeds = [Motor(0)._stretch(5 * r).speed.mean for r in range(6)]
    assert all(abs(speed / speeds[0] - 1) > 0.03 for speed in speeds[1:])


def test_two_hundred_thousand_rows_take_less_than_a_second_of_processor_time():
    motor, start = Motor(1), time.process_time()
    for block in range(63):
        motor.rows(block)
    assert time.process_time() - start < 1.0
