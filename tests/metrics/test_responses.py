import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import pearsonr
from sklearn.linear_model import PoissonRegressor
from sklearn.metrics import mean_poisson_deviance

from visiontune.metrics.responses import (
    LEAST_EXPLAINABLE,
    average_correlation,
    bin_sums,
    bits_per_spike,
    ccnorm,
    correlation,
    explainable_variance,
    feve,
    reliability,
    repeat_sums,
    signal_power,
)

Floats = NDArray[np.float64]


def masked(units: int = 6, bins: int = 400, seed: int = 0) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    generator = np.random.default_rng(seed)
    rates = generator.gamma(2, 0.2, (bins, units))
    return rates, generator.poisson(rates).astype(float), generator.random((bins, units)) < 0.8


def laid_out(counts: Floats, rates: Floats, valid: NDArray[np.bool_] | None = None) -> dict[str, NDArray]:
    """Arguments of repeat_sums from (conditions, trials, bins, units)."""
    shape = counts.shape
    c, r, b = np.meshgrid(*(np.arange(n) for n in shape[:3]), indexing="ij")
    flat = {
        "rates": np.broadcast_to(rates, shape).reshape(-1, shape[3]),
        "counts": counts.reshape(-1, shape[3]),
        "valid": (np.ones(shape, np.bool_) if valid is None else valid).reshape(-1, shape[3]),
        "trials": (c * shape[1] + r).ravel(),
        "conditions": c.ravel(),
        "places": b.ravel(),
    }
    order = np.random.default_rng(3).permutation(len(flat["trials"]))
    return {name: array[order] for name, array in flat.items()}


def noisy(seed: int = 0, conditions: int = 3, trials: int = 8, bins: int = 40, units: int = 5) -> tuple[Floats, Floats]:
    """True rates (conditions, 1, bins, units) and Poisson counts of the trials."""
    generator = np.random.default_rng(seed)
    rates = generator.gamma(1.5, 0.8, (conditions, 1, bins, units))
    return rates, generator.poisson(np.broadcast_to(rates, (conditions, trials, bins, units))).astype(float)


def test_bits_per_spike_equals_the_poisson_deviance_of_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    seen = generator.standard_normal((500, 4))
    counts = generator.poisson(np.exp(seen @ [0.5, -0.3, 0.2, 0.0] - 1)).astype(float)
    valid = generator.random(500) < 0.7
    rates = PoissonRegressor(alpha=0.1).fit(seen[valid], counts[valid]).predict(seen)
    null = np.full(500, counts[valid].mean())
    gained = mean_poisson_deviance(counts[valid], null[valid]) - mean_poisson_deviance(counts[valid], rates[valid])
    expected = gained * valid.sum() / (2 * counts[valid].sum() * np.log(2))
    found = bits_per_spike(bin_sums(rates[:, None], counts[:, None], valid[:, None]).total())
    assert found == pytest.approx([expected], rel=1e-10)
    assert expected > 0.1


def test_bits_per_spike_is_its_formula_and_never_looks_at_invalid_bins() -> None:
    rates, counts, valid = masked()
    expected = []
    for u in range(rates.shape[1]):
        total, spikes, gain = 0, 0.0, 0.0
        for t in range(len(rates)):
            total, spikes = total + valid[t, u], spikes + valid[t, u] * counts[t, u]
        for t in range(len(rates)):
            if valid[t, u]:
                r, p, q = counts[t, u], rates[t, u], spikes / total
                gain += r * np.log(p) - p - r * np.log(q) + q
        expected.append(gain / (spikes * np.log(2)))
    rates[~valid], counts[~valid] = np.nan, np.nan
    assert bits_per_spike(bin_sums(rates, counts, valid).total()) == pytest.approx(expected, rel=1e-10)


def test_a_model_worse_than_a_constant_rate_has_a_negative_mean() -> None:
    # Defect 9: a mean of clipped figures reported such a model as slightly better than nothing.
    generator = np.random.default_rng(4)
    counts = generator.poisson(0.3, (2000, 50)).astype(float)
    rates = 0.3 * np.exp(0.15 * generator.standard_normal(counts.shape))
    bits = bits_per_spike(bin_sums(rates, counts, np.ones_like(counts, np.bool_)).total())
    assert bits.mean() < -0.01
    assert np.maximum(bits, 0).mean() >= 0


