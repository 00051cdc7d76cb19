import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from visiontune.errors import DataError, RecipeError
from visiontune.metrics import response_scores
from visiontune.metrics.predicted_session import PredictedSession
from visiontune.metrics.requirements import parse_requirements
from visiontune.metrics.response_scores import response_differences, score_responses


def session(
    name: str = "a", units: int = 4, trials: int = 12, bins: int = 10, repeated: int = 3, each: int = 3, seed: int = 0
) -> PredictedSession:
    """`repeated` stimuli shown `each` times, then stimuli shown once; the predicted rates are the true ones."""
    generator = np.random.default_rng(seed)
    trial = np.repeat(np.arange(trials), bins)
    condition = np.where(trial < repeated * each, trial % max(repeated, 1), -1)
    stimulus = np.where(condition < 0, trial, condition)
    rates = generator.gamma(1, 0.8, (trials, bins, units))[stimulus, np.tile(np.arange(bins), trials)]
    counts = generator.poisson(rates).astype(float)
    keys = tuple(f"{name}/{u}" for u in range(units))
    valid = generator.random(rates.shape) < 0.9
    return PredictedSession(name, keys, rates, counts, valid, trial, condition, np.tile(np.arange(bins), trials))


def taken(of: PredictedSession, rows: NDArray) -> PredictedSession:
    names = ("rates", "counts", "valid", "trials", "conditions", "places")
    return replace(of, **{name: getattr(of, name)[rows] for name in names})


def numbers(value: object) -> list[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for one in value for number in numbers(one)]
    return [float(value)] if isinstance(value, int | float) else []


WHOLE = [session("a"), session("b", units=3, seed=1)]
SCORES = score_responses(WHOLE, resamples=50)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), pieces=st.integers(1, 40))
def test_the_scores_do_not_depend_on_how_bins_are_batched_or_in_which_order_ranks_hand_them_over(
    seed: int, pieces: int
) -> None:
    generator = np.random.default_rng(seed)
    cut = []
    for one in WHOLE:
        belongs = generator.integers(0, pieces, len(one.trials))
        cut += [taken(one, generator.permutation(np.flatnonzero(belongs == piece))) for piece in range(pieces)]
    again = score_responses([cut[k] for k in generator.permutation(len(cut))], resamples=50)
    assert numbers(again.to_json()) == pytest.approx(numbers(SCORES.to_json()), abs=1e-9)


def test_every_metric_has_a_value_and_an_interval_around_it() -> None:
    names = ("bits_per_spike", "bits_per_spike_median", "above_zero", "correlation", "average_correlation", "ccnorm")
    assert set(SCORES.metrics) == {*names, "feve"}
    for name in names:
        metric = SCORES.metric(name)
        assert metric.low is not None and metric.value is not None and metric.high is not None
        assert metric.low <= metric.value <= metric.high and metric.low < metric.high
    bits = [unit.bits_per_spike.value for unit in SCORES.per_unit]
    assert SCORES.n == SCORES.metric("bits_per_spike").n == 7
    assert SCORES.metric("bits_per_spike").value == pytest.approx(np.mean([b for b in bits if b is not None]))
    assert SCORES.metric("bits_per_spike_median").value == pytest.approx(np.median([b for b in bits if b is not None]))


def test_a_metric_of_one_session_is_that_of_the_session_scored_alone() -> None:
    alone = score_responses([WHOLE[1]], resamples=50)
    assert SCORES.metric("bits_per_spike.b") == alone.metric("bits_per_spike")
    assert SCORES.metric("correlation.b") == alone.metric("correlation")
    assert parse_requirements("bits_per_spike.b>0")[0].holds(SCORES)
    wide = ("bits_per_spike>=-3", "bits_per_spike<1.5", "correlation>-0.5", "feve.b>=-2")
    assert [parse_requirements(one)[0].bound for one in wide] == [-3, 1.5, -0.5, -2]
    assert all(parse_requirements(f"{name}>0.5")[0].metric == name for name in SCORES.metrics)
    for text in ("correlation>=-1.5", "above_zero>=-0.1"):
        with pytest.raises(RecipeError, match="lies between"):
            parse_requirements(text)
    with pytest.raises(RecipeError, match=r"no metric 'bits_per_spike\.c'") as error:
        SCORES.metric("bits_per_spike.c")
    assert "a, b" in str(error.value)


def test_a_model_worse_than_a_constant_rate_has_a_negative_score() -> None:
    # Defect 9: the mean of clipped figures was above zero.
    one = session(units=20, trials=40, seed=3)
    shuffled = replace(one, rates=np.random.default_rng(1).permutation(one.rates))
    scores = score_responses([shuffled], resamples=50)
    value, high = scores.metric("bits_per_spike").value, scores.metric("bits_per_spike").high
    assert value is not None and high is not None and value <= high < 0
    assert scores.metric("above_zero").value == 0


