"""Sequence arithmetic: lost, duplicate, late and restarted samples, also across the wrap at 2^32."""

from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge.sequence import BOOTS, REACH, SequenceTracker


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


def test_what_is_sent_again_of_the_boots_before_is_no_restart():
    tracker = SequenceTracker()
    sent = [(boot, seq) for boot in (7, 8, 9) for seq in range(5)]
    assert all(tracker.accept(*one) is not None for one in sent)
    assert [tracker.accept(*one) for one in sent] == [None] * 15
    assert tracker.accept(9, 5) == 0
    assert seen(tracker) == {"restarts": 2, "duplicate": 15}


def test_what_was_consumed_in_the_boots_before_is_known_in_another_run():
    tracker = SequenceTracker(after=(9, 4), older=[(7, 4), (8, 2)])
    assert [tracker.accept(*one) for one in ((7, 4), (8, 2), (9, 4))] == [None] * 3
    assert [tracker.accept(*one) for one in ((8, 3), (9, 5))] == [1, 1]  # that one had never come
    assert seen(tracker) == {"restarts": 2, "duplicate": 3}


def test_what_never_came_of_an_older_boot_is_late_and_counted_once():
    tracker = SequenceTracker()
    for boot, seq in ((7, 0), (7, 2), (8, 0)):
        tracker.accept(boot, seq)
    assert [tracker.accept(7, 1), tracker.accept(7, 1)] == [None, None]
    assert seen(tracker) == {"wire_lost": 1, "restarts": 1, "late": 1, "duplicate": 1}


def test_a_board_that_uses_an_old_number_again_is_heard_at_once_if_that_boot_was_long_and_soon_if_not():
    for lived, missed in ((REACH + 1, 0), (REACH, REACH), (100, 100)):
        tracker = SequenceTracker(after=(8, 0), older=[(7, lived - 1)])
        came = next(seq for seq in range(lived + 1) if tracker.accept(7, seq) is not None)
        assert came == missed


def test_only_the_last_boots_are_remembered():
    tracker = SequenceTracker()
    for boot in range(BOOTS + 1):
        tracker.accept(boot, 0)
    assert tracker.accept(1, 0) is None
    assert tracker.accept(0, 0) == 1


def test_where_a_boot_was_that_is_over_is_no_news():
    tracker = SequenceTracker()
    for boot, seq in ((7, 4), (8, 0)):
        tracker.accept(boot, seq)
    assert tracker.is_over(7, 5)
    assert not tracker.is_over(7, 6)
    assert not tracker.is_over(8, 1)
    assert tracker.expect(7, 5) == 0
    assert tracker.accept(8, 1) == 0
    assert seen(tracker) == {"restarts": 1}


@given(st.lists(st.tuples(st.integers(0, BOOTS - 1), st.integers(0, 30)), max_size=200), st.integers(0, 2**32 - 1))
def test_no_sample_of_the_boots_that_are_remembered_is_handed_out_twice(places, first):
    """Whatever is sent again, in whatever order, across the wrap, and with a start anew of this program in between."""
    tracker, accepted, last = SequenceTracker(), [], {}
    for number, (boot, offset) in enumerate(places):
        seq = (first + offset) % 2**32
        if number == len(places) // 2 and last:
            *older, after = last.items()
            tracker = SequenceTracker(after, older)
        if tracker.accept(boot, seq) is not None:
            accepted.append((boot, seq))
            last.pop(boot, None)
            last[boot] = seq
    assert len(accepted) == len(set(accepted))