def test_a_unit_without_a_spike_or_without_a_valid_bin_has_no_bits_per_spike() -> None:
    # Defect 9 again: such units were -287 bits, and hidden by the clip.
    rates, counts, valid = masked(units=3)
    counts[:, 0], valid[:, 1] = 0, False
    sums = bin_sums(rates, counts, valid).total()
    assert np.isnan(bits_per_spike(sums)).tolist() == [True, True, False]


def test_a_spike_where_no_rate_was_predicted_costs_at_most_27_bits() -> None:
    bits = bits_per_spike(bin_sums(np.zeros((10, 1)), np.ones((10, 1)), np.ones((10, 1), np.bool_)).total())
    assert -27 < bits[0] < -25


def test_the_true_rate_reaches_the_bits_per_spike_that_theory_gives() -> None:
    rates = np.random.default_rng(5).gamma(1, 0.5, (40_000, 4))
    counts = np.random.default_rng(6).poisson(rates).astype(float)
    found = bits_per_spike(bin_sums(rates, counts, np.ones_like(counts, np.bool_)).total())
    mean = rates.mean(axis=0)
    analytic = (rates * np.log2(rates / mean)).mean(axis=0) / mean
    assert found == pytest.approx(analytic, abs=0.03)
    assert (found > 0.4).all()


def test_the_correlation_is_numpys_over_the_valid_bins() -> None:
    rates, counts, valid = masked()
    expected = [np.corrcoef(rates[v, u], counts[v, u])[0, 1] for u, v in enumerate(valid.T)]
    assert correlation(bin_sums(rates, counts, valid).total()) == pytest.approx(expected, rel=1e-10)
    # Sums of squares about zero would lose every digit here.
    assert correlation(bin_sums(rates, counts + 1e8, valid).total()) == pytest.approx(expected, rel=1e-6)


def test_a_constant_rate_has_no_correlation() -> None:
    _, counts, valid = masked(units=2)
    sums = bin_sums(np.full(counts.shape, 0.1), counts, valid)
    assert np.isnan(correlation(sums.total())).all()
    flat, truth = np.full((2, 1, 10, 1), 0.1), np.random.default_rng(0).poisson(1.0, (2, 4, 10, 1)).astype(float)
    repeats = repeat_sums(**laid_out(truth, flat)).total()
    assert np.isnan(average_correlation(repeats)).all() and np.isnan(ccnorm(repeats)).all()


def test_drawing_groups_equals_computing_on_their_bins() -> None:
    rates, counts, valid = masked(bins=300)
    groups = np.random.default_rng(2).integers(0, 5, 300)
    weights = np.array([[1.0, 1, 1, 1, 1], [0, 2, 1, 0, 2]])
    drawn = bin_sums(rates, counts, valid, groups).drawn(weights)
    for k, row in enumerate(weights.astype(int)):
        again = np.concatenate([np.flatnonzero(groups == g) for g in range(5) for _ in range(row[g])])
        alone = bin_sums(rates[again], counts[again], valid[again]).total()
        assert bits_per_spike(drawn)[k] == pytest.approx(bits_per_spike(alone), rel=1e-10)
        assert correlation(drawn)[k] == pytest.approx(correlation(alone), rel=1e-10)


def test_drawing_conditions_equals_computing_on_their_trials() -> None:
    rates, counts = noisy()
    valid = np.random.default_rng(2).random(counts.shape) < 0.7
    weights = np.array([[2.0, 0, 1]])
    counts[~valid] = np.nan
    drawn = repeat_sums(**laid_out(counts, rates, valid)).drawn(weights)
    picked = [0, 0, 2]
    alone = repeat_sums(**laid_out(counts[picked], rates[picked], valid[picked])).total()
    for figure in (average_correlation, explainable_variance, feve, signal_power, ccnorm):
        assert figure(drawn)[0] == pytest.approx(figure(alone), rel=1e-9), figure.__name__