def test_the_share_of_units_above_zero_is_that_of_the_units_that_are() -> None:
    one = session(units=20, trials=40, seed=3)
    rates = one.rates.copy()
    rates[:, :5] = np.random.default_rng(1).permutation(rates[:, :5])
    metric = score_responses([replace(one, rates=rates)], resamples=50).metric("above_zero")
    assert metric.value == 0.75
    assert metric.low == pytest.approx(0.75, abs=0.06) and metric.high == pytest.approx(0.75, abs=0.06)


def test_silent_units_are_named_and_counted_in_no_mean() -> None:
    one = session(units=4)
    counts, valid = one.counts.copy(), one.valid.copy()
    counts[:, 1], valid[:, 2] = 0, False
    scores = score_responses([replace(one, counts=counts, valid=valid)], resamples=50)
    assert scores.silent == ("a/1", "a/2")
    assert scores.per_unit[1].bits_per_spike.value is None
    assert scores.metric("bits_per_spike").n == scores.metric("above_zero").n == 2
    heard = score_responses([replace(one, units=("a/0", "a/3"), **_columns(one, [0, 3]))], resamples=50)
    assert scores.metric("bits_per_spike") == heard.metric("bits_per_spike")
    text = json.dumps(scores.to_json(), allow_nan=False)
    assert json.loads(text)["per_unit"][1]["bits_per_spike"]["value"] is None


def _columns(of: PredictedSession, units: list[int]) -> dict[str, NDArray]:
    return {name: getattr(of, name)[:, units] for name in ("rates", "counts", "valid")}


def test_a_session_in_which_nothing_was_heard_has_reasons_in_place_of_values() -> None:
    one = session(units=2)
    scores = score_responses([replace(one, counts=np.zeros_like(one.counts))], resamples=50)
    assert all(metric.value is None for metric in scores.metrics.values())
    assert "no unit has a spike" in scores.reasons["bits_per_spike"]


def test_without_repeats_the_figures_of_repeats_are_absent_and_say_why() -> None:
    scores = score_responses([session(repeated=0)], resamples=50)
    for name in ("average_correlation", "feve", "ccnorm"):
        assert scores.metric(name).value is None
        assert "valid in two trials" in scores.reasons[name]
    assert scores.metric("correlation").value is not None
    assert scores.excluded == {"feve": 0, "ccnorm": 0}


def test_units_with_too_noisy_repeats_are_counted() -> None:
    one = session(units=3, trials=60, repeated=20, each=3)
    counts = one.counts.copy()
    counts[:, 1] = np.random.default_rng(0).poisson(1.0, len(counts))
    scores = score_responses([replace(one, counts=counts)], resamples=0)
    assert scores.excluded == {"feve": 1, "ccnorm": 1}
    assert scores.metric("feve").n == 2 and scores.metric("average_correlation").n == 3


def test_trials_of_one_stimulus_count_as_one_piece_of_data() -> None:
    one = session(trials=20, repeated=2, each=10)
    scores = score_responses([one], resamples=200).sessions[0]
    assert (scores.trials, scores.stimuli, scores.repeated) == (20, 2, 2)
    single = score_responses([replace(one, conditions=np.zeros_like(one.conditions))], resamples=200)
    metric = single.metric("bits_per_spike")
    assert metric.value is not None and metric.low is metric.high is None
    assert "one says nothing about others" in single.reasons["bits_per_spike"]
    assert single.per_unit[0].bits_per_spike.low is None


def test_trials_without_a_valid_bin_are_no_data() -> None:
    one = session(repeated=0)
    more = session(repeated=0, seed=5)
    more = replace(more, trials=more.trials + 100, valid=np.zeros_like(more.valid))
    alone, both = score_responses([one], resamples=100), score_responses([one, more], resamples=100)
    assert both.metrics == alone.metrics
    assert (both.sessions[0].trials, both.sessions[0].stimuli) == (24, 12)
    nothing = score_responses([more, taken(one, np.arange(0))], resamples=100)
    assert nothing.silent == one.units and nothing.metric("bits_per_spike").value is None
    assert score_responses([taken(one, np.arange(0))], resamples=100).silent == one.units


def test_intervals_are_over_stimuli_and_not_over_bins() -> None:
    generator = np.random.default_rng(2)
    one = session(units=10, trials=30, bins=20, repeated=0)
    good = generator.random((30, 10))[one.trials] < 0.5  # in half of the stimuli the model knows nothing
    rates = np.where(good, one.rates, 0.8)
    by_stimulus = score_responses([replace(one, rates=rates)], resamples=300)
    bins = np.arange(len(one.trials))
    by_bin = score_responses([replace(one, rates=rates, trials=bins, places=bins * 0)], resamples=300)
    widths = [
        np.mean([unit.bits_per_spike.high - unit.bits_per_spike.low for unit in scores.per_unit])  # pyright: ignore
        for scores in (by_stimulus, by_bin)
    ]
    assert widths[0] > 1.2 * widths[1]


