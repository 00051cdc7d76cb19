"""Where the readouts of new units start: the place in the picture that their spikes tell of.

A unit that starts in the middle, reading a good part of the picture, blurs what it reads until it has found its place;
meanwhile the core learns little from it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from visiontune.data.recordings.clips import ClipDataset
from visiontune.data.responses import Clip, Responses
from visiontune.models.cortex_frontend import gaussian_derivatives
from visiontune.models.cortex_network import Cortex
from visiontune.models.cortex_readout import places_along
from visiontune.progress import progress

MOST_BINS = 32_768  # of a session
ORDERS = slice(1, 3)  # of derivatives in time: most cells answer to what changes
BLUR = 1 / 12  # standard deviation, in shorter sides of the picture
# From this peak on, in the units of `response_map`, a place is believed. Of simulated units in a session of ten
# minutes, nine in ten have less than 4.1 where their counts are shifted by a third of it; left as they are, all have
# 10.6 or more.
EVIDENT = 5.0
SHARPNESS = 3  # power of the map before its centre is taken: the surroundings of a peak, not the peak alone


def place_readouts(
    network: Cortex, sessions: Sequence[ClipDataset], known: frozenset[str] = frozenset(), limit: int | None = None
) -> int:
    """Start the readouts of all units but the `known` ones at their places; returns how many places were evident.

    Units whose place is not evident keep the start that they have. Of each session the train split alone is looked at,
    clips of 32,768 bins at most, evenly spread over it or over its first `limit` clips. The sessions are cut as the run
    cuts them, with a burn-in no shorter than the network's memory.
    """
    row = {name: number for number, name in enumerate(network.config.units)}
    placed = 0
    with progress("looking for the places of units", len(sessions), "sessions") as advance:
        for session in sessions:
            new = [number for number, name in enumerate(session.units) if name not in known]
            if new and session.count("train"):
                places, evident = peaks(response_map(network, session, limit)[new])
                rows = torch.tensor([row[session.units[number]] for number in new])[evident]
                network.readout.start_at(rows, places[evident])
                placed += len(rows)
            advance(1)
    return placed


def response_map(network: Cortex, session: ClipDataset, limit: int | None = None) -> Tensor:
    """How much each unit's counts go with each pixel: (units, height, width) float64, on average 1 by chance.

    The mean of the squared z-scores of the covariance of the counts with the pixel filtered in time, and with that
    squared: the spike-triggered average finds cells that answer to one sign (Chichilnisky 2001), the squares those that
    answer to both. session, limit: as of `place_readouts`.
    """
    memory, config = network.memory, network.config
    filters = gaussian_derivatives(ORDERS.stop, memory + 1)[ORDERS].float()
    columns = len(filters) * config.height * config.width
    mean = torch.tensor(session.recording.mean_counts)
    bins, powers = 0, torch.zeros(3, columns, dtype=torch.float64)  # sums of powers 1, 2 and 4
    apart, spread = (torch.zeros(len(mean), dtype=torch.float64) for _ in range(2))
    together = torch.zeros(2, len(mean), columns, dtype=torch.float64)
    clips, most = min(session.count("train"), limit or session.count("train")), max(1, MOST_BINS // session.clip)
    for number in np.unique(np.linspace(0, clips - 1, min(clips, most)).round().astype(int)).tolist():
        sample = session.sample("train", number)
        assert isinstance(sample.seen, Clip) and isinstance(sample.target, Responses)
        frames = torch.from_numpy(sample.seen.frames[session.burn_in - memory :].astype(np.float32))
        frames = (frames - config.stimulus_mean) / config.stimulus_std
        filtered = (frames.unfold(0, memory + 1, 1) @ filters.T).permute(0, 3, 1, 2).flatten(1)
        counts, valid = torch.from_numpy(sample.target.counts), torch.from_numpy(sample.target.valid)
        deviation = torch.where(valid, counts - mean, 0.0)
        bins += len(filtered)
        powers += torch.stack([(filtered**power).sum(dim=0) for power in (1, 2, 4)])
        together += torch.stack([deviation.T @ filtered, deviation.T @ filtered.square()])
        apart += deviation.sum(dim=0)
        spread += deviation.square().sum(dim=0)
    first, second, fourth = powers / bins
    scores = [
        (sums - apart[:, None] * average).square() / (spread[:, None] * variance).clamp_min(1e-12)
        for sums, average, variance in (
            (together[0], first, second - first.square()),
            (together[1], second, fourth - second.square()),
        )
    ]
    return torch.stack(scores).mean(dim=0).unflatten(1, (len(filters), config.height, config.width)).mean(dim=1)


def peaks(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The place of each unit's peak, (units, 2) down and across in [-1, 1] as readouts have them, and whether it is
    evident, (units,) bool. maps: (units, height, width), as `response_map` gives them."""
    height, width = maps.shape[1:]
    blurred = _blurring(height, BLUR * min(height, width)) @ maps @ _blurring(width, BLUR * min(height, width)).T
    flat = blurred.flatten(1)
    above = (flat - flat.median(dim=1, keepdim=True).values).clamp_min(0) ** SHARPNESS
    share = (above / above.sum(dim=1, keepdim=True).clamp_min(1e-12)).unflatten(1, (height, width))
    down, across = share.sum(dim=2) @ places_along(height), share.sum(dim=1) @ places_along(width)
    return torch.stack([down, across], dim=1).float(), flat.amax(dim=1) > EVIDENT


def _blurring(size: int, deviation: float) -> Tensor:
    """(size, size) float64: blurs an axis by a Gaussian, whose part beyond the edge is left out."""
    place = torch.arange(size, dtype=torch.float64)
    return torch.softmax(-0.5 * ((place[:, None] - place) / deviation).square(), dim=1)