def test_feve_is_its_published_formula() -> None:
    rates, counts = noisy()
    predicted = rates * 1.2 + 0.1
    repeats = repeat_sums(**laid_out(counts, predicted)).total()
    conditions, trials, bins, units = counts.shape
    for u in range(units):
        squared, noise, every = [], [], []
        for c in range(conditions):
            for t in range(bins):
                shown = [counts[c, r, t, u] for r in range(trials)]
                mean = sum(shown) / trials
                noise.append(sum((x - mean) ** 2 for x in shown) / (trials - 1))
                squared += [(x - predicted[c, 0, t, u]) ** 2 for x in shown]
                every += shown
        grand = sum(every) / len(every)
        total = sum((x - grand) ** 2 for x in every) / (len(every) - 1)
        noise_variance = sum(noise) / len(noise)
        expected = 1 - (sum(squared) / len(squared) - noise_variance) / (total - noise_variance)
        assert feve(repeats)[u] == pytest.approx(expected, rel=1e-9)
        assert explainable_variance(repeats)[u] == pytest.approx((total - noise_variance) / total, rel=1e-9)


def test_units_whose_variance_is_noise_have_no_feve_and_no_ccnorm() -> None:
    rates, counts = noisy(units=2, trials=10)
    counts[..., 1] = np.random.default_rng(8).poisson(1.0, counts.shape[:3])
    repeats = repeat_sums(**laid_out(counts, rates)).total()
    assert explainable_variance(repeats)[1] < LEAST_EXPLAINABLE
    assert np.isnan(feve(repeats)).tolist() == np.isnan(ccnorm(repeats)).tolist() == [False, True]


def test_the_true_rate_explains_everything_though_noisy_bins_have_more_valid_trials() -> None:
    generator = np.random.default_rng(9)
    rates = np.where(generator.random((1, 1, 4000, 1)) < 0.5, 0.3, 3.0)
    counts = generator.poisson(np.broadcast_to(rates, (1, 12, 4000, 1))).astype(float)
    number = np.where(rates > 1, 12, 2)  # many trials where the noise is large
    valid = np.arange(12)[None, :, None, None] < number
    repeats = repeat_sums(**laid_out(counts, rates, valid)).total()
    assert feve(repeats) == pytest.approx([1], abs=0.02)
    # The mean over bins that does not ask for their number of trials has another noise than the squared error has.
    noise = np.where(number > 2, counts.var(axis=1, ddof=1, keepdims=True), counts[:, :2].var(1, ddof=1, keepdims=True))
    every, errors = counts[valid], ((counts - rates) ** 2)[valid]
    assert abs(1 - (errors.mean() - noise.mean()) / (every.var(ddof=1) - noise.mean()) - 1) > 0.3


def test_the_average_correlation_is_over_bins_with_two_valid_trials() -> None:
    generator = np.random.default_rng(10)
    rates, counts = noisy(units=3)
    predicted = rates + generator.random(counts.shape)  # another rate in each trial, as with behaviour
    valid = generator.random(counts.shape) < 0.25
    number = valid.sum(axis=1)
    assert (number < 2).any()
    at = {"axis": 1, "where": valid}
    found = average_correlation(repeat_sums(**laid_out(counts, predicted, valid)).total())
    with np.errstate(invalid="ignore"):
        means = counts.sum(**at) / number, predicted.sum(**at) / number
    for u in range(3):
        used = number[..., u] >= 2
        assert found[u] == pytest.approx(pearsonr(means[0][..., u][used], means[1][..., u][used])[0], rel=1e-9)


def test_bins_that_were_shown_once_do_not_touch_the_figures_of_repeats() -> None:
    rates, counts = noisy()
    arguments = laid_out(counts, rates)
    once = {name: array[:50].copy() for name, array in laid_out(counts, rates * 3).items()}
    once["trials"], once["conditions"] = once["trials"] + 1000, np.full(50, -1)
    both = {name: np.concatenate([arguments[name], once[name]]) for name in arguments}
    for figure in (average_correlation, feve, ccnorm):
        assert figure(repeat_sums(**both).total()) == pytest.approx(figure(repeat_sums(**arguments).total()), rel=1e-12)
    assert np.isnan(ccnorm(repeat_sums(**once).total())).all()


