"""Runs on recordings of neurons, through every verb, on small simulated sessions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import visiontune
from tests.paused import paused_at
from tests.response_runs import QUICK, UNITS, train
from tests.two_ranks import train_on_two_ranks
from tests.written_recordings import write_npz
from visiontune.data.recordings.clips import ClipDataset
from visiontune.data.recordings.prepare import prepare_recordings
from visiontune.errors import DataError, ModelError, RecipeError, RunError
from visiontune.models.cortex import predicts_responses
from visiontune.models.cortex_network import Cortex
from visiontune.models.cortex_penalties import PENALTIES
from visiontune.run import Run
from visiontune.simulated_neurons import simulate
from visiontune.training.evaluate_responses import predict_split_of_responses
from visiontune.training.loop import train_run
from visiontune.training.model import load_trained, open_datasets
from visiontune.training.plan_responses import refuse_other_frames
from visiontune.training.ranks import Ranks
from visiontune.training.receptive_fields import CLIPS
from visiontune.training.session import order_of


def weights(run: Run) -> dict[str, torch.Tensor]:
    folder = run.checkpoint_path(run.checkpoint_steps()[-1])
    return load_file(folder / "trained.safetensors")


def losses(run: Run) -> list[float]:
    return [entry["loss"] for entry in run.metrics("step")]


def test_a_folder_of_sessions_becomes_a_finished_run_with_receipts(sessions: Path, tmp_path: Path) -> None:
    run: Any = visiontune.train(sessions, out=tmp_path / "run", overrides=QUICK)
    assert run.status == "finished"
    status = {receipt["name"]: receipt["status"] for receipt in run.receipts}
    assert status["supervised"] == status["trained moved"] == status["seen"] == "passed"
    assert "failed" not in status.values()
    written = json.loads((run.path / "evaluations/validation/metrics.json").read_text())
    assert {"bits_per_spike", "above_zero", "correlation"} <= set(written["metrics"])
    assert len(written["per_unit"]) == sum(UNITS) and (run.path / "report.html").is_file()
    fields = json.loads((run.path / "evaluations/fields.json").read_text())
    assert fields["clips"] == CLIPS and len(fields["units"]) == sum(UNITS)
    assert [Path(use.path).name for use in run.recipe.data.datasets] == ["session-0", "session-1"]
    (shown, *_) = next(r for r in run.receipts if r["name"] == "supervised")["examples"]
    assert shown["units"] in UNITS and shown["spikes"] > 0


def test_a_run_that_was_paused_and_resumed_is_the_uninterrupted_run_bit_for_bit(
    prepared: Path, core_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with paused_at(3, monkeypatch):
        train(prepared, tmp_path / "run")
    train_run(Run(tmp_path / "run"))
    again, whole = weights(Run(tmp_path / "run")), weights(core_run)
    assert again.keys() == whole.keys() and all(torch.equal(again[name], whole[name]) for name in whole)


def test_a_finer_cut_into_micro_batches_gives_the_same_weights(prepared: Path, core_run: Run, tmp_path: Path) -> None:
    cut = weights(train(prepared, tmp_path / "run", **{"batch.tokens": 1}))
    for name, tensor in weights(core_run).items():
        torch.testing.assert_close(cut[name], tensor, rtol=1e-3, atol=1e-5)


def test_two_ranks_equal_one(prepared: Path, core_run: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "two")
    run.path.mkdir()
    (run.path / "base").mkdir()
    for file in core_run.base_folder.iterdir():
        (run.path / "base" / file.name).write_bytes(file.read_bytes())
    core_run.recipe.save(run.recipe_path)
    train_on_two_ranks(run)
    assert losses(run) == pytest.approx(losses(core_run), abs=1e-5)
    one, two = weights(core_run), weights(run)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) <= 1e-5
    scores = [r.read_json("evaluations/validation/metrics.json")["metrics"]["bits_per_spike"] for r in (run, core_run)]
    assert scores[0]["value"] == pytest.approx(scores[1]["value"], abs=1e-4)


# Field -> its new value, where the losses of a short run must differ.
CHANGES_LOSSES: dict[str, dict[str, Any]] = {
    "responses.clip": {"responses.clip": 60},
    "responses.burn_in": {"responses.burn_in": 20},
    "responses.frontend": {"responses.frontend": "none"},
    "responses.temporal_taps": {"responses.temporal_taps": 8},
    "responses.temporal_channels": {"responses.temporal_channels": 4},
    "responses.core": {"responses.core": "conv", "responses.channels": [4, 4], "responses.kernels": [5, 3],
                       "responses.temporal_kernels": [1, 1], "responses.strides": [2, 1], "responses.pools": [1, 1]},
    "responses.channels": {"responses.channels": [6]},
    "responses.kernels": {"responses.kernels": [3]},
    "responses.temporal_kernels": {"responses.temporal_kernels": [2]},
    "responses.strides": {"responses.strides": [1]},
    "responses.pools": {"responses.pools": [2]},
    "responses.norm": {"responses.norm": "none"},
    "responses.modulation": {"responses.modulation": "concat"},
    "responses.recurrence": {"responses.recurrence": "none", "responses.recurrent_channels": 0},
    "responses.recurrent_channels": {"responses.recurrent_channels": 4},
    "responses.activation": {"responses.activation": "split_relu"},
    "responses.readout": {"responses.readout": "factorised"},
    "responses.output": {"responses.output": "exp"},
    "responses.penalties": {"responses.penalties": {"smoothness": {"weight": 0.5}}},
    "data.curriculum": {"data.curriculum": {"score": "contrast", "stages": [{"until": 0.5, "weights": [1, 9]}]}},
}  # fmt: skip


@pytest.mark.parametrize("field", CHANGES_LOSSES)
def test_a_field_changes_what_is_learned(prepared: Path, core_run: Run, tmp_path: Path, field: str) -> None:
    changed = train(prepared, tmp_path / "run", **{"schedule.steps": 2, **CHANGES_LOSSES[field]})
    assert losses(changed)[:2] != losses(core_run)[:2]


def test_the_burn_in_follows_from_the_core(prepared: Path, core_run: Run, tmp_path: Path) -> None:
    chosen = core_run.recipe.responses
    assert chosen is not None and chosen.burn_in == 5 + 8  # six taps, and what fills the recurrent state
    with pytest.raises(RecipeError, match="looks 5 frames back"):
        train(prepared, tmp_path / "run", **{"responses.burn_in": 4})


def test_trials_too_short_for_the_burn_in_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_npz(simulate("session", seed=4, units=3, seconds=45, size=(16, 16), repeats=(1, 2)), tmp_path / "session.npz")
    with np.load(tmp_path / "session.npz") as file:
        arrays = dict(file)
    places = np.concatenate([np.arange(n) for n in np.unique(arrays["trials"], return_counts=True)[1]])
    arrays["trials"][(arrays["trials"] % 2 == 1) & (places >= 20)] = -1  # every second trial has 20 bins
    np.savez(tmp_path / "session.npz", **arrays)
    (data,) = prepare_recordings([tmp_path / "session.npz"], tmp_path / "data")
    short = [t for t in ClipDataset.open(data).trials if t.split == "train" and t.stop - t.start == 20]
    train(data, tmp_path / "run", **{"responses.burn_in": 20, "schedule.steps": 1})
    assert short and f"{20 * len(short)} train bins stand in trials of no more than 20" in capsys.readouterr().err
    left_out = ClipDataset.open(data, burn_in=20).left_out_bins("test")
    visiontune.evaluate(tmp_path / "run", split="test")
    assert left_out and f"{left_out} test bins stand in trials no longer than the burn-in" in capsys.readouterr().err
    written = json.loads((tmp_path / "run/evaluations/test/metrics.json").read_text())
    assert written["left_out_bins"] == left_out


def test_readouts_start_where_the_clips_that_are_trained_on_say(prepared: Path, tmp_path: Path) -> None:
    runs = {
        limit: train(prepared, tmp_path / str(limit), **{"data.limit": limit, "schedule.steps": 1})
        for limit in (1, 100)
    }
    widths = {limit: load_file(run.base_folder / "model.safetensors")["readout.width"] for limit, run in runs.items()}
    usual = widths[1].max()
    assert (widths[100] < usual).any() and (widths[1] < usual).sum() < (widths[100] < usual).sum()


def test_a_penalty_comes_once_a_step_and_rises_as_its_schedule_says(prepared: Path, tmp_path: Path) -> None:
    penalties = {"core_l2": {"weight": 1.0, "start": 0.25, "ramp": 0.5}}
    run = train(prepared, tmp_path / "run", **{
        "responses.penalties": penalties, "schedule.steps": 8, "optimizer.learning_rate": 1e-7, "batch.tokens": 1,
    })  # fmt: skip
    added = [entry.get("penalty") for entry in run.metrics("step")]
    assert added[:3] == [None, None, None]  # off, and at the start of its ramp zero
    rising = np.array(added[3:], np.float64)
    assert rising / rising[-1] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0], rel=1e-4)  # it stays on after the ramp
    assert rising[-1] == pytest.approx(float(PENALTIES["core_l2"](Cortex.load(run.base_folder))), rel=1e-4)
    assert run.metrics("step")[-1]["gradient_norm"] > 1  # and is learned, once for several micro-batches


def test_a_new_session_is_fitted_on_the_frozen_core(sessions: Path, core_run: Run, tmp_path: Path) -> None:
    made = simulate("session-new", seed=5, units=3, seconds=45, size=(16, 16), repeats=(1, 4))
    write_npz(made, tmp_path / "session-new.npz")
    runs = [
        train(tmp_path / "session-new.npz", tmp_path / cache, core_run.path, **{"features.cache": cache})
        for cache in ("always", "never")
    ]
    for run in runs:
        status = {receipt["name"]: receipt["status"] for receipt in run.receipts}
        assert status["frozen stayed frozen"] == status["trained moved"] == "passed"
        assert run.recipe.parts["core"] == "frozen" and run.recipe.parts["readout"] == "full"
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-6)
    taken = json.loads((runs[0].base_folder / "taken.json").read_text())
    assert "core.blocks.0.weight" in taken["taken"] or any(name.startswith("core.") for name in taken["taken"])
    assert any(name.startswith("readout.") for name in taken["new"])
    core, _ = load_trained(core_run, core_run.recipe, torch.device("cpu"))
    new, _ = load_trained(runs[0], runs[0].recipe, torch.device("cpu"))
    own = dict(core.network.named_parameters())
    for name, parameter in new.network.named_parameters():
        if not name.startswith(("readout.", "adapter.")):
            assert torch.equal(parameter, own[name]), name
    former = runs[0].path / "evaluations/test/a-session-of-an-earlier-evaluation.npz"
    former.parent.mkdir(parents=True)
    former.touch()
    assert visiontune.evaluate(runs[0].path, split="test").metric("bits_per_spike").n <= 3
    assert len(list(former.parent.glob("*.npz"))) == 1 and not former.exists()


def test_a_core_is_not_changed_by_fields_of_a_new_one(sessions: Path, core_run: Run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"responses\.channels is of a new core"):
        train(sessions / "session-0.npz", tmp_path / "run", core_run.path, **{"responses.channels": [8]})


def test_a_core_is_not_given_what_it_was_not_made_for(sessions: Path, core_run: Run, tmp_path: Path) -> None:
    """At another rate its filters would span another time, by other behaviour it would be modulated without meaning."""
    half, other = tmp_path / "half", tmp_path / "other"
    prepare_recordings(sessions / "session-0.npz", half, rate=30)
    with pytest.raises(RecipeError, match=r"30 bins a second, and the core sees 60") as refused:
        train(half, tmp_path / "slow", core_run.path)
    assert refused.value.where == "responses.rate"
    with np.load(sessions / "session-0.npz") as file:
        arrays: dict[str, Any] = dict(file) | {"behaviour_names": np.array(["licks", "pupil"])}
    other.mkdir()
    np.savez(other / "session-0.npz", **arrays)
    with pytest.raises(RecipeError, match="recorded licks, pupil, and the core is modulated by running, pupil"):
        train(other, tmp_path / "licking", core_run.path)
    with pytest.raises(RecipeError, match="core sees 50"):
        train(sessions, tmp_path / "run", **{"responses.rate": 50})


def test_a_core_is_not_given_frames_that_it_was_not_made_for(core_run: Run, tmp_path: Path) -> None:
    write_npz(simulate("new", seed=5, units=3, seconds=45, size=(16, 16), repeats=(1, 4)), tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as file:
        arrays: dict[str, Any] = dict(file)
    frames = arrays["stimulus"]
    for name, stimulus, said in (
        ("small", frames[:, :12, :14], "sees frames of 16 x 16 pixels, and those of small are 12 x 14"),
        ("floats", frames / np.float32(127.5) - 1, "learned from frames of uint8, and those of floats are float32"),
        ("dim", frames // 64, "it would see next to nothing of them"),
    ):
        np.savez(tmp_path / f"{name}.npz", **{**arrays, "stimulus": stimulus})
        with pytest.raises(DataError, match=said) as refused:
            train(tmp_path / f"{name}.npz", tmp_path / f"run-{name}", core_run.path)
        assert refused.value.where == str(core_run.path) and "or train a new core" in str(refused.value.fix)
        assert not (tmp_path / f"run-{name}/recipe.yaml").exists()


def test_frames_of_another_range_are_refused_where_their_type_is_not_known(core_run: Run) -> None:
    core = Cortex.load(core_run.base_folder).config
    (summary, *_) = [one.info.recording for one in open_datasets(core_run.recipe)]
    assert summary is not None
    refuse_other_frames(core, None, [summary], core_run.path)
    for changed in (
        {"stimulus_mean": 0.0, "stimulus_std": 0.5},
        {"stimulus_mean": core.stimulus_mean + 11 * core.stimulus_std},
    ):
        with pytest.raises(DataError, match="next to nothing"):
            refuse_other_frames(core, None, [summary.model_copy(update=changed)], core_run.path)


def test_a_shape_that_does_not_hold_is_a_clear_error(prepared: Path, tmp_path: Path) -> None:
    for field, value, said in (
        ("kernels", [4], "kernels are odd"),
        ("channels", [5], "multiple of 2"),
        ("pools", [1, 1], "one entry a block"),
    ):
        with pytest.raises(RecipeError, match=said):
            train(prepared, tmp_path / "run", **{f"responses.{field}": value})


def test_units_that_a_core_knows_keep_their_readouts(prepared: Path, core_run: Run, tmp_path: Path) -> None:
    run = train(prepared, tmp_path / "run", core_run.path, **{"schedule.steps": 1})
    core, _ = load_trained(core_run, core_run.recipe, torch.device("cpu"))
    base = Cortex.load(run.base_folder).state_dict()
    assert all(torch.equal(tensor, base[name]) for name, tensor in core.network.state_dict().items())


def test_a_unit_whose_name_holds_a_slash_is_of_its_session(sessions: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in (0, 1):
        with np.load(sessions / f"session-{number}.npz") as file:
            arrays: dict[str, Any] = dict(file)
        arrays["units"] = np.array([f"probe/{unit}" for unit in arrays["units"]])
        np.savez(tmp_path / "in" / f"session-{number}.npz", **arrays)
    run = train(tmp_path / "in", tmp_path / "run", **{"schedule.steps": 1})
    adapter = predicts_responses(load_trained(run, run.recipe, torch.device("cpu"))[0])
    for number, dataset in enumerate(open_datasets(run.recipe)):
        assert adapter.encoder.encode(dataset.sample("train", 0)).session == number


def test_readouts_start_only_from_runs_on_recordings(sessions: Path, tmp_path: Path) -> None:
    with pytest.raises((DataError, RecipeError, ModelError)):
        train(sessions, tmp_path / "run", tmp_path / "none")


def test_scores_do_not_depend_on_how_a_split_is_cut(core_run: Run) -> None:
    adapter = predicts_responses(load_trained(core_run, core_run.recipe, torch.device("cpu"))[0])
    datasets, found = open_datasets(core_run.recipe), []
    for tokens in (1, 10_000):
        batch = core_run.recipe.batch.model_copy(update={"tokens": tokens})
        recipe = core_run.recipe.model_copy(update={"batch": batch})
        found.append(predict_split_of_responses(adapter, datasets, "test", recipe, Ranks("cpu")))
    for one, other in zip(*found, strict=True):
        assert one.units == other.units and np.array_equal(one.places, other.places)
        np.testing.assert_allclose(one.rates, other.rates, rtol=1e-5)


def test_what_an_evaluation_keeps_lies_where_it_says(core_run: Run) -> None:
    for dataset in open_datasets(core_run.recipe):
        assert isinstance(dataset, ClipDataset)
        with np.load(core_run.path / f"evaluations/validation/{dataset.recording.name}.npz") as file:
            bins = np.array([trial.start for trial in dataset.trials])[file["trials"]] + file["places"]
            recorded, valid = np.load(dataset.path / "counts.npy")[bins], file["valid"]
            assert valid.any() and np.array_equal(file["counts"][valid], recorded[valid])
            assert {dataset.trials[trial].split for trial in file["trials"]} == {"validation"}


def test_a_movie_is_predicted_as_its_clips_are(core_run: Run, tmp_path: Path) -> None:
    """The first clip of a trial and the same frames as a movie get the same rates, behaviour at its mean."""
    run = core_run
    dataset = open_datasets(run.recipe)[0]
    assert isinstance(dataset, ClipDataset)
    trial = next(t for t in dataset.trials if t.split == "test")
    movie = np.load(dataset.path / "stimulus.npy", mmap_mode="r")[trial.start : trial.stop]
    np.save(tmp_path / "movie.npy", movie)
    (written,) = visiontune.predict_movies(
        run.path, [tmp_path / "movie.npy"], session="session-0", out=tmp_path / "rates.npz"
    )
    with np.load(written) as file:
        rates, units = file["rates"], file["units"]
    burn_in = run.recipe.responses.burn_in  # pyright: ignore[reportOptionalMemberAccess]
    assert rates.shape == (len(movie), UNITS[0]) and units.tolist() == list(dataset.units)
    visiontune.predict_movies(run.path, [tmp_path / "movie.npy"], session="session-1")
    assert (run.path / "predictions/session-1/movie.npz").is_file()
    assert np.isnan(rates[:burn_in]).all() and (rates[burn_in:] > 0).all()
    with pytest.raises(RecipeError, match="2 sessions"):
        visiontune.predict_movies(run.path, [tmp_path / "movie.npy"])
    with pytest.raises(RecipeError, match="This is a folder"):
        visiontune.predict_movies(run.path, [tmp_path / "movie.npy"], session="session-0", out=tmp_path)
    np.save(tmp_path / "small.npy", movie[:, :8])
    with pytest.raises(DataError, match="8 x 16"):
        visiontune.predict_movies(run.path, [tmp_path / "small.npy"], session="session-0")


@pytest.mark.parametrize(
    ("rule", "shares"),
    [("uniform", [0.5, 0.5]), ("subject", [0.5, 0.5]), ("proportional", None), ("temperature=0.5", None)],
)
def test_a_mixture_says_how_often_a_session_is_drawn(
    prepared: Path, tmp_path: Path, rule: str, shares: list[float] | None
) -> None:
    run: Any = visiontune.train(
        prepared, out=tmp_path / "run", mixture=rule, overrides={**QUICK, "schedule.steps": 2, "evaluation.every": 2}
    )
    bins = [open_datasets(run.recipe)[d].info.recording.bins["train"] for d in (0, 1)]  # pyright: ignore
    power = 0.5 if rule.startswith("temp") else 1.0
    wanted = shares or (np.array(bins) ** power / (np.array(bins) ** power).sum()).tolist()
    assert [use.weight for use in run.recipe.data.datasets] == pytest.approx(wanted)
    drawn = order_of(run.recipe, open_datasets(run.recipe)).seen(4096)
    assert drawn / drawn.sum() == pytest.approx(wanted, abs=2e-3)


def test_an_unknown_mixture_is_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no mixture 'even'"):
        visiontune.train(prepared, out=tmp_path / "run", mixture="even", overrides=QUICK)


def test_a_curriculum_ends_and_what_was_seen_is_what_it_promised(prepared: Path, tmp_path: Path) -> None:
    stages = {"score": "contrast", "stages": [{"until": 0.5, "weights": [0.2, 1, 5]}]}
    run = train(prepared, tmp_path / "run", **{"data.curriculum": stages, "schedule.steps": 16})
    assert next(r for r in run.receipts if r["name"] == "seen")["status"] == "passed"


def test_without_movies_there_is_nothing_to_predict_and_no_form_holds_a_run_on_recordings(
    core_run: Run, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="No files were given"):
        visiontune.predict_movies(core_run.path, [])
    with pytest.raises(RunError, match="no form for other software"):
        visiontune.export(core_run.path, to="merged", out=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_fields_of_other_targets_are_refused(prepared: Path, tmp_path: Path) -> None:
    for field, value in (("data.prompt", "What?"), ("data.augment", 0.5), ("objects.most", 3)):
        with pytest.raises(RecipeError, match=r"here responses are learned|the recipe learns responses"):
            train(prepared, tmp_path / "run", **{field: value})
    with pytest.raises(RecipeError, match="takes no --model"):
        visiontune.train(prepared, model="tiny/smolvlm", out=tmp_path / "run")
