"""From recordings and machine to a recipe with a reason for each choice, and the network that the run starts from."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from visiontune.data.dataset import Dataset
from visiontune.data.dataset_info import INFO_NAME, RecordingSummary, read_info
from visiontune.data.recordings.clips import ClipDataset
from visiontune.data.recordings.prepare import same_rate, unlike
from visiontune.data.split import SPLITS
from visiontune.errors import DataError, ModelError, RecipeError
from visiontune.files import write_json
from visiontune.machine import Hardware
from visiontune.models.cortex import predicts_responses
from visiontune.models.cortex_coverage import ForeignCore
from visiontune.models.cortex_network import Cortex, CortexConfig
from visiontune.models.cortex_transfer import with_units
from visiontune.progress import note, warn
from visiontune.recipe import BY_HAND, Recipe, ResponseChoices, parse, validated
from visiontune.recipe_targets import CoreShape
from visiontune.run import Run
from visiontune.training.derived import AS_ASKED, Reasons, batch_section, datasets_section, machine_section
from visiontune.training.import_core import (
    choices_of,
    common_behaviour,
    imported,
    is_checkpoint,
    refuse_another_core,
    states_of,
)
from visiontune.training.model import load_trained
from visiontune.training.response_places import place_readouts
from visiontune.words import counted

MODEL = "cortex"
# Bins of a clip and clips of a step, on a CPU and on a GPU. The burn-in costs little beside a long clip; many short
# ones show more different pictures, which teaches more where a step is small.
CLIP = {True: 32, False: 64}
CLIPS_A_STEP = {True: 8, False: 32}
RECURRENT_BURN_IN = 8  # frames in which a recurrent state comes to where it would be after a longer past
CLIPS_SHOWN = {True: 24_000, False: 48_000}
EPOCHS = (5, 60)
# Of readouts on a frozen core: 120 units of a ten-minute session are as good after 5,000 clips as after 10,000.
READOUT_CLIPS_SHOWN, READOUT_EPOCHS = 5_000, (6, 24)
CORE_RATE, READOUT_RATE = 5e-3, 2e-2
# Light, so that they cost little where data are plenty: ten times as much took two of a hundred parts of the oracle's
# bits per spike from simulated sessions of ten minutes (bench/responses.py --set responses.penalties=...).
PENALTIES = {"readout_l1": {"weight": 1e-4}, "smoothness": {"weight": 1e-4}}
# A core's normal frames have the mean 0 and the standard deviation 1. Frames of another range are far from that.
LEAST_SPREAD, LARGEST_SHIFT = 0.05, 10.0
READOUT_PENALTIES = {"readout_l1": PENALTIES["readout_l1"]}


def check_recordings(datasets: Sequence[Dataset]) -> list[RecordingSummary]:
    """What the sessions recorded. Raises DataError where they cannot be learned together, or nothing can be."""
    found = []
    for dataset in datasets:
        if dataset.info.recording is None:
            raise DataError(
                "Responses of neurons are learned by themselves, and this dataset holds no recording.",
                where=str(dataset.path),
                fix="train on one kind of target at a time",
            )
        found.append(dataset.info.recording)
    first = found[0]
    for other, dataset in zip(found, datasets, strict=True):
        if (difference := unlike(first, other)) is not None:
            raise DataError(f"{difference[0]}.", where=str(dataset.path), fix=difference[1])
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise DataError("Two sessions have one name.", where=", ".join(names), fix="name each session by itself")
    return found


def derive_responses(
    datasets: Sequence[Dataset],
    weights: Sequence[float | None],
    machine: Hardware,
    *,
    ranks: int = 1,
    limit: int | None = None,
    epochs: float | None = None,
    epochs_by: str = AS_ASKED,
    start: Run | ForeignCore | None = None,
    given: Mapping[str, Any] | None = None,
    asked: Mapping[str, Any] = MappingProxyType({}),
) -> Recipe:
    """The recipe that recordings and machine call for, with its reasons; the core of `start`, a run or a checkpoint, is
    kept frozen where it is whole.

    `given` are fields of `responses` that are set by hand, from which others follow; `asked` are all fields that are,
    as `section.field`: the length of the run follows from them.

    Raises DataError, and ModelError for a start that predicts no responses.
    """
    sessions = check_recordings(datasets)
    reasons = Reasons(asked, epochs_by)
    choose = reasons.choose
    on_cpu = machine.device == "cpu"
    if isinstance(start, ForeignCore):
        choices = choices_of(start, sessions, CLIP[on_cpu], READOUT_PENALTIES, choose)
    else:
        choices = _new_core(sessions, on_cpu, choose) if start is None else _from_run(start, choose)
    given = dict(given or {})
    if given.get("behaviour") and "modulation" not in given and start is None:
        given["modulation"] = "film"
    choices |= given
    reasons.why |= {f"responses.{name}": BY_HAND for name in given if f"responses.{name}" in reasons.why}
    if choices["modulation"] == "none" and "behaviour" not in given:
        choices["behaviour"] = ()
    _say_unused_behaviour(sessions, choices["behaviour"])
    if choices["recurrence"] == "none" and "recurrent_channels" not in given:
        choices["recurrent_channels"] = 0
    config = network_config(validated(ResponseChoices, choices, "responses"), sessions)
    network = Cortex(config)
    memory = network.memory
    if not isinstance(start, Run) and "burn_in" not in given:
        extra = RECURRENT_BURN_IN if choices["recurrence"] != "none" else 0
        reason = f"the core looks {memory} frames back" + (
            f", and {extra} more fill its recurrent state" if extra else ""
        )
        choices["burn_in"] = choose("responses.burn_in", memory + extra, reason)
    opened = [ClipDataset.open(dataset.path, choices["clip"], choices["burn_in"]) for dataset in datasets]
    clips = sum(min(one.count("train"), limit or one.count("train")) for one in opened)
    validation = sum(min(one.count("validation"), limit or one.count("validation")) for one in opened)
    if not all(one.count("train") for one in opened):
        empty = next(one for one in opened if not one.count("train"))
        if not empty.recording.bins["train"]:
            raise DataError(
                "No trial is in the train split.",
                where=str(empty.path),
                fix="record more stimuli, or give trials other splits and prepare anew",
            )
        raise DataError(
            f"No trial of the train split is longer than the {choices['burn_in']} frames of burn-in.",
            where=str(empty.path),
            fix="record longer trials, or use a smaller --responses.burn_in",
        )
    for split in SPLITS:
        if left_out := sum(one.left_out_bins(split) for one in opened):
            warn(f"{left_out} {split} bins stand in trials of no more than {choices['burn_in']} bins, and are not used")
    samples = choose("batch.samples", CLIPS_A_STEP[on_cpu], f"clips of {choices['clip']} bins")
    parts = [*("adapter", "core"), *(("frontend",) if choices["frontend"] != "none" else ())]
    parts += [*(("modulation",) if choices["modulation"] != "none" else ())]
    parts += [*(("recurrence",) if choices["recurrence"] != "none" else ()), "readout"]
    if isinstance(start, ForeignCore):
        states, because = states_of(parts, start.coverage(network.state_dict()), start.path.name)
    elif start is None:
        states, because = dict.fromkeys(parts, "full"), "a new core: every part learns"
    else:
        states = {part: "full" if part == "readout" else "frozen" for part in parts}
        because = "the core is kept; new units get readouts of their own"
    core_learns = any(state == "full" for part, state in states.items() if part != "readout")
    shown, (few, many) = (CLIPS_SHOWN[on_cpu], EPOCHS) if core_learns else (READOUT_CLIPS_SHOWN, READOUT_EPOCHS)
    times = float(min(many, max(few, round(shown / clips))))
    steps = reasons.steps(
        clips, samples, epochs, (times, f"{counted(times, 'epoch', form='g')} of {counted(clips, 'clip')}")
    )
    frames = (choices["clip"] + choices["burn_in"]) * samples
    tokens = frames if on_cpu else int(min(1 << 20, max(frames, machine.memory / 2**30 * 1024)))
    values: dict[str, Any] = {
        "seed": 0,
        "model": {"name": MODEL if start is None else str(start.path.resolve())},
        "data": {"datasets": datasets_section(datasets, weights), "limit": limit},
        "responses": choices,
        "parts": choose("parts", states, because),
        "lora": {"rank": 8, "alpha": 16.0, "dropout": 0.0},
        "optimizer": {
            "learning_rate": choose(
                "optimizer.learning_rate", CORE_RATE if core_learns else READOUT_RATE, "usual for this family"
            ),
            "part_learning_rates": choose(
                "optimizer.part_learning_rates", {"readout": READOUT_RATE}, "few data come to each unit's own weights"
            )
            if core_learns
            else {},
            "weight_decay": choose("optimizer.weight_decay", 1e-4, "usual for this family"),
            "clip_norm": choose("optimizer.clip_norm", 1.0, "usual for this family"),
            "average": choose("optimizer.average", 0.99 if core_learns else 0.0, "steadier than the last weights"),
        },
        "schedule": {"steps": steps, "warmup": choose("schedule.warmup", 0.05, "usual for this family")},
        "batch": batch_section(samples, tokens, machine, reasons, "frames; "),
        "evaluation": {
            "every": reasons.every(steps, 10),
            "samples": choose("evaluation.samples", min(max(1, validation), 512), "enough to choose by"),
            "metric": choose("evaluation.metric", "bits_per_spike", "what the model is for"),
        },
        "checkpoints": {"every": reasons.every(steps, 10)},
        "machine": machine_section(machine, ranks, reasons),
        "why": reasons.why,
    }
    return parse(values, "the derived recipe")


def _new_core(sessions: Sequence[RecordingSummary], on_cpu: bool, choose: Any) -> dict[str, Any]:
    common = common_behaviour(sessions)
    told = f"all sessions recorded {', '.join(common)}" if common else (
        "the sessions recorded no behaviour in common" if any(one.behaviour_names for one in sessions)
        else "no behaviour was recorded"
    )  # fmt: skip
    return {
        "clip": choose("responses.clip", CLIP[on_cpu], "its bins share one pass, which a burn-in makes little longer"),
        "burn_in": 0,
        "rate": sessions[0].rate,
        "behaviour": common,
        "frontend": "learnable_temporal",
        "temporal_taps": choose(
            "responses.temporal_taps", _taps(sessions[0].rate), f"{sessions[0].rate:g} bins a second"
        ),
        "core": "resnet",
        "channels": choose("responses.channels", (64, 64), f"frames of {sessions[0].height} x {sessions[0].width}"),
        "kernels": (11, 3),
        "temporal_kernels": (1, 1),
        "strides": (2, 1),
        "pools": (1, 1),
        "modulation": choose("responses.modulation", "film" if common else "none", told),
        "recurrence": "convgru",
        "recurrent_channels": 16,
        "readout": "gaussian",
        "output": "softplus",
        "penalties": choose("responses.penalties", PENALTIES, "sparse readouts and smooth filters generalise better"),
    }


def _say_unused_behaviour(sessions: Sequence[RecordingSummary], used: Sequence[str]) -> None:
    """Behaviour that was recorded, and modulates nothing."""
    unused = sorted({name for one in sessions for name in one.behaviour_names} - set(used))
    if unused:
        some = "" if set(unused) <= set(common_behaviour(sessions)) else " (not all sessions recorded it)"
        note(f"behaviour that is not used{some}: {', '.join(unused)}")


def _taps(rate: float) -> int:
    """Temporal filters span about a fifth of a second, between 6 and 24 frames."""
    return int(min(24, max(6, round(0.2 * rate))))


def _from_run(start: Run, choose: Any) -> dict[str, Any]:
    recipe = start.recipe
    if recipe.responses is None:
        raise ModelError(
            "This run predicts no responses of neurons.", where=str(start.path), fix="give the run of a core"
        )
    choose("model.name", None, f"the core of {start.path.name}, as its best checkpoint has it")
    kept = recipe.responses.model_dump(mode="json")
    return {**kept, "penalties": READOUT_PENALTIES}


def network_config(choices: ResponseChoices, sessions: Sequence[RecordingSummary]) -> CortexConfig:
    """The network that these choices and sessions call for; what stands for all sessions is their mean by bins. Raises
    RecipeError for sessions of another rate or behaviour."""
    first = sessions[0]
    modulated = choices.modulation != "none"
    for one in sessions:
        if not same_rate(one.rate, choices.rate):
            raise RecipeError(
                f"{one.name} has {one.rate:g} bins a second, and the core sees {choices.rate:g}.",
                where="responses.rate",
                fix=f"visiontune prepare --rate {choices.rate:g}"
                if one.rate > choices.rate
                else f"train a core at {one.rate:g} bins a second: bins can be joined, not divided",
            )
        if not set(choices.behaviour) <= set(one.behaviour_names):
            raise RecipeError(
                f"{one.name} recorded {', '.join(one.behaviour_names) or 'no behaviour'}, and the core is modulated by "
                f"{', '.join(choices.behaviour)}.",
                where="responses.behaviour",
                fix="give every session this behaviour, or train a core with --responses.modulation none",
            )
    if modulated != bool(choices.behaviour):
        raise RecipeError(
            f"The core is modulated ({choices.modulation}) by {', '.join(choices.behaviour) or 'no channel'}.",
            where="responses.behaviour",
            fix="name the channels that modulate it, or use --responses.modulation none",
        )
    weights = np.array([one.bins["train"] for one in sessions], np.float64)
    weights = weights / weights.sum() if weights.sum() else None
    return CortexConfig(
        height=first.height,
        width=first.width,
        stimulus_mean=float(np.average([one.stimulus_mean for one in sessions], weights=weights)),
        stimulus_std=float(np.average([one.stimulus_std for one in sessions], weights=weights)) or 1.0,
        behaviour=len(choices.behaviour) if modulated else 0,
        **{name: getattr(choices, name) for name in CoreShape.model_fields},
        sessions=tuple(one.name for one in sessions),
        units=tuple(key for one in sessions for key in one.unit_keys),
    )


def refuse_other_frames(
    core: CortexConfig, shown: str | None, sessions: Sequence[RecordingSummary], where: Path
) -> None:
    """Raise DataError for frames that a core was not made for: of another size, another type than it was `shown` (None:
    not known), or of a scale at which it sees next to nothing, or nothing but one brightness.

    The core takes `stimulus_mean` from every pixel and divides by `stimulus_std`, of the sessions that it learned from.
    """
    for one in sessions:
        if one.size != (core.height, core.width):
            raise DataError(
                f"The core sees frames of {core.height} x {core.width} pixels, and those of {one.name} are "
                f"{one.height} x {one.width}.",
                where=str(where),
                fix=f"scale the stimulus to {core.height} x {core.width}, or train a new core without --from",
            )
        if shown is not None and one.stimulus != shown:
            raise DataError(
                f"The core learned from frames of {shown}, and those of {one.name} are {one.stimulus}: their numbers "
                "need not mean the same brightness.",
                where=str(where),
                fix=f"store the stimulus as {shown}, in the core's range (mean {core.stimulus_mean:.4g}, standard "
                f"deviation {core.stimulus_std:.4g}), or train a new core without --from",
            )
        spread = one.stimulus_std / core.stimulus_std
        shift = (one.stimulus_mean - core.stimulus_mean) / core.stimulus_std
        if spread < LEAST_SPREAD or abs(shift) > LARGEST_SHIFT:
            raise DataError(
                f"The pixels of {one.name} have the mean {one.stimulus_mean:.4g} and the standard deviation "
                f"{one.stimulus_std:.4g}, and the core sees frames of {core.stimulus_mean:.4g} and "
                f"{core.stimulus_std:.4g}: it would see next to nothing of them.",
                where=str(where),
                fix="store the stimulus in the range of the core's sessions, or train a new core without --from",
            )


def _frames_of(recipe: Recipe) -> str | None:
    """The type of the frames that a run learned from; None where none of its datasets is there any more."""
    for use in recipe.data.datasets:
        if (Path(use.path) / INFO_NAME).is_file() and (known := read_info(Path(use.path)).recording) is not None:
            return known.stimulus
    return None


def build_network(run: Run, recipe: Recipe, datasets: Sequence[Dataset], seed: int) -> None:
    """Write the network that a run starts from: new, or the core of another run or of a checkpoint with new readouts.

    What was taken of these, tensor by tensor, stands in base/taken.json. Raises RecipeError where the recipe asks for
    another core than they have, DataError where the core was made for other frames, and ModelError where a checkpoint
    fills less of it than the recipe allows.
    """
    import torch

    choices, sessions = recipe.responses, check_recordings(datasets)
    assert choices is not None
    rates = torch.tensor([rate for one in sessions for rate in one.mean_counts])
    taken: dict[str, Any] | None = None
    foreign = recipe.model.name != MODEL and is_checkpoint(recipe.model.name)
    if recipe.model.allow_missing and not foreign:
        raise RecipeError(
            "Tensors may be missing from a Lightning checkpoint alone, and this run starts from none.",
            where="--allow-missing",
            fix="leave it out, or name a checkpoint with --from",
        )
    if recipe.model.name == MODEL:
        network = Cortex(network_config(choices, sessions), seed)
        network.initialise_bias(rates)
    elif foreign:
        network, taken = imported(recipe, network_config(choices, sessions), rates, seed)
    else:
        source = Run(Path(recipe.model.name))
        its = source.recipe
        if its.responses is not None:
            refuse_another_core(its.responses, choices, source.path)
        network_config(choices, sessions)  # which refuses sessions that the core was not made for
        loaded, step = load_trained(source, its, torch.device("cpu"))
        refuse_other_frames(predicts_responses(loaded).cortex.config, _frames_of(its), sessions, source.path)
        names = tuple(one.name for one in sessions)
        keys = tuple(key for one in sessions for key in one.unit_keys)
        network, report = with_units(predicts_responses(loaded).cortex, names, keys, rates, seed)
        taken = {"run": str(source.path), "step": step, **asdict(report)}
    known = frozenset(taken.get("units", ()) if taken else ())
    # A burn-in that is shorter than the network's memory is refused where the network is loaded.
    burn_in = max(choices.burn_in, network.memory)
    cut = [ClipDataset.open(dataset.path, choices.clip, burn_in) for dataset in datasets]
    placed = place_readouts(network, cut, known, recipe.data.limit)
    note(f"readouts: {placed} of {len(rates)} start where the counts follow the picture")
    network.save(run.base_folder)
    if taken is not None:
        write_json(run.base_folder / "taken.json", taken)
