"""BERTScore of written answers (Zhang et al. 2020, "BERTScore: Evaluating Text Generation with BERT").

Each token of an answer is matched with the token of the truth whose contextual embedding is most similar to its own,
and the other way round; precision and recall are the means of these cosines. Without weights for rare words and without
rescaling to a baseline: both depend on more than the two texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from visiontune.errors import ModelError, RecipeError
from visiontune.metrics.intervals import Metric, mean

TEXTS_AT_ONCE = 32
BEYOND = 10**9  # tokens; a tokenizer that knows no longest text says a number above it


@dataclass(frozen=True)
class BertScores:
    """Precision, recall and F1 of each answer, each in [-1, 1], and how many texts were longer than the model reads."""

    precision: list[float]
    recall: list[float]
    f1: list[float]
    cut: int

    def metrics(self, seed: int = 0) -> dict[str, Metric]:
        """The means with their intervals, as bertscore_precision, bertscore_recall and bertscore_f1."""
        values = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        return {f"bertscore_{name}": mean(found, seed, bounds=(-1, 1)) for name, found in values.items()}


class Embedder:
    """An encoder whose hidden states are compared: those behind layer `layer`, 1 being the first."""

    def __init__(self, name: str, *, layer: int | None = None, device: torch.device | str = "cpu") -> None:
        """Load a hub id or a folder, in float32; the last layer where none is given.

        Raises ModelError for what is no encoder that transformers loads, RecipeError for a layer that it has not.
        """
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        try:
            config = AutoConfig.from_pretrained(name)
            if config.is_encoder_decoder:
                raise ValueError("it has a decoder")
            self._tokenizer: Any = AutoTokenizer.from_pretrained(name)
            network: Any = AutoModel.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"This is no encoder that transformers loads: {str(error).strip().splitlines()[0]}",
                where=name,
                fix="give a BERT-like model with its tokenizer: a downloaded folder or a hub id",
            ) from error
        layers = int(config.num_hidden_layers)
        if layer is not None and not 1 <= layer <= layers:
            raise RecipeError(f"Layer {layer} is not one of the {layers} layers of {name}.", fix=f"1 to {layers}")
        self.name, self.layer = name, layer or layers
        self._network = network.to(device).eval()
        self._device = device
        longest = self._tokenizer.model_max_length
        # Where the tokenizer does not say: some models count their positions from 2 on.
        self._longest = longest if longest < BEYOND else config.to_dict().get("max_position_embeddings", BEYOND) - 2

    def scores(self, truths: Sequence[str], answers: Sequence[str]) -> BertScores:
        """Score answers against their truths, one each; an empty text has the scores 0."""
        rows, cut = [], 0
        for start in range(0, len(truths), TEXTS_AT_ONCE):
            chunk = slice(start, start + TEXTS_AT_ONCE)
            first, first_cut = self._embedded(truths[chunk])
            second, second_cut = self._embedded(answers[chunk])
            rows += [_matched(*truth, *answer) for truth, answer in zip(first, second, strict=True)]
            cut += first_cut + second_cut
        precision, recall, f1 = ([row[i] for row in rows] for i in range(3))
        return BertScores(precision, recall, f1, cut)

    @torch.no_grad()
    def _embedded(self, texts: Sequence[str]) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], int]:
        """For each text its unit embeddings (tokens, width) and which tokens are its own and no marks: (tokens,) bool.

        And how many texts were cut.
        """
        # A blank in front: byte-level tokenizers then know the first word as they know every other one.
        spaced = [f" {text.strip()}" if text.strip() else "" for text in texts]
        cut = sum(len(ids) > self._longest for ids in self._tokenizer(spaced, verbose=False)["input_ids"])
        made = self._tokenizer(
            spaced,
            padding=True,
            truncation=True,
            max_length=self._longest,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        marks = made.pop("special_tokens_mask").bool()
        hidden = self._network(**made.to(self._device), output_hidden_states=True).hidden_states[self.layer].cpu()
        unit = torch.nn.functional.normalize(hidden, dim=-1)
        stands = made["attention_mask"].bool().cpu()
        return [(unit[i][stands[i]], ~marks[i][stands[i]]) for i in range(len(texts))], cut


def _matched(
    truth: torch.Tensor, of_truth: torch.Tensor, answer: torch.Tensor, of_answer: torch.Tensor
) -> tuple[float, float, float]:
    """Precision, recall and F1 of one answer. Marks such as [CLS] may be matched with, and do not count themselves."""
    if not of_truth.any() or not of_answer.any():
        return 0.0, 0.0, 0.0
    cosines = answer @ truth.T
    precision = float(cosines.max(dim=1).values[of_answer].mean())
    recall = float(cosines.max(dim=0).values[of_truth].mean())
    both = precision + recall
    return precision, recall, 2 * precision * recall / both if both else 0.0