def test_signal_power_is_the_closed_form_of_schoppe_on_whole_trials_of_one_stimulus() -> None:
    rates, counts = noisy(conditions=1, trials=7)
    counts += np.random.default_rng(1).gamma(1, 1, (1, 7, 1, 1))  # noise that lasts for a trial
    repeats = repeat_sums(**laid_out(counts, rates)).total()
    trials = counts[0]  # (trials, bins, units)
    summed, each = trials.sum(axis=0).var(axis=0, ddof=1), trials.var(axis=1, ddof=1).sum(axis=0)
    power = (summed - each) / (7 * 6)
    assert signal_power(repeats) == pytest.approx(power, rel=1e-9)
    mean, predicted = trials.mean(axis=0), rates[0, 0]
    expected = [
        np.cov(predicted[:, u], mean[:, u])[0, 1] / np.sqrt(predicted[:, u].var(ddof=1) * power[u]) for u in range(5)
    ]
    assert ccnorm(repeats) == pytest.approx(expected, rel=1e-9)
    assert reliability(repeats) == pytest.approx(power / mean.var(axis=0, ddof=1), rel=1e-9)


@pytest.mark.parametrize("holes", [0.0, 0.4])
def test_signal_power_is_right_on_average_with_few_trials_invalid_bins_and_slow_noise(holes: float) -> None:
    generator = np.random.default_rng(11)
    rates = generator.gamma(1.5, 0.8, (2, 1, 6, 1))
    rates = np.broadcast_to(rates, (2, 5, 6, 3000))  # one unit a simulated experiment
    counts = generator.poisson(rates) + 2 * generator.standard_normal((2, 5, 1, 3000))
    valid = generator.random(counts.shape) >= holes
    valid[1, 3:] = False  # one condition has three trials
    repeats = repeat_sums(**laid_out(counts, rates, valid)).total()
    # What it estimates is the variance over the bins that could be used.
    used = (valid.sum(axis=1) >= 2).reshape(-1, 3000)
    truth = np.ma.masked_array(rates[:, 0].reshape(-1, 3000), ~used).var(axis=0, ddof=1).mean()
    found = signal_power(repeats)
    assert found.mean() == pytest.approx(truth, abs=3 * found.std() / np.sqrt(3000))
    # Noise taken to be independent between bins, though it lasts for a trial, would swallow most of the signal.
    bins, noise, shared = repeats.table[0], repeats.table[6], repeats.table[7]
    assert (found - (shared - noise) / bins / (bins - 1)).mean() < 0.5 * truth


def test_ccnorm_of_the_true_rate_converges_to_one_and_that_of_a_worse_rate_to_its_correlation() -> None:
    generator = np.random.default_rng(12)
    rates = generator.gamma(1.5, 0.2, (20, 1, 100, 6))
    counts = generator.poisson(np.broadcast_to(rates, (20, 20, 100, 6))).astype(float)
    valid = generator.random(counts.shape) < 0.9
    assert ccnorm(repeat_sums(**laid_out(counts, rates, valid)).total()) == pytest.approx([1] * 6, abs=0.03)
    worse = rates + 0.3 * generator.random(rates.shape)
    expected = [np.corrcoef(worse[..., u].ravel(), rates[..., u].ravel())[0, 1] for u in range(6)]
    assert ccnorm(repeat_sums(**laid_out(counts, worse, valid)).total()) == pytest.approx(expected, abs=0.04)
    plain = average_correlation(repeat_sums(**laid_out(counts, rates, valid)).total())
    assert (plain < 0.97).all()


def test_no_bins_at_all_give_no_figures() -> None:
    empty = np.zeros((0, 2))
    assert np.isnan(bits_per_spike(bin_sums(empty, empty, empty.astype(bool)).total())).all()
