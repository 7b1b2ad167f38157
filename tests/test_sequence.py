"""Sequence arithmetic: lost, duplicate, late and restarted samples, also across the wrap at 2^32."""

from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge.sequence import SequenceTracker


def seen(tracker):
    return {name: count for name, count in tracker.counters.items() if count}


def test_samples_in_order_are_neither_lost_nor_late():
    tracker = SequenceTracker()
    assert [tracker.accept(1, seq) for seq in (7, 8, 9)] == [0, 0, 0]
    assert seen(tracker) == {}


def test_a_duplicate_is_never_counted_as_loss():
    tracker = SequenceTracker()
    assert [tracker.accept(1, seq) for seq in (7, 7, 8, 7)] == [0, None, 0, None]
    assert seen(tracker) == {"duplicate": 2}


def test_a_late_sample_is_dropped_and_told_from_a_duplicate():
    tracker = SequenceTracker()
    assert [tracker.accept(1, seq) for seq in (0, 3, 1, 1, 3)] == [0, 2, None, None, None]
    assert seen(tracker) == {"wire_lost": 2, "late": 1, "duplicate": 2}


def test_a_new_boot_is_a_restart_not_a_loss_and_breaks_continuity():
    tracker = SequenceTracker()
    assert [tracker.accept(1, 50), tracker.accept(2, 0), tracker.accept(2, 1)] == [0, 1, 0]
    assert seen(tracker) == {"restarts": 1}


def test_after_a_resume_old_samples_are_duplicates_and_the_absence_is_not_the_wire():
    tracker = SequenceTracker(after=(1, 10))
    assert [tracker.accept(1, seq) for seq in (9, 10, 15, 17)] == [None, None, 4, 1]
    assert seen(tracker) == {"duplicate": 2, "away": 4, "wire_lost": 1}


def test_after_a_resume_another_boot_is_a_restart():
    tracker = SequenceTracker(after=(1, 10))
    assert [tracker.accept(2, 3), tracker.accept(2, 4)] == [1, 0]
    assert seen(tracker) == {"restarts": 1}


def test_what_is_missing_at_the_end_is_lost_too():
    tracker = SequenceTracker()
    tracker.accept(1, 0)
    assert tracker.expect(1, 4) == 3
    assert tracker.expect(1, 4) == 0
    assert tracker.expect(1, 1) == 0  # behind what came already
    assert seen(tracker) == {"wire_lost": 3}
    assert tracker.expect(2, 9) == 1  # of another boot, of which nobody knows where it began
    assert seen(tracker) == {"wire_lost": 3, "restarts": 1}


def test_a_board_that_says_where_it_is_shows_what_never_came_before_the_first_sample():
    tracker = SequenceTracker()
    assert tracker.expect(1, 5) == 0
    assert tracker.accept(1, 8) == 3
    assert seen(tracker) == {"wire_lost": 3}


def test_what_is_missing_around_a_restart_is_counted_when_the_board_remembers_its_total():
    tracker = SequenceTracker()
    tracker.accept(1, 0)
    assert tracker.made_before(1, 0) == 0
    tracker.accept(1, 1)  # of ten
    assert tracker.accept(2, 3) == 1  # 0, 1 and 2 never came
    assert tracker.made_before(2, 10) == 8 + 3
    assert tracker.made_before(2, 10) == 0
    assert seen(tracker) == {"restarts": 1, "restart_lost": 11}


def test_a_boot_of_which_nothing_came_is_in_the_account_too():
    tracker = SequenceTracker()
    tracker.accept(1, 0)
    tracker.made_before(1, 100)  # it had a life before
    assert tracker.accept(4, 0) == 1
    assert tracker.made_before(3, 110) == 0  # not of this boot
    assert tracker.made_before(4, 130) == 29
    assert seen(tracker) == {"restarts": 1, "restart_lost": 29}


def test_a_board_that_forgets_its_total_is_not_believed():
    tracker = SequenceTracker()
    tracker.accept(1, 99)
    tracker.made_before(1, 1000)
    tracker.accept(2, 0)
    assert tracker.made_before(2, 0) == 0
    assert seen(tracker) == {"restarts": 1}


def test_what_was_made_while_the_line_was_away_is_not_lost_on_it():
    tracker = SequenceTracker()
    tracker.accept(1, 0)
    tracker.made_before(1, 0)
    tracker.absent()
    assert tracker.accept(1, 4) == 3
    assert tracker.accept(1, 6) == 1
    assert seen(tracker) == {"away": 3, "wire_lost": 1}
    tracker.absent()
    tracker.accept(2, 2)
    assert tracker.made_before(2, 20) == 13 + 2
    assert seen(tracker) == {"away": 3 + 15, "wire_lost": 1, "restarts": 1}


@given(st.integers(0, 2**32 - 1), st.lists(st.sampled_from(["sent", "lost", "twice"]), max_size=200))
def test_received_and_lost_add_up_to_generated_across_the_wrap(first, fates):
    tracker, accepted = SequenceTracker(), [first]
    assert tracker.accept(1, first) == 0
    for offset, fate in enumerate(fates, start=1):
        seq = (first + offset) % 2**32
        for _ in range({"sent": 1, "lost": 0, "twice": 2}[fate]):
            if tracker.accept(1, seq) is not None:
                accepted.append(seq)
    tracker.expect(1, (first + len(fates) + 1) % 2**32)
    assert len(accepted) == len(set(accepted))
    assert len(accepted) + tracker.counters["wire_lost"] == len(fates) + 1
    assert tracker.counters["duplicate"] == fates.count("twice")


@given(st.permutations(range(40)))
def test_any_order_within_the_memory_hands_out_rising_seqs_and_names_the_rest_late(order):
    tracker = SequenceTracker(after=(1, 999))
    accepted = [seq for seq in order if tracker.accept(1, 1000 + seq) is not None]
    assert accepted == sorted(accepted)
    assert len(accepted) + tracker.counters["late"] == 40
    assert tracker.counters["duplicate"] == 0


@given(st.lists(st.lists(st.sampled_from(["sent", "lost", "told"]), max_size=30), min_size=1, max_size=8))
def test_received_and_lost_add_up_to_all_that_was_ever_made_over_any_number_of_boots(boots):
    """`told`: sent, and the board says how many it made in the boots before."""
    tracker, received, total = SequenceTracker(), 0, 0
    tracker.expect(0, 0)
    tracker.made_before(0, 0)
    for boot, fates in enumerate(boots):
        for seq, fate in enumerate(fates):
            received += fate != "lost" and tracker.accept(boot, seq) is not None
            if fate == "told":
                tracker.made_before(boot, total)
        total += len(fates)
    last, made = len(boots) - 1, len(boots[-1])
    tracker.expect(last, made)
    tracker.made_before(last, total - made)
    assert received + tracker.counters["wire_lost"] + tracker.counters["restart_lost"] == total
