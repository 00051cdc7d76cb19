"""Defects that were measured in a system for neural recordings, and the test that each of them would fail here."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data import test_curriculum, test_recordings_clips, test_recordings_store
from tests.metrics import test_response_scores, test_responses
from tests.models import test_cortex_network, test_cortex_parts
from tests.response_runs import train
from tests.training import test_response_runs
from tests.training.conftest import prepared, sessions  # noqa: F401  # fixtures
from visiontune.data.order import Order
from visiontune.data.recordings.clips import ClipDataset
from visiontune.data.recordings.recording import Recording, Trial
from visiontune.data.recordings.store import write_recording
from visiontune.data.split import SPLITS
from visiontune.errors import RecipeError, RunError
from visiontune.models.cortex import ClipEncoder, CortexAdapter
from visiontune.models.cortex_network import Cortex, CortexConfig
from visiontune.recipe import ResponseChoices, check_names
from visiontune.recipe_sections import Optimizer
from visiontune.training import optimizer

SHAPE = {"channels": (4,), "kernels": (3,), "temporal_kernels": (1,), "strides": (1,), "pools": (1,)}


def recording(name: str, dtype: Any, bins: int = 200) -> Recording:
    generator = np.random.default_rng(0)
    contrast = np.repeat(generator.random(bins // 20), 20)[:, None, None]
    frames = 128 + 100 * contrast * generator.uniform(-1, 1, (bins, 8, 8))
    return Recording(
        name=name,
        rate=60.0,
        stimulus=frames.astype(np.uint8).astype(dtype),
        counts=generator.poisson(0.3, (bins, 3)).astype(np.uint8),
        valid=np.ones((bins, 1), bool),
        units=("a", "b", "c"),
        trials=tuple(Trial(str(i), i * 20, i * 20 + 20) for i in range(bins // 20)),
    )


def test_a_rate_for_the_core_reaches_the_optimiser() -> None:
    """2: core_lr_scale was read before it was set, and the core's group lacked half of the core."""
    shape = dict(SHAPE)
    config = CortexConfig(height=8, width=8, stimulus_mean=0, stimulus_std=1, sessions=("s",), units=("s/a",), **shape)
    choices = ResponseChoices(clip=8, burn_in=12, modulation="none", rate=60.0, **shape)
    adapter = CortexAdapter(Cortex(config), choices)
    recipe = Optimizer(learning_rate=1e-3, weight_decay=0.1, part_learning_rates={"core": 1e-5})
    groups = optimizer.build(adapter.network, adapter.parts, recipe, adapter.undecayed).param_groups
    rates = {group["part"]: group["peak"] for group in groups}
    assert rates["core"] == 1e-5 and rates["readout"] == recipe.learning_rate
    held = [p for group in groups for p in group["params"]]
    assert len(held) == len(list(adapter.network.parameters()))
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    named = dict(adapter.network.named_parameters())
    assert id(named["readout.weight"]) in decayed and id(named["readout.place"]) not in decayed


def test_a_curriculum_knows_the_same_scores_at_any_storage_type(tmp_path: Path) -> None:
    """4: only one storage type had the attribute that was asked for; with others the curriculum was silently off."""
    found: list[dict[str, float]] = []
    for dtype in (np.uint8, np.float32):
        dataset = ClipDataset.open(write_recording(recording("s", dtype), tmp_path / np.dtype(dtype).name), 8, 4)
        named = [zip(dataset.index(split).ids, dataset.scores(split)["contrast"], strict=True) for split in SPLITS]
        found.append({clip: score for pairs in named for clip, score in pairs})
    whole, floats = found
    assert whole.keys() == floats.keys() and np.std(list(whole.values())) > 0.05
    # The mean brightness that contrast is divided by is that of the train split, which is another one here.
    ratios = [whole[clip] / floats[clip] for clip in whole]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-5)


def test_every_epoch_has_an_order_of_its_own() -> None:
    """5: the sampler of batches gave the same batches in each epoch."""
    order = Order(0, [50])
    first, second = order.draw(0, 50).index, order.draw(50, 100).index
    assert sorted(first) == sorted(second) and not np.array_equal(first, second)


def test_an_unknown_field_is_refused() -> None:
    """10: a misspelt threshold worked only because the default was the same."""
    with pytest.raises(RecipeError, match="no recipe field"):
        check_names(["responses.theshold"])


