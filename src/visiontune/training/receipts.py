"""Receipts: what a run proves about itself, written by the run, each with its reason and numbers.

A receipt is `passed`, `failed` or `not applicable`, and `pending` until it can be known. One that fails stops the run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from visiontune.data.dataset import Dataset
from visiontune.data.objects import Objects
from visiontune.data.responses import Responses
from visiontune.data.sample import Images, Sample, Text
from visiontune.errors import ReceiptError
from visiontune.files import write_json
from visiontune.models.adapter import Batch, ModelAdapter
from visiontune.models.parts import Part, PartSummary, part_of, tensors_sha256
from visiontune.progress import Advance
from visiontune.recipe import Recipe
from visiontune.recipe_sections import PartState
from visiontune.run import Run
from visiontune.training.batches import Reading, SampleRef
from visiontune.training.checkpoint import Progress
from visiontune.training.precision import autocast
from visiontune.words import counted

NAMES = ("supervised", "placeholders", "image matters", "frozen stayed frozen", "trained moved", "seen", "memory")
HELD_OUT_AT_LEAST, HELD_OUT_AT_MOST = 64, 128
RESAMPLES = 2000
RISE_NEEDED = 0.01
MEMORY_TOLERANCE = 0.10
TAUGHT = {
    Text: "learned span is the answer and its end token",
    Objects: "boxes and classes learned are those drawn",
    Responses: "counts learned are those recorded of these units in the valid bins",
}


@dataclass(frozen=True)
class Receipt:
    """One receipt. `numbers` are plain values; `examples` are for a person to look at."""

    name: str
    status: Literal["passed", "failed", "not applicable", "pending"]
    reason: str
    numbers: dict[str, Any] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)


class ReceiptBook:
    """The receipts of a run, on disk after every change."""

    def __init__(self, run: Run, write: bool = True) -> None:
        self.run = run
        self._writes = write
        stood = {entry["name"]: Receipt(**entry) for entry in run.receipts}
        pending = (Receipt(name, "pending", "the run has not come to it yet") for name in NAMES)
        self.receipts = {receipt.name: stood.get(receipt.name, receipt) for receipt in pending}

    def add(self, receipt: Receipt) -> None:
        """Write a receipt in its place."""
        self.receipts[receipt.name] = receipt
        if self._writes:
            write_json(self.run.path / "receipts.json", {"receipts": [asdict(self.receipts[name]) for name in NAMES]})

    def require(self, receipt: Receipt) -> None:
        """Write a receipt; raise ReceiptError, which stops the run, if it failed."""
        self.add(receipt)
        if receipt.status == "failed":
            raise ReceiptError(
                f"Receipt '{receipt.name}' failed: {receipt.reason}",
                where=str(self.run.path / "receipts.json"),
                fix="the numbers beside the receipt say what differs; the run is stopped so that nobody trusts it",
            )


# supervised


def supervised(reading: Reading, refs: Sequence[SampleRef]) -> Receipt:
    """What some training samples teach, read back from their tensors, is their target and nothing else."""
    examples, wrong = [], []
    what = TAUGHT[Text]
    for dataset, index, _ in refs:
        sample = reading.datasets[dataset].sample("train", index)
        found = reading.encoder.supervision(sample)
        wrong += [] if found.wrong is None else [found.wrong]
        what = TAUGHT[type(sample.target)]
        examples.append({"dataset": dataset, "split": "train", "index": index, "id": sample.id, **found.shown})
    numbers = {"samples_shown": len(examples), "wrong": len(wrong)}
    if wrong:
        return Receipt("supervised", "failed", "; ".join(wrong[:3]), numbers, examples)
    reason = f"in {len(examples)} of {len(examples)} samples the {what}"
    return Receipt("supervised", "passed", reason, numbers, examples)


# placeholders


def check_placeholders(book: ReceiptBook, batch: Batch) -> None:
    """Raise ReceiptError unless a micro-batch's image tokens equal the features of the tiles that it carries."""
    pixels = batch.tensors.get("features", batch.tensors.get("pixel_values"))
    # A tile without any value is one that the model would drop. Every 97th pixel tells as well as all of them.
    carried = 0 if pixels is None else int((pixels.flatten(2)[..., ::97] != 0).any(-1).sum())
    if batch.image_tokens == batch.image_features and carried == batch.tiles:
        return
    reason = (
        f"{batch.image_tokens} image tokens stand in the text and the images give {batch.image_features} features; "
        f"{carried} of {batch.tiles} image tiles reached the batch; samples: {', '.join(batch.ids[:3])}"
    )
    book.require(Receipt("placeholders", "failed", reason, {"image_tokens": batch.image_tokens, "tiles": carried}))


