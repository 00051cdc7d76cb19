"""Formulas of how well rates predict spike counts: bits per spike, correlations, explained variance, from sums.

Everything is computed from sums over groups of bins (trials, stimuli), so that a figure of any set of groups is a
matter of adding: a bootstrap draws groups by a matrix product, and no figure depends on how bins were batched.
Figures are never clipped. Where one is not defined it is NaN.

Bins of a repeated stimulus are taken by (condition, place in the trial). Trials may differ in number and may have
invalid bins: each bin of a unit has its own number n of valid trials, and a bin with n < 2 is left out, since one
trial says nothing about noise.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST_RATE = 1e-8  # spikes a bin; smaller rates are taken for this, so that one spike costs at most 27 bits
LEAST_EXPLAINABLE = 0.15  # the share of the variance that must be the stimulus' for a unit to have FEVE or CCnorm
CONSTANT = 1e-20  # a variance below this share of the mean's square is rounding


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums of each group: `table` is (rows, groups, units), or (rows, units) of all groups. `centres`: (2, units)."""

    table: Floats
    centres: Floats

    def total(self) -> Self:
        """The sums over all groups: table (rows, units)."""
        return type(self)(self.table.sum(axis=1), self.centres)

    def drawn(self, weights: Floats) -> Self:
        """The sums with each group counted as often as `weights`, (draws, groups), says: (rows, draws, units)."""
        return type(self)(weights @ self.table, self.centres)

    def kept(self, groups: NDArray[np.bool_]) -> Self:
        """The sums of some groups alone."""
        return type(self)(self.table.compress(groups, axis=1), self.centres)


@dataclass(frozen=True, eq=False)
class BinSums(_Sums):
    """Sums over the valid bins of each group.

    table: (7, groups, units), or (7, units) of all groups. The rows, for counts r and rates p: bins, r, r ln p, p,
    (p - a) ** 2, (r - b) ** 2, (p - a)(r - b), where a and b are the `centres`, (2, units): any two values near the
    means, so that the sums of squares lose no digits.
    """


@dataclass(frozen=True, eq=False)
class RepeatSums(_Sums):
    """Sums over the repeated bins of each condition, those with n >= 2 valid trials.

    table: (13, conditions, units), or (13, units) of all conditions. The rows, for a bin's mean rate x, mean count m
    and unbiased variance s2 over its n valid trials: bins, x - a, m - b, (x - a) ** 2, (m - b) ** 2, (x - a)(m - b),
    s2 / n, the variance of the sum of m that comes from noise, n, squared errors of single trials, n s2,
    r - b and (r - b) ** 2 of single trials. a and b are the `centres`, (2, units), values near the means.
    """


def bin_sums(
    rates: Floats, counts: Floats, valid: NDArray[np.bool_], groups: NDArray[np.int64] | None = None
) -> BinSums:
    """The sums that bits per spike and the single-trial correlation need.

    rates (spikes a bin, from 0 on), counts, valid: (bins, units); what stands in invalid places does not matter, NaN
    included. groups: (bins,), the group of each bin, in the order of their numbers; None: one group.
    """
    bins, units = rates.shape
    if bins == 0:
        return BinSums(np.zeros((7, 0, units)), np.zeros((2, units)))
    starts = np.zeros(1, np.intp)
    if groups is not None:
        order = np.argsort(groups, kind="stable")
        if not np.array_equal(order, np.arange(bins)):
            rates, counts, valid = rates[order], counts[order], valid[order]
        starts = _starts(groups[order])
    p = np.where(valid, np.maximum(rates, LEAST_RATE), 1.0)
    r = np.where(valid, counts, 0.0)
    likelihood = np.log(p)
    likelihood *= r
    p[~valid] = 0.0
    sizes = np.maximum(valid.sum(axis=0), 1)
    centres = np.stack([p.sum(axis=0) / sizes, r.sum(axis=0) / sizes])
    p_off, r_off = np.where(valid, p - centres[0], 0.0), np.where(valid, r - centres[1], 0.0)
    rows = (valid, r, likelihood, p, p_off * p_off, r_off * r_off, p_off * r_off)
    return BinSums(np.stack([np.add.reduceat(row, starts, axis=0, dtype=np.float64) for row in rows]), centres)


def bits_per_spike(sums: BinSums) -> Floats:
    """How many bits a spike the predicted rates are better than a constant rate: Poisson log-likelihoods, unclipped.

    With d valid, r counts, p rates (at least 1e-8), T = sum d, N = sum d r and the null rate q = N / T:
    sum d (r ln p - p - r ln q + q) / (N ln 2). q is the best constant for the very bins that are scored (as in the
    Neural Latents Benchmark; Pei et al. 2021). Of shape (..., units) like the rows of the sums; NaN for a unit without
    a spike, which has no such figure.
    """
    bins, spikes, likelihood, predicted = sums.table[:4]
    with np.errstate(divide="ignore", invalid="ignore"):
        null = spikes / bins
        gain = likelihood - predicted - spikes * np.log(null) + null * bins
        return np.where(spikes > 0, gain / (spikes * np.log(2)), np.nan)