@pytest.mark.parametrize(("units", "rate"), [(1, 0.6), (80, 0.12)])
def test_the_interval_holds_the_true_figure_about_95_times_in_100(units: int, rate: float) -> None:
    # Over many units of few spikes each the bias of a null rate fitted to the scored bins is larger than the spread.
    # The rates are the true ones, so that the expected bits per spike are known: the entropy of a gamma distribution.
    truth = np.mean(_terms := np.random.default_rng(0).gamma(4, rate / 4, 400_000))
    expected = (_terms * np.log2(_terms / truth)).mean() / truth
    held, tries = 0, 80
    for seed in range(tries):
        generator = np.random.default_rng(100 + seed)
        trial, place = np.repeat(np.arange(40), 15), np.tile(np.arange(15), 40)
        rates = generator.gamma(4, rate / 4, (600, units))
        counts = generator.poisson(rates).astype(float)
        keys = tuple(f"a/{u}" for u in range(units))
        one = PredictedSession("a", keys, rates, counts, np.ones_like(counts, np.bool_), trial, trial * 0 - 1, place)
        metric = score_responses([one], resamples=200, seed=seed).metric("bits_per_spike")
        assert metric.low is not None and metric.high is not None
        held += metric.low <= expected <= metric.high
    assert 0.88 <= held / tries <= 0.99


def test_without_resamples_the_values_are_the_same_and_there_are_no_intervals() -> None:
    scores = score_responses(WHOLE, resamples=0)
    assert {name: m.value for name, m in scores.metrics.items()} == {n: m.value for n, m in SCORES.metrics.items()}
    assert all(metric.low is metric.high is None for metric in scores.metrics.values())
    assert all(unit.bits_per_spike.low is None for unit in scores.per_unit)


def test_the_same_data_and_seed_give_the_same_intervals_and_nothing_else_is_drawn_from() -> None:
    state = np.random.get_state()[1].tolist()  # pyright: ignore
    assert score_responses(WHOLE, resamples=50).to_json() == SCORES.to_json()
    assert score_responses(WHOLE, resamples=50, seed=1).metric("correlation") != SCORES.metric("correlation")
    assert np.random.get_state()[1].tolist() == state  # pyright: ignore


def test_a_bin_that_comes_twice_is_refused() -> None:
    # A sampler that pads the last batch of a rank would count some bins twice, the more ranks the more.
    with pytest.raises(DataError, match="3 bins came twice"):
        score_responses([WHOLE[0], taken(WHOLE[0], np.array([4, 5, 6]))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rates": np.full((120, 4), np.nan)}, "valid rates are negative or not finite"),
        ({"rates": np.full((120, 4), -0.1)}, "valid rates are negative"),
        ({"counts": np.full((120, 4), np.inf)}, "valid counts are negative or not finite"),
        ({"counts": np.zeros((120, 3))}, "counts .120, 3. do not fit"),
        ({"places": np.zeros(3, np.int64)}, "places .3,. do not fit"),
        ({"units": (), **{name: np.zeros((120, 0)) for name in ("rates", "counts", "valid")}}, "has no units"),
    ],
)
def test_arrays_that_cannot_be_scored_are_refused(change: dict[str, NDArray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(WHOLE[0], **change)


def test_pieces_and_sessions_that_contradict_each_other_are_refused() -> None:
    one = WHOLE[0]
    with pytest.raises(DataError, match="have other units"):
        score_responses([one, replace(one, units=one.units[::-1])])
    with pytest.raises(DataError, match="stands twice"):
        score_responses([one, replace(one, name="c")])
    with pytest.raises(DataError, match="two conditions"):
        score_responses([replace(one, conditions=np.arange(len(one.trials)))])
    with pytest.raises(DataError, match="no responses"):
        score_responses([])


def test_differences_reach_as_far_as_the_stimuli_allow_that_their_metric_is_made_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four repeated stimuli stay four, however many were shown once."""
    asked: list[tuple[int, int]] = []
    tail = response_scores._tail
    monkeypatch.setattr(response_scores, "_tail", lambda *of: asked.append(of) or tail(*of))
    one = session(trials=24, repeated=4, each=3)
    other = replace(one, rates=one.rates * np.random.default_rng(1).gamma(9, 1 / 9, one.rates.shape))
    response_differences([one], [other], resamples=50)
    assert set(asked) == {(4, 1), (4 + 12, 1)}