def placeholders(progress: Progress, samples: int) -> Receipt:
    """Every sample's image tokens equalled its image features; how many answers were shortened."""
    numbers = {"samples": samples, "image_tokens": progress.image_tokens, "answers_shortened": progress.shortened}
    if progress.image_tokens == 0:
        return Receipt("placeholders", "not applicable", "no sample has images as tokens of its text", numbers)
    reason = (
        f"image tokens equalled image features in all {counted(samples, 'sample')}; "
        f"{counted(progress.shortened, 'answer was', 'answers were')} shortened"
    )
    return Receipt("placeholders", "passed", reason, numbers)


# image matters


def partners(samples: Sequence[Sample]) -> list[Sample]:
    """For each sample the one whose images it gets: half the samples apart in the order of their targets."""

    def place(i: int) -> tuple[Any, ...]:
        target = samples[i].target
        if isinstance(target, Objects):
            return len(target), tuple(sorted(target.classes.tolist())), samples[i].id
        return target.answer if isinstance(target, Text) else "", samples[i].id

    ordered = sorted(range(len(samples)), key=place)
    partner = {i: ordered[(place + len(samples) // 2) % len(samples)] for place, i in enumerate(ordered)}
    return [samples[partner[i]] for i in range(len(samples))]


@torch.no_grad()
def sample_losses(
    adapter: ModelAdapter,
    samples: Sequence[Sample],
    recipe: Recipe,
    device: torch.device,
    book: ReceiptBook,
    advance: Advance | None = None,
    shown: Sequence[Sample] | None = None,
) -> np.ndarray:
    """The mean loss a target of each sample, with the images of the samples `shown` where given; shape (samples,),
    float64. Raises ReceiptError as `check_placeholders`."""
    adapter.trained_module.eval()
    encoder = adapter.encoder
    losses = []
    for i, sample in enumerate(samples):
        batch = encoder.collate([encoder.encode(sample) if shown is None else encoder.exchanged(sample, shown[i])])
        check_placeholders(book, batch)
        with autocast(device, recipe.machine.precision):
            sums = adapter.losses(batch.to(device))
        if advance:
            advance(1)
        losses.append(sum(float(value.sum()) / max(1, batch.weights[term]) for term, value in sums.items()))
    return np.array(losses)


def held_out(datasets: Sequence[Dataset], limit: int | None = None) -> list[Sample]:
    """Validation, then test samples that have an image; at most `limit` of each split and dataset, 128 in all."""
    found: list[Sample] = []
    for split in ("validation", "test"):
        for dataset in datasets:
            rows = min(dataset.count(split), limit or dataset.count(split), HELD_OUT_AT_MOST - len(found))
            samples = (dataset.sample(split, i) for i in range(rows))
            found += [sample for sample in samples if not isinstance(sample.seen, Images) or sample.seen.files]
    return found


def too_few_held_out(n: int) -> Receipt:
    """The receipt where `n` samples are too few to tell."""
    reason = f"{HELD_OUT_AT_LEAST} held-out samples that show something are needed; there are {n}"
    return Receipt("image matters", "not applicable", reason, {"n": n})


def image_matters(true: np.ndarray, with_others: np.ndarray) -> Receipt:
    """Whether the loss rises when samples exchange their images; both of shape (samples,).

    A rise that is only just not zero proves nothing: a model that copies the answer from its prompt still looks at the
    image a little. So the lower end of the rise's 95 % bootstrap interval must be above 1 % of the loss with exchanged
    images.
    """
    n = len(true)
    if n < HELD_OUT_AT_LEAST:
        return too_few_held_out(n)
    rise = with_others - true
    means = np.random.default_rng(0).choice(rise, (RESAMPLES, n)).mean(axis=1)
    low, high = (float(end) for end in np.quantile(means, [0.025, 0.975]))
    needed = RISE_NEEDED * float(with_others.mean())
    numbers = {
        "loss": round(float(true.mean()), 6),
        "loss_with_exchanged_images": round(float(with_others.mean()), 6),
        "difference": {"value": round(float(rise.mean()), 6), "low": round(low, 6), "high": round(high, 6), "n": n},
        "needed": round(needed, 6),
    }
    change = f"by {rise.mean():.3g} (95 % interval {low:.3g} to {high:.3g})"
    if low > needed:
        reason = f"with another sample's image the loss rises {change}"
        return Receipt("image matters", "passed", reason, numbers)
    reason = (
        f"the model does not need the image: with another sample's image the loss {true.mean():.3g} changes {change}. "
        "Look for a run too short to learn, or a question that gives the answer away"
    )
    return Receipt("image matters", "failed", reason, numbers)


# frozen stayed frozen, trained moved


def check_gradients(
    book: ReceiptBook, module: nn.Module, parts: tuple[Part, ...], states: Mapping[str, PartState]
) -> None:
    """After the backward of a step that has targets of every loss term: raise ReceiptError unless all trained parts,
    and no frozen weights, have a gradient."""
    if touched := [name for name, p in module.named_parameters() if not p.requires_grad and p.grad is not None]:
        reason = f"{len(touched)} frozen weights received a gradient, the first is {touched[0]}"
        book.require(Receipt("frozen stayed frozen", "failed", reason))
    reached = dict.fromkeys((name for name, state in states.items() if state != "frozen"), False)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.grad is not None and bool(parameter.grad.any()):
            reached[part_of(parts, name)] = True
    if still := [name for name, moved in reached.items() if not moved]:
        reason = f"no gradient reaches {', '.join(still)}: is its adapter switched off, or did the images not arrive?"
        book.require(Receipt("trained moved", "failed", reason))


def frozen_stayed_frozen(summaries: Sequence[PartSummary], before: str, after: str, touched: Sequence[str]) -> Receipt:
    """The frozen weights and buffers have the same hash before and after, and none holds a gradient."""
    frozen = sum(summary.parameters - summary.trainable for summary in summaries)
    numbers = {"frozen_parameters": frozen, "sha256_before": before, "sha256_after": after}
    if touched:
        reason = f"{len(touched)} frozen weights received a gradient, the first is {touched[0]}"
        return Receipt("frozen stayed frozen", "failed", reason, numbers)
    if before != after:
        reason = "frozen weights or buffers changed during the run"
        return Receipt("frozen stayed frozen", "failed", reason, numbers)
    if frozen == 0:
        return Receipt("frozen stayed frozen", "not applicable", "every part is trained in full", numbers)
    reason = f"{frozen:,} frozen parameters and their buffers have the same hash as before the run"
    return Receipt("frozen stayed frozen", "passed", reason, numbers)


def hashes_by_part(tensors: Mapping[str, torch.Tensor], parts: tuple[Part, ...]) -> dict[str, str]:
    """A hash of the trained tensors of each part."""
    by_part: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        by_part.setdefault(part_of(parts, name), {})[name] = tensor
    return {part: tensors_sha256(named) for part, named in by_part.items()}


def trained_moved(
    before: Mapping[str, str],
    after: Mapping[str, str],
    probe_before: Sequence[float],
    probe_off: Sequence[float] | None,
) -> Receipt:
    """Every trained part changed; with the adapter switched off the base model answers bit for bit as before."""
    still = [part for part in before if before[part] == after.get(part)]
    numbers: dict[str, Any] = {"parts": list(before)}
    if probe_off is not None:
        numbers |= {"base_losses_before": list(probe_before), "base_losses_with_adapter_off": list(probe_off)}
    if still:
        return Receipt("trained moved", "failed", f"{', '.join(still)} did not change", numbers)
    if probe_off is not None and list(probe_before) != list(probe_off):
        reason = "with the adapter switched off the model is not the base model any more"
        return Receipt("trained moved", "failed", reason, numbers)
    off = "; with the adapter off the base model answers bit for bit as before" if probe_off is not None else ""
    return Receipt("trained moved", "passed", f"{', '.join(before)} changed{off}", numbers)


# seen


def seen(promised: tuple[Mapping[int, int], int], progress: Progress) -> Receipt:
    """The samples that went through the model are those that the order promised (`batches.promised`)."""
    counts = {str(dataset): count for dataset, count in promised[0].items()}
    numbers = {"promised": counts, "seen": progress.seen}
    if progress.seen != counts:
        return Receipt("seen", "failed", "other numbers of samples were seen than the order promised", numbers)
    if progress.seen_digest != promised[1]:
        return Receipt("seen", "failed", "other samples were seen than the order promised", numbers)
    reason = f"exactly the {sum(counts.values())} samples that the order promised were seen"
    return Receipt("seen", "passed", reason, numbers)


# memory


def memory(device: str, predicted: int, measured: int, forecast: Mapping[str, Any]) -> Receipt:
    """The peak that was predicted before the first step against the one measured, in bytes; beside it what else was
    foreseen (`Forecast.to_json`), and what of it was measured."""
    numbers = {"predicted_bytes": predicted, "measured_bytes": measured, "forecast": dict(forecast)}
    if device != "cuda":
        reason = (
            f"predicted {predicted / 2**20:,.0f} MiB for the training itself; only CUDA reports the peak of that. The "
            f"whole process, with its libraries, took {measured / 2**20:,.0f} MiB"
        )
        return Receipt("memory", "not applicable", reason, numbers)
    if predicted == 0:
        reason = f"the largest micro-batch did not fit and was cut finer; measured {measured / 2**20:,.0f} MiB"
        return Receipt("memory", "not applicable", reason, numbers)
    off = measured / predicted - 1
    reason = f"predicted {predicted / 2**20:,.0f} MiB, measured {measured / 2**20:,.0f} MiB ({off:+.1%})"
    return Receipt("memory", "passed" if abs(off) <= MEMORY_TOLERANCE else "failed", reason, numbers)