def correlation(sums: BinSums) -> Floats:
    """Pearson's correlation of rates and counts over valid bins: (..., units); NaN where one of them is constant."""
    bins, spikes, _, predicted, p_squares, r_squares, products = sums.table
    p_sum, r_sum = predicted - bins * sums.centres[0], spikes - bins * sums.centres[1]
    return _pearson(bins, p_sum, r_sum, p_squares, r_squares, products, sums.centres)


def repeat_sums(
    rates: Floats,
    counts: Floats,
    valid: NDArray[np.bool_],
    trials: NDArray[np.int64],
    conditions: NDArray[np.int64],
    places: NDArray[np.int64],
) -> RepeatSums:
    """The sums that the figures of repeated stimuli need, a group for each condition in the order of their numbers.

    rates, counts, valid: (bins, units) as in `bin_sums`. trials, conditions, places: (bins,), the trial of each bin,
    the number of its stimulus (-1: shown once, left out), and its place in the trial, by which repeats are laid
    together.
    """
    units = rates.shape[1]
    order = np.lexsort((trials, places, conditions))
    order = order[conditions[order] >= 0]
    if len(order) == 0:
        return RepeatSums(np.zeros((13, 0, units)), np.zeros((2, units)))
    trials, conditions, places = trials[order], conditions[order], places[order]
    valid = valid[order]
    p, r = np.where(valid, rates[order], 0.0), np.where(valid, counts[order], 0.0)

    starts = _starts(conditions, places)
    bin_of = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(order)))
    n = _sums(valid, starts)
    used = n >= 2
    at_least_one = np.maximum(n, 1)
    x, m = _sums(p, starts) / at_least_one, _sums(r, starts) / at_least_one
    valid &= used[bin_of]
    residual = np.where(valid, r - m[bin_of], 0.0)
    s2 = _sums(residual * residual, starts) / np.maximum(n - 1, 1)

    bins = np.maximum(used.sum(axis=0), 1)
    centres = np.stack([np.where(used, x, 0).sum(axis=0) / bins, np.where(used, m, 0).sum(axis=0) / bins])
    x_off, m_off = np.where(used, x - centres[0], 0.0), np.where(used, m - centres[1], 0.0)
    trials_used = np.where(used, n, 0)
    errors = np.where(valid, r - p, 0.0)
    r_off = np.where(valid, r - centres[1], 0.0)
    shares = residual / at_least_one[bin_of]
    by_bin = (used, x_off, m_off, x_off * x_off, m_off * m_off, x_off * m_off, s2 / at_least_one, trials_used)
    by_trial = (errors * errors, residual * residual * (n / np.maximum(n - 1, 1))[bin_of], r_off, r_off * r_off)
    of_bins, of_trials = _starts(conditions[starts]), _starts(conditions)
    rows = [_sums(row, of_bins) for row in by_bin]
    inverse, squares = _sums(used / at_least_one, of_bins), _sums(shares * shares, of_trials)
    shared = _shared_noise(shares, valid, trials, conditions, (rows[0], inverse, rows[6], squares))
    table = [*rows[:7], shared, rows[7], *(_sums(row, of_trials) for row in by_trial)]
    return RepeatSums(np.stack(table), centres)


def average_correlation(sums: RepeatSums) -> Floats:
    """Pearson's correlation of mean rate and mean count over repeated bins: (..., units). SENSORIUM's second score.

    A rate that differs between the repeats (behaviour is an input) is averaged over the same valid trials as the
    counts.
    """
    bins, x_sum, m_sum, x_squares, m_squares, products = sums.table[:6]
    return _pearson(bins, x_sum, m_sum, x_squares, m_squares, products, sums.centres)


def explainable_variance(sums: RepeatSums) -> Floats:
    """The share of the variance of single trials that is the stimulus': (total - noise) / total, (..., units).

    May be below zero by chance. NaN without repeats or where all counts are equal.
    """
    total, noise, _ = _variances(sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > CONSTANT * sums.centres[1] ** 2, (total - noise) / total, np.nan)


