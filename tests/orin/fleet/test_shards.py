"""Shards as bookkeeping: cut by rate, given back, stolen at the tail; every sample exactly once."""

import random

import pytest

from orin.errors import OrinError
from orin.fleet.shards import Ledger, Rules, Shard, shards_in

RULES = Rules(slice_s=10.0, first_samples=16, least_samples=4, least_s=60.0, rest_s=30.0, in_hand=1)


def ledger(total, *names, **changes):
    made = Ledger(total, Rules(**{**vars(RULES), **changes}))
    for name in names:
        made.found(name)
    return made


def answer(made, name, now_s, seconds):
    shard = made.take(name, now_s)
    made.finish(name, shard, seconds, now_s + seconds)
    return shard


def test_the_first_shard_is_small_and_the_next_takes_a_slice_of_time():
    made = ledger(100_000, "a")
    assert answer(made, "a", 0.0, 2.0) == Shard(0, 16)  # 8 a second
    assert made.take("a", 2.0) == Shard(16, 96)
    assert made.take("a", 2.0) is None  # one shard in hand


def test_shards_are_in_proportion_to_rates_and_shrink_towards_the_end():
    made = ledger(1000, "fast", "slow")
    answer(made, "fast", 0.0, 1.0)  # 16 a second
    answer(made, "slow", 0.0, 4.0)  # 4 a second
    fast, slow = made.take("fast", 4.0), made.take("slow", 4.0)
    assert (fast.samples, slow.samples) == (160, 40)
    made.finish("fast", fast, 10.0, 14.0)
    left = 1000 - 16 - 16 - 160 - 40
    while left > 300:
        left -= answer(made, "fast", 14.0, 10.0).samples
    assert made.take("fast", 20.0).samples == -(-left * 4 // 5 // 2)  # half of its share: 16 of 20 a second


def test_an_idle_board_takes_over_what_a_slow_one_would_finish_later():
    made = ledger(64, "fast", "slow")
    answer(made, "fast", 0.0, 1.0)
    answer(made, "slow", 0.0, 160.0)
    shard, taken, now_s = made.take("slow", 160.0), [], 160.0
    while not made.finished:
        mine = made.take("fast", now_s)
        if mine is None:
            break
        now_s += mine.samples / 16
        taken.append(mine)
        made.finish("fast", mine, mine.samples / 16, now_s)
    assert shard in taken and made.finished  # stolen whole, and done
    assert made.finish("slow", shard, 100.0, now_s) is False and made.repeated == shard.samples
    made.check()


def test_nothing_is_stolen_from_a_board_that_is_sooner():
    made = ledger(36, "a", "b")
    answer(made, "a", 0.0, 1.0)
    answer(made, "b", 0.0, 1.0)
    held = made.take("a", 1.0)
    assert held == Shard(32, 36) and made.take("b", 1.0) is None  # as fast, and not begun


def test_no_shard_is_in_three_hands():
    made = ledger(52, "slow", "b", "c")
    answer(made, "slow", 0.0, 16.0)
    answer(made, "b", 0.0, 1.0)
    answer(made, "c", 0.0, 1.0)
    held = made.take("slow", 16.0)
    assert made.take("b", 16.0) == held and made.take("c", 16.0) is None


def test_what_a_lost_board_had_goes_to_another_one_as_it_was():
    made = ledger(1000, "a", "b")
    shard = made.take("a", 0.0)
    assert made.lose("a") == [shard] and made.take("b", 1.0) == shard
    assert made.lose("a") == []


def test_a_late_answer_of_a_hung_board_counts_once():
    made = ledger(1000, "a", "b")
    shard = made.take("a", 0.0)
    assert made.overdue(59.0) == [] and made.overdue(61.0) == ["a"]
    assert made.take("a", 62.0) is None  # hung
    assert made.take("b", 62.0) == shard
    assert made.finish("a", shard, 63.0, 63.0) is True and made.finish("b", shard, 2.0, 64.0) is False
    assert made.samples_done == 16 and made.repeated == 16
    assert made.take("a", 64.0) is not None  # it lives


def test_patience_grows_with_the_shard():
    made = ledger(10**6, "a", slice_s=100.0)
    answer(made, "a", 0.0, 16.0)  # one a second
    made.take("a", 16.0)  # 100 samples, 100 s
    assert made.overdue(16.0 + 499.0) == [] and made.overdue(16.0 + 501.0) == ["a"]


def test_a_board_that_fails_twice_rests_and_a_shard_that_fails_everywhere_ends_the_run():
    made = ledger(16, "a", "b")
    for now_s in (0.0, 1.0):
        shard = made.take("a", now_s)
        made.fail("a", shard, "disk full", now_s)
    assert made.take("a", 2.0) is None and made.take("a", 31.1) == shard
    made.lose("a")
    made.take("b", 32.0)
    made.fail("b", shard, "disk full", 32.0)
    assert made.finished
    with pytest.raises(OrinError, match="1 shards failed; shard-.*, b: disk full"):
        made.check()


def test_a_shard_that_costs_five_boards_is_given_up():
    made = ledger(16, "a")
    for _ in range(5):
        made.take("a", 0.0)
        made.lose("a")
    with pytest.raises(OrinError, match="5 boards were lost over it"):
        made.check()


def test_a_run_goes_on_from_its_files_and_only_does_the_rest():
    names = [
        Shard(0, 5).file,
        Shard(9, 12).file,
        ".shard-000000000005-000000000009.jsonl.a.part",
        "notes.txt",
        Shard(3, 8).file,
    ]
    done = shards_in(names)
    assert done == [Shard(0, 5), Shard(9, 12)]
    made = Ledger(20, RULES, done)
    made.found("a")
    rest = []
    while not made.finished:
        rest.append(answer(made, "a", 0.0, 100.0))
    assert rest[0] == Shard(5, 9) and rest[1].begin == 12 and rest[-1].end == 20
    made.check()


def test_check_names_lost_samples():
    made = ledger(40, "a")
    answer(made, "a", 0.0, 1.0)
    with pytest.raises(OrinError, match="samples 16 to 40 are lost"):
        made.check()


def test_a_board_has_the_next_shard_in_hand_once_its_rate_is_known():
    made = ledger(10_000, "a", in_hand=2)
    first = made.take("a", 0.0)
    assert made.take("a", 0.0) is None  # who knows how long it takes
    made.finish("a", first, 1.0, 1.0)
    second, third = made.take("a", 1.0), made.take("a", 1.0)
    assert third == Shard(second.end, second.end + 160) and made.take("a", 1.0) is None
    hand = made.hands["a"]
    assert (hand.expected_end_s(second), hand.expected_end_s(third)) == (11.0, 21.0)
    made.finish("a", second, 10.0, 11.5)
    assert hand.expected_end_s(third) == 21.5
    fourth = made.take("a", 11.5)
    assert made.lose("a") == [third, fourth]
    made.found("b")
    assert made.take("b", 12.0) == third


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_each_sample_is_counted_once(seed):
    """Boards are lost, hang, fail and answer late in random order; a naive set of samples is the reference."""
    rng = random.Random(seed)
    rules = {"slice_s": 2.0, "attempts": 10**6, "losses": 10**6, "in_hand": rng.choice((1, 2, 3))}
    made = ledger(rng.randint(1, 3000), "a", "b", "c", "d", **rules)
    now_s, late, answered = 0.0, [], set()

    def finish(name, shard, seconds):
        if made.finish(name, shard, seconds, now_s):
            numbers = set(range(*shard))
            assert not numbers & answered
            answered.update(numbers)

    for _ in range(100_000):
        if made.finished:
            break
        now_s += rng.random() * 5
        for name in "abcd":
            made.take(name, now_s)
        name = rng.choice("abcd")
        held = made.hands[name].shards
        event = rng.random()
        if not held:
            made.found(name)
        elif event < 0.7:
            finish(name, held[0], rng.random() * 5 + 0.01)
        elif event < 0.8:
            made.fail(name, rng.choice(held), "no", now_s)
        elif event < 0.9:
            late += [(name, shard) for shard in made.lose(name)]
        elif late:
            finish(*late.pop(), 1.0)
        in_hand = {name: list(hand.shards) for name, hand in made.hands.items()}
        late += [(hung, shard) for hung in made.overdue(now_s) for shard in in_hand[hung]]
    assert made.finished and answered == set(range(made.total))
    made.check()