def test_a_sample_weighs_as_much_as_its_valid_counts_whatever_session_it_is_of() -> None:
    """14: the mean over the sessions of a batch let one sample of a rare session weigh as much as thirty of another."""
    shape = dict(SHAPE)
    units = ("s/a", "s/b", "t/c")
    config = CortexConfig(height=8, width=8, stimulus_mean=0, stimulus_std=1, sessions=("s", "t"), units=units, **shape)
    choices = ResponseChoices(clip=8, burn_in=12, modulation="none", rate=60.0, **shape)
    adapter = CortexAdapter(Cortex(config), choices)
    encoder = ClipEncoder(config, choices)
    generator = np.random.default_rng(0)

    def encoded(name: str, keys: tuple[str, ...]) -> Any:
        from visiontune.data.responses import Clip, Responses
        from visiontune.data.sample import Sample

        frames = generator.integers(0, 255, (20, 8, 8)).astype(np.float32)
        counts = generator.poisson(0.5, (8, len(keys))).astype(np.float32)
        return encoder.encode(Sample(name, Clip(frames, 12), Responses(counts, counts < 9, keys, 0)))

    clips = [encoded("1", units[:2]), encoded("2", units[:2]), encoded("3", units[2:])]
    together = encoder.collate(clips)
    assert together.weights["poisson"] == 8 * (2 + 2 + 1)
    alone = [adapter.losses(encoder.collate([clip]))["poisson"] for clip in clips]
    torch.testing.assert_close(adapter.losses(together)["poisson"], torch.cat(alone))


def test_a_loss_that_is_no_number_stops_the_run(
    prepared: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """16: such losses were skipped without a word, on some ranks alone."""
    losses = CortexAdapter.losses

    def broken(self: CortexAdapter, batch: Any) -> dict[str, torch.Tensor]:
        found = losses(self, batch)
        return {"poisson": found["poisson"] * (math.nan if self.network.training else 1.0)}

    monkeypatch.setattr(CortexAdapter, "losses", broken)
    with pytest.raises(RunError, match="The loss of step 1 is nan"):
        train(prepared, tmp_path / "run")


DEFECTS: dict[int, tuple[str, tuple[Callable[..., Any], ...]]] = {
    1: ("loading a trained core changed no tensor, and the random core was then frozen",
        (test_response_runs.test_a_new_session_is_fitted_on_the_frozen_core,)),
    2: ("the core's learning rate had no effect", (test_a_rate_for_the_core_reaches_the_optimiser,)),
    3: ("a curriculum weighed other frames than those drawn",
        (test_curriculum.test_scores_are_those_of_the_very_samples_drawn,
         test_recordings_clips.test_scores_are_those_of_the_very_clips)),
    4: ("the curriculum was off for some storage types",
        (test_a_curriculum_knows_the_same_scores_at_any_storage_type,)),
    5: ("every epoch had the same batches", (test_every_epoch_has_an_order_of_its_own,)),
    6: ("no more than 2^24 bins could be drawn from",
        (test_curriculum.test_more_samples_than_torch_can_draw_from_are_no_limit,)),
    7: ("penalties were applied once a parameter group",
        (test_response_runs.test_a_penalty_comes_once_a_step_and_rises_as_its_schedule_says,)),
    8: ("FiLM did not start at the identity",
        (test_cortex_parts.test_film_starts_as_the_exact_identity_and_learns,)),
    9: ("bits per spike were clipped at zero, and depended on the number of ranks",
        (test_responses.test_a_model_worse_than_a_constant_rate_has_a_negative_mean,
         test_response_scores.test_silent_units_are_named_and_counted_in_no_mean)),
    10: ("misspelt settings were taken", (test_an_unknown_field_is_refused,)),
    11: ("windows reached into the trial before",
         (test_recordings_clips.test_clips_predict_each_bin_once_and_see_no_other_trial,)),
    12: ("normalisation saw the validation split",
         (test_recordings_store.test_what_models_are_fitted_with_comes_from_the_train_split_alone,)),
    13: ("every validation drew another random part of the split",
         (test_response_runs.test_scores_do_not_depend_on_how_a_split_is_cut,)),
    14: ("the loss was a mean over sessions",
         (test_a_sample_weighs_as_much_as_its_valid_counts_whatever_session_it_is_of,)),
    15: ("the recurrent weights were made in the first forward, and never learned",
         (test_cortex_network.test_every_weight_stands_in_a_part_and_exists_from_the_start,)),
    16: ("ramped penalties switched off, and losses that are no numbers were skipped",
         (test_response_runs.test_a_penalty_comes_once_a_step_and_rises_as_its_schedule_says,
          test_a_loss_that_is_no_number_stops_the_run)),
    17: ("a part that could not be loaded was frozen at random",
         (test_cortex_network.test_loading_names_the_tensors_that_do_not_fit,)),
    18: ("gradients of readouts depended on the number of ranks", (test_response_runs.test_two_ranks_equal_one,)),
}  # fmt: skip


def test_each_of_the_eighteen_has_a_test() -> None:
    assert sorted(DEFECTS) == list(range(1, 19)) and all(tests for _, tests in DEFECTS.values())
