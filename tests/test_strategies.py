"""The named strategies: each resolves to a configuration, and differs from the others where it says so."""

from __future__ import annotations

import re

import pytest

from edge_cl.config import Config, parse
from edge_cl.errors import OperatorError
from edge_cl.evaluation.strategies import MODELS, PLAIN, STRATEGIES, Strategy, strategy_of
from edge_cl.learning.model import KINDS

EACH = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=lambda strategy: strategy.name)


def config_of(strategy: Strategy) -> Config:
    return parse("", overrides=list(strategy.overrides))


def values_of(strategy: Strategy) -> dict[str, str]:
    return dict(override.split("=", 1) for override in strategy.overrides)


@EACH
def test_every_strategy_is_a_valid_configuration(strategy: Strategy) -> None:
    assert isinstance(config_of(strategy), Config)


@EACH
def test_every_strategy_says_in_one_sentence_what_it_is(strategy: Strategy) -> None:
    assert re.fullmatch(r"[A-Z].{20,110}\.", strategy.summary)


def test_the_default_changes_nothing() -> None:
    assert parse("", overrides=STRATEGIES["default"].overrides) == Config()


@EACH
def test_no_other_strategy_takes_over_a_method_of_the_default(strategy: Strategy) -> None:
    if strategy.name != "default":
        switches = {override.split("=")[0] for override in PLAIN}
        assert switches <= set(values_of(strategy))


def test_no_two_strategies_are_the_same() -> None:
    seen = [(set(strategy.overrides), strategy.shuffles) for strategy in STRATEGIES.values()]
    assert [one for index, one in enumerate(seen) if one in seen[:index]] == []


@EACH
def test_a_strategy_without_replay_keeps_no_sample(strategy: Strategy) -> None:
    assert strategy.replays == ("replay.samples=0" not in strategy.overrides)
    assert strategy.replays == (config_of(strategy).replay.per_step > 0)


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(OperatorError, match=r"one of default, .* \(got der\+\)") as caught:
        strategy_of("der+")
    assert "der" in caught.value.hint
    with pytest.raises(OperatorError) as caught:
        strategy_of("xyzzy")
    assert "--list" in caught.value.hint


def test_the_models_are_those_there_are() -> None:
    assert set(MODELS) == {"auto", *KINDS}
