"""Quality against compression: the same documents drawn at other font sizes, so that their pages take fewer vision
tokens or more.

At each ratio of text tokens to vision tokens the model answers the documents drawn so, and beside it stand the first
three sentences, blank pages, and the text cut to as many tokens as those pages take. The run's own pages are one point
of the curve.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from visiontune.data.pages import PageSpec, lay_out, solve
from visiontune.data.pages.legibility import resize_scale, x_height
from visiontune.data.sample import Prediction, Sample
from visiontune.errors import DataError, RecipeError
from visiontune.files import write_json, written_whole
from visiontune.metrics.intervals import Metric, mean
from visiontune.models.text import TextAdapter, TextEncoder
from visiontune.progress import progress
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.training.answers import Reply, replies
from visiontune.training.baselines import (
    BLANK,
    LEAD,
    TRUNCATED,
    Baseline,
    ahead,
    as_text,
    baseline,
    blank,
    lead,
    rouges,
    text_of,
)

MOST_DOCUMENTS = 128
PAGES = "pages"  # the model's answers to the documents drawn at a ratio


@dataclass(frozen=True)
class RatioPoint:
    """The documents drawn at one font size. `asked` is the ratio that was asked for, None for the run's own pages.

    `ratio` is text tokens / vision tokens, `x_height` pixels after the model's resize, `pages` their number; all three
    and `metrics` (ROUGE) of the `n` documents that the model answered. `left_out` counts those whose pages exceed
    data.max_tokens. `beside_own` is the ROUGE-L minus that of the run's own pages, paired; None for those themselves.
    """

    asked: float | None
    ratio: float
    font_size: int
    x_height: float
    page_spec: str
    pages: int
    n: int
    left_out: int
    metrics: dict[str, Metric]
    beside_own: Metric | None
    baselines: tuple[Baseline, ...]

    def to_json(self) -> dict[str, Any]:
        """All fields, under their names."""
        return {
            **{name: getattr(self, name) for name in ("asked", "ratio", "font_size", "x_height", "page_spec")},
            **{name: getattr(self, name) for name in ("pages", "n", "left_out")},
            "metrics": {name: metric.to_json() for name, metric in self.metrics.items()},
            "beside_own": None if self.beside_own is None else self.beside_own.to_json(),
            "baselines": [one.to_json() for one in self.baselines],
        }


@dataclass(frozen=True)
class Unreachable:
    """A ratio that these documents do not reach, or not legibly, and why."""

    asked: float
    reason: str
    fix: str | None


@dataclass(frozen=True)
class _Asking:
    """What the points of one curve have in common."""

    folder: Path
    adapter: TextAdapter
    encoder: TextEncoder
    samples: Sequence[Sample]
    text_tokens: Sequence[int]
    page_tokens: int
    recipe: Recipe
    device: torch.device
    step: int


def check_ratios(ratios: Sequence[float], recipe: Recipe) -> None:
    """Raise RecipeError for ratios that cannot be asked for, or of a run that sees no documents."""
    if ratios and recipe.data.pages is None:
        raise RecipeError(
            "The run sees images; only documents can be drawn at other ratios.",
            where="--ratios",
            fix="leave --ratios out, or train on documents",
        )
    for ratio in ratios:
        if not 0 < ratio < float("inf") or ratios.count(ratio) > 1:
            raise RecipeError(f"'{ratio:g}' is no ratio, or given twice.", where="--ratios", fix="--ratios 2,5,10")


def evaluate_ratios(
    run: Run,
    adapter: TextAdapter,
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    split: str,
    ratios: Sequence[float],
    recipe: Recipe,
    device: torch.device,
    step: int,
) -> tuple[list[RatioPoint], list[Unreachable]]:
    """Answer the documents drawn at each ratio; writes evaluations/SPLIT/ratios.json.

    `predictions` are the model's answers to the run's own pages. What is asked at a ratio is kept in ratio-R.jsonl, so
    that an evaluation that was killed goes on behind the ratios that are done.
    """
    encoder, own = adapter.encoder, recipe.data.pages
    assert encoder.fonts is not None and own is not None
    texts = [text_of(sample) for sample in samples]
    counts = [encoder.count(text) for text in texts]
    page_tokens = encoder.encode(blank(samples[0]), with_answer=False).image_features
    asking = _Asking(
        run.path / "evaluations" / split, adapter, encoder, samples, counts, page_tokens, recipe, device, step
    )
    own_pages = [len(lay_out(text, own, encoder.fonts)) for text in texts]
    own_answers = [prediction.target.answer for prediction in predictions]
    extra = _answers(asking, "own", own, own_pages, own=True)
    points = [_point(asking, None, own, own_pages, own_answers, own_answers, extra)]
    unreachable = []
    of_tokens = dict(zip(texts, counts, strict=True))
    for ratio in ratios:
        try:
            found = solve(
                texts, of_tokens.__getitem__, page_tokens, ratio, own, encoder.fonts, recipe.data.image_longest_edge
            )
        except DataError as error:
            unreachable.append(Unreachable(ratio, error.found, error.fix))
            continue
        made = _answers(asking, f"{ratio:g}", found.spec, found.pages)
        answered = [reply.text for reply in made[PAGES]]
        if not any(answer is not None for answer in answered):
            reason = made[PAGES][0].left_out or "No document was answered."
            unreachable.append(
                Unreachable(ratio, f"No document fits into the context. The first: {reason}", "raise data.max_tokens")
            )
            continue
        points.append(_point(asking, ratio, found.spec, found.pages, answered, own_answers, {**extra, **made}))
    points.sort(key=lambda point: point.ratio)
    write_json(
        asking.folder / "ratios.json",
        {
            "step": step,
            "n": len(samples),
            "tokens_per_page": page_tokens,
            "points": [point.to_json() for point in points],
            "unreachable": [asdict(one) for one in unreachable],
        },
    )
    return points, unreachable


def _point(
    asking: _Asking,
    ratio: float | None,
    spec: PageSpec,
    pages: Sequence[int],
    answers: Sequence[str | None],
    own: Sequence[str | None],
    beside: dict[str, list[Reply]],
) -> RatioPoint:
    truths = [sample.text.answer for sample in asking.samples]
    kept = [i for i, answer in enumerate(answers) if answer is not None]
    shown = sum(pages[i] for i in kept)
    leads = [lead(text_of(sample)) for sample in asking.samples]
    replied = {name: [reply.text for reply in beside[name]] for name in (BLANK, TRUNCATED)}
    fonts, edge = asking.encoder.fonts, asking.recipe.data.image_longest_edge
    assert fonts is not None
    return RatioPoint(
        asked=ratio,
        ratio=round(sum(asking.text_tokens[i] for i in kept) / (shown * asking.page_tokens), 4),
        font_size=spec.font_size,
        x_height=round(x_height(spec, fonts) * resize_scale(spec, edge), 2),
        page_spec=spec.hash,
        pages=shown,
        n=len(kept),
        left_out=len(answers) - len(kept),
        metrics={name: mean(scores) for name, scores in rouges(truths, answers).items()},
        beside_own=None if ratio is None else ahead(truths, answers, own),
        baselines=tuple(baseline(name, truths, found, answers) for name, found in {LEAD: leads, **replied}.items()),
    )


def _answers(
    asking: _Asking, name: str, spec: PageSpec, pages: Sequence[int], *, own: bool = False
) -> dict[str, list[Reply]]:
    """What is asked at a ratio: the pages (blank ones where the answers to the own pages are known), and the text cut
    to as many tokens; taken from ratio-NAME.jsonl where that holds the answers to these very questions."""
    recipe, samples = asking.recipe, asking.samples
    encoder = asking.encoder.showing(spec)
    seen: Iterable[Sample] = (blank(sample) for sample in samples) if own else samples
    cut = (
        as_text(sample, recipe, encoder.cut(text_of(sample), count * asking.page_tokens))
        for sample, count in zip(samples, pages, strict=True)
    )

    def ask() -> dict[str, list[Reply]]:
        with progress(f"ratio {name}", 2 * len(samples), "answers") as advance:
            return {
                kind: replies(asking.adapter, encoder, asked, recipe, asking.device, advance)
                for kind, asked in {BLANK if own else PAGES: seen, TRUNCATED: cut}.items()
            }

    key = {
        "step": asking.step,
        "page_spec": spec.hash,
        "samples": hashlib.sha256(json.dumps([sample.id for sample in samples]).encode()).hexdigest(),
        "device": recipe.machine.device,
        "precision": recipe.machine.precision,
    }
    return _kept(asking.folder / f"ratio-{name}.jsonl", key, [sample.id for sample in samples], ask)


def _kept(
    path: Path, key: dict[str, Any], ids: Sequence[str], ask: Callable[[], dict[str, list[Reply]]]
) -> dict[str, list[Reply]]:
    """What stands in the file, if its first line is the key, else what is asked now and written there."""
    if path.is_file():
        head, *lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        if json.loads(head) == key:
            rows = [json.loads(line)["replies"] for line in lines]
            return {kind: [Reply(**row[kind]) for row in rows] for kind in rows[0]}
    found = ask()
    rows = [{"id": sample, "replies": {kind: asdict(found[kind][i]) for kind in found}} for i, sample in enumerate(ids)]
    with written_whole(path) as aside:
        lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in (key, *rows))
        aside.write_text("".join(lines), encoding="utf-8")
    return found