def feve(sums: RepeatSums) -> Floats:
    """Fraction of explainable variance explained: 1 - (mean squared error - noise) / (total - noise), (..., units).

    Cadena et al. 2019 (PLoS Comput Biol 15:e1006897), with the unbiased variances of the SENSORIUM code: total over all
    single trials, noise the mean over bins of the variance over repeats. Where bins differ in their number of valid
    trials, the noise is weighted by it, as the squared error is; otherwise the noise in the one would not be the noise
    in the other. NaN where less than 15 % of the variance is explainable. At most 1 but for chance, and for rates that
    know more than the stimulus; not bounded below.
    """
    total, noise, error = _variances(sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        explained = 1 - (error - noise) / (total - noise)
        return np.where(explainable_variance(sums) >= LEAST_EXPLAINABLE, explained, np.nan)


def signal_power(sums: RepeatSums) -> Floats:
    """The variance over bins that the stimulus alone would cause, unbiased: (..., units), spikes a bin squared.

    On one condition of R whole trials it is (Var(sum of trials) - sum of Var(trial)) / (R (R - 1)) exactly (Sahani and
    Linden 2003, Schoppe et al. 2016). In general: the variance of the means m over T bins, less what noise adds to it,
    (sum of s2 / n - V / T) / (T - 1). V is the noise of the sum of all m, estimated from sums over trials, so that slow
    noise, shared by the bins of a trial, is not taken for the bins' own. Below zero by chance where there is little
    signal.
    """
    bins, _, m_sum, _, m_squares, _, noise, shared = sums.table[:8]
    with np.errstate(divide="ignore", invalid="ignore"):
        value = (m_squares - m_sum**2 / bins - noise + shared / bins) / (bins - 1)
        return np.where(bins >= 2, value, np.nan)


def reliability(sums: RepeatSums) -> Floats:
    """The share of the variance of the average over repeats that is the stimulus': (..., units), CCmax squared."""
    bins, _, m_sum, _, m_squares = sums.table[:5]
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = (m_squares - m_sum**2 / bins) / (bins - 1)
        return np.where(variance > CONSTANT * sums.centres[1] ** 2, signal_power(sums) / variance, np.nan)


def ccnorm(sums: RepeatSums) -> Floats:
    """Normalised correlation, Cov(rate, mean count) / sqrt(Var(rate) SP): (..., units); 1 for the true rate.

    Schoppe et al. 2016 (Front Comput Neurosci 10:10), SP being `signal_power`. It passes 1 by chance. NaN where less
    than 15 % of the variance of the average is the stimulus' (`reliability`): the root of an SP near zero makes any
    number of it.
    """
    bins, x_sum, m_sum, x_squares, _, products = sums.table[:6]
    with np.errstate(divide="ignore", invalid="ignore"):
        covariance = (products - x_sum * m_sum / bins) / (bins - 1)
        variance = (x_squares - x_sum**2 / bins) / (bins - 1)
        value = covariance / np.sqrt(variance * signal_power(sums))
        varies = variance > CONSTANT * sums.centres[0] ** 2
        return np.where(varies & (reliability(sums) >= LEAST_EXPLAINABLE), value, np.nan)


def _variances(sums: RepeatSums) -> tuple[Floats, Floats, Floats]:
    """Total variance, noise variance and mean squared error of single trials; NaN without two of them."""
    n, errors, noise, r_sum, r_squares = sums.table[8:]
    with np.errstate(divide="ignore", invalid="ignore"):
        return (r_squares - r_sum**2 / n) / (n - 1), noise / n, errors / n


def _shared_noise(
    shares: Floats,
    valid: NDArray[np.bool_],
    trials: NDArray[np.int64],
    conditions: NDArray[np.int64],
    by_bin: tuple[Floats, Floats, Floats, Floats],
) -> Floats:
    """The variance, by noise, of the sum over a condition's bins of the mean count: (conditions, units).

    shares: (bins, units), what each count adds to the noise of its mean, (r - m) / n. by_bin: (conditions, units) sums
    over repeated bins of 1, 1 / n, s2 / n and the squared shares. Sums of shares over a trial are independent between
    trials. Their squares add up to the variance but for what m takes from the residuals: a product of residuals in bins
    t and s is too small by the factor 1 - 1 / n_t - 1 / n_s + n_ts / (n_t n_s), with n_ts trials valid in both. Within
    a bin this is known; between bins it is taken at the mean of 1 / n and, as for bins invalid at random, at
    n_ts = n_t n_s / N of N trials. Exact for whole trials, where the factor is 1 - 1 / N throughout.
    """
    order = np.lexsort((trials, conditions))
    starts = _starts(conditions[order], trials[order])
    by_trial = _sums(shares[order], starts)
    of_conditions = _starts(conditions[order][starts])
    n_trials = np.maximum(_sums(_sums(valid[order], starts) > 0, of_conditions), 1)
    bins, inverse, noise, squares = by_bin
    between_bins = _sums(by_trial * by_trial, of_conditions) - squares
    return noise + between_bins / (1 - 2 * inverse / np.maximum(bins, 1) + 1 / n_trials)


def _pearson(
    n: Floats, x_sum: Floats, y_sum: Floats, x_squares: Floats, y_squares: Floats, products: Floats, centres: Floats
) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        x = x_squares - x_sum**2 / n
        y = y_squares - y_sum**2 / n
        vary = (x > CONSTANT * n * centres[0] ** 2) & (y > CONSTANT * n * centres[1] ** 2)
        return np.where(vary, (products - x_sum * y_sum / n) / np.sqrt(x * y), np.nan)


def _starts(*keys: NDArray[np.int64]) -> NDArray[np.intp]:
    """Where a new combination of keys, each (bins,) and sorted together, begins."""
    new = np.ones(len(keys[0]), np.bool_)
    new[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return np.flatnonzero(new)


def _sums(values: NDArray, starts: NDArray[np.intp]) -> Floats:
    return np.add.reduceat(values, starts, axis=0, dtype=np.float64)
