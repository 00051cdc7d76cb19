"""A shipped pair of GGUF files, run by llama.cpp's own server in a child process and asked over HTTP.

No torch here: what the runtime answers is compared with torch elsewhere.
"""

import base64
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from visiontune.errors import ModelError
from visiontune.exports.llama_server import Server
from visiontune.models.labels import LabelTree, Tokens

BIAS = 200.0
"""Added to the logits of wanted tokens: above any spread of logits, and still exact to 8e-6 in float32."""
LEAST_SHARE = 1.4e-45
"""The smallest positive float32. The server leaves out shares that are zero; they are at most this."""
WHOLE_VOCABULARY = 2**24
MARKER = "<__media__>"
"""llama.cpp's customary name for an image's place; a server draws another at each start."""
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYGAAAAAEAAH2FzhVAAAAAElFTkSuQmCC"
)


@dataclass(frozen=True)
class Reading:
    """What llama.cpp made of a prompt."""

    prompt: str
    """The prompt with the image written out as the model's own tokens; the image's positions are left out."""
    prompt_ids: tuple[int, ...]
    """The token ids of that text."""
    image_tokens: int
    """Positions that the image takes."""


@dataclass(frozen=True)
class Answer(Reading):
    """A greedy answer. An end token stands in the tokens, not in the text."""

    text: str
    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    """Of each token, over the full vocabulary, natural logarithm. NaN for a token that ends within a letter (a part of
    an emoji, say): the server tells nothing of it."""
    margins: tuple[float, ...]
    """Log-probability of each token minus that of the runner-up; NaN likewise."""
    prompt_seconds: float
    """Image and prompt, as llama.cpp measures it."""
    seconds: float
    """The whole request by the clock."""
    ended: bool
    """Whether the model ended the answer itself."""


class Runtime:
    """llama.cpp on a text model and its projector; a context manager. One request at a time."""

    def __init__(self, text_model: Path, projector: Path | None, *, threads: int, context: int = 2048) -> None:
        """Start the child and load the files; `context` is the most tokens of prompt, image and answer together.

        Raises MachineError where the package is missing, ModelError for files that llama.cpp does not load.
        """
        self.text_model = text_model
        self.projector = projector
        self.context = context
        started = time.perf_counter()
        self._server = Server(text_model, projector, threads, context)
        self.version = self._server.version
        try:
            self._media_marker: str | None = self._ask("GET", "/props").get("media_marker")
        except BaseException:
            self.close()
            raise
        self.load_seconds = time.perf_counter() - started
        """From the start of the child to its first answer: Python, llama.cpp, the files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child and wait for it; may be called twice."""
        self._server.close()

    def tokenize(self, text: str) -> tuple[int, ...]:
        """The token ids of a text, special tokens read as such, none added."""
        return tuple(self._ask("POST", "/tokenize", content=text, add_special=False, parse_special=True)["tokens"])

    def read(self, prompt: str, image: bytes | None, *, marker: str) -> Reading:
        """What llama.cpp makes of a prompt. Arguments and errors as in `answer`."""
        return self._reading(self._complete(self._prompt(prompt, image, marker), fresh=True, n_predict=0))

    def answer(
        self, prompt: str, image: bytes | None, *, marker: str, max_new_tokens: int, fresh: bool = True
    ) -> Answer:
        """The greedy answer to a prompt that shows the image's place by `marker`; nothing but the largest logit counts.

        `image` is a file's bytes (PNG). `fresh` reads image and prompt anew, else what the last request left may be
        reused. Raises ModelError for a prompt without exactly one marker, an image without a projector, a prompt or
        answer larger than the context, and a child that dies.
        """
        started = time.perf_counter()
        said = self._complete(
            self._prompt(prompt, image, marker),
            fresh=fresh,
            n_predict=max_new_tokens,
            n_probs=2,
            temperature=0,
            samplers=["temperature"],
        )
        seconds = time.perf_counter() - started
        ended = said["stop_type"] == "eos"
        if not ended and len(said["tokens"]) < max_new_tokens:
            raise ModelError(
                f"The answer was cut after {len(said['tokens'])} tokens: prompt and answer are larger than the "
                f"context of {self.context} tokens.",
                where=str(self.text_model),
                fix="give a larger context, or ask for fewer new tokens",
            )
        log_probabilities, margins = self._told(said)
        reading = self._reading(said)
        return Answer(
            prompt=reading.prompt,
            prompt_ids=reading.prompt_ids,
            image_tokens=reading.image_tokens,
            text=said["content"],
            tokens=tuple(said["tokens"]),
            log_probabilities=log_probabilities,
            margins=margins,
            prompt_seconds=said["timings"]["prompt_ms"] / 1000,
            seconds=seconds,
            ended=ended,
        )

    def score_labels(self, prompt: str, image: bytes | None, *, marker: str, tree: LabelTree) -> NDArray[np.float64]:
        """Log-probability of each label, (labels,) float64, by LabelTree's rule; the image is read once.

        A share of a branching that float32 cannot hold counts as 1.4e-45. Raises as `answer` does, and ModelError for
        a label whose tokens the runtime cannot be made to say.
        """
        asked = self._prompt(prompt, image, marker)
        at_branches: dict[Tokens, NDArray[np.float64]] = {}
        below = dict(tree.branches)
        said = None
        if first := below.pop((), None):
            said, at_branches[()] = self._shares(asked, first, tree, fresh=True)
        if below:
            reading = self._reading(said or self._complete(asked, fresh=True, n_predict=0))
            for prefix, followers in below.items():
                at_branches[prefix] = self._scores_behind(asked, reading, prefix, followers, tree)
        return tree.log_probabilities(at_branches)

    def chat_prompt(self, question: str) -> str:
        """The prompt that the chat template inside the file gives for one question, with an image where there is a
        projector; the image shows as llama.cpp's marker, here always `<__media__>`.

        llama.cpp hands the template a text part in place of the image part: a template that asks for the part's type
        does not see an image. Raises ModelError where the file has no template that llama.cpp can fill in.
        """
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        if self.projector is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": PIXEL}})
        prompt: str = self._ask("POST", "/apply-template", messages=[{"role": "user", "content": content}])["prompt"]
        return prompt.replace(self._media_marker, MARKER) if self._media_marker else prompt

    def peak_memory_bytes(self) -> int:
        """The most memory that the child has held, the mapped files included; outside Linux what it holds now."""
        return self._server.peak_memory_bytes()

    def _prompt(self, prompt: str, image: bytes | None, marker: str) -> str | dict[str, Any]:
        """The prompt as the server wants it, the marker replaced by the server's own."""
        found, wanted = prompt.count(marker), int(image is not None)
        if found != wanted:
            raise ModelError(
                f"The prompt holds the image marker '{marker}' {found} times for {wanted} images.",
                where=prompt[:80],
                fix="write it once where the image stands, and not at all without an image",
            )
        if image is None:
            return prompt
        if self.projector is None or self._media_marker is None:
            raise ModelError(
                "A text model alone cannot see an image.",
                where=str(self.text_model),
                fix="give its projector too: the file whose name begins with 'mmproj-'",
            )
        data = base64.b64encode(image).decode()
        return {"prompt_string": prompt.replace(marker, self._media_marker), "multimodal_data": [data]}

    def _complete(self, prompt: str | Sequence[int] | dict[str, Any], *, fresh: bool, **options: Any) -> Any:
        return self._ask("POST", "/completion", prompt=prompt, cache_prompt=not fresh, return_tokens=True, **options)

    def _reading(self, said: Mapping[str, Any]) -> Reading:
        ids = self.tokenize(said["prompt"])
        return Reading(prompt=said["prompt"], prompt_ids=ids, image_tokens=said["tokens_evaluated"] - len(ids))

    def _told(self, said: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Log-probability and margin of each generated token, NaN where the server keeps them to itself."""
        tokens, steps = said["tokens"], list(said.get("completion_probabilities", ()))
        whole = [True] * len(tokens)
        if len(steps) < len(tokens):
            whole = [not self._ends_within_a_letter(tokens[: i + 1]) for i in range(len(tokens))]
            if sum(whole) != len(steps):  # bytes that are no text at all
                whole = [False] * len(tokens)
        log_probabilities = [math.nan] * len(tokens)
        margins = [math.nan] * len(tokens)
        for place, step in zip((i for i, told in enumerate(whole) if told), steps, strict=False):
            runner_up = max(top["logprob"] for top in step["top_logprobs"] if top["id"] != step["id"])
            log_probabilities[place], margins[place] = step["logprob"], step["logprob"] - runner_up
        return tuple(log_probabilities), tuple(margins)

    def _shares(
        self, prompt: str | Sequence[int] | dict[str, Any], followers: Tokens, tree: LabelTree, *, fresh: bool
    ) -> tuple[Any, NDArray[np.float64]]:
        """What the server said to a prompt, and the log-shares of the followers behind it, (followers,)."""
        said = self._complete(
            prompt,
            fresh=fresh,
            n_predict=1,
            n_probs=len(followers),
            seed=0,
            temperature=1.0,
            samplers=[],
            post_sampling_probs=True,
            logit_bias=[[token, BIAS] for token in followers],
        )
        if told := said.get("completion_probabilities"):
            shares = {top["id"]: top["prob"] for top in told[0]["top_probs"]}
            return said, np.array([math.log(max(shares.get(token, 0.0), LEAST_SHARE)) for token in followers])
        # The token drawn ends within a letter, so nothing was told. Let the end be drawn and the vocabulary be listed.
        end = tree.tokens[0][-1]
        listed = self._complete(
            prompt, fresh=False, n_predict=1, n_probs=WHOLE_VOCABULARY, temperature=0, logit_bias=[[end, 5 * BIAS]]
        )
        logs = {top["id"]: top["logprob"] for top in listed["completion_probabilities"][0]["top_logprobs"]}
        return said, np.array([max(logs[token], math.log(LEAST_SHARE)) for token in followers])

    def _scores_behind(
        self,
        asked: str | dict[str, Any],
        reading: Reading,
        prefix: Tokens,
        followers: Tokens,
        tree: LabelTree,
    ) -> NDArray[np.float64]:
        """Scores of the followers of a branching below the prompt, (followers,).

        A prompt with an image can be continued by text only. Mostly the text of the prefix is read as the prefix;
        where it joins with its neighbours to other tokens, each follower is spelled out instead.
        """
        wanted = (*reading.prompt_ids, *prefix)
        if isinstance(asked, str):
            return self._shares(wanted, followers, tree, fresh=False)[1]
        text = self._text(prefix)
        if self.tokenize(reading.prompt + text) == wanted:
            longer = asked | {"prompt_string": asked["prompt_string"] + text}
            said, scores = self._shares(longer, followers, tree, fresh=False)
            if said["tokens_evaluated"] == len(wanted) + reading.image_tokens:
                return scores
        places = [
            next(i for i, tokens in enumerate(tree.tokens) if tokens[: len(prefix) + 1] == (*prefix, token))
            for token in followers
        ]
        return np.array([self._spelled(asked, len(prefix) + 1, tree, place) for place in places])

    def _spelled(self, asked: dict[str, Any], count: int, tree: LabelTree, place: int) -> float:
        """Log-probability of a label's token number `count` behind those before it, by making llama.cpp say them.

        A grammar leaves only the label's text, the bias only the label's tokens; the log-probabilities that are told
        are those before both.
        """
        label = tree.tokens[place]
        # The earlier tokens weigh more: where two of the label's tokens fit the rest of its text, the earlier is meant.
        weights = {token: BIAS * (len(label) - i) for i, token in reversed(list(enumerate(label)))}
        said = self._complete(
            asked,
            fresh=False,
            n_predict=count,
            n_probs=1,
            temperature=0,
            samplers=["temperature"],
            grammar=f"root ::= {json.dumps(self._text(label[:-1]), ensure_ascii=False)}",
            logit_bias=list(weights.items()),
        )
        if tuple(said["tokens"]) != label[:count]:
            problem = f"in the model's own tokens {list(label)}; it said {said['tokens']}"
        elif self._ends_within_a_letter(label[:count]):
            problem = "so that it tells the probability of a token that ends within a letter"
        else:
            return float(said["completion_probabilities"][-1]["logprob"])
        raise ModelError(
            f"llama.cpp cannot be made to say the label '{tree.labels[place]}' {problem}.",
            where=str(self.text_model),
            fix="rename the label",
        )

    def _ends_within_a_letter(self, tokens: Sequence[int]) -> bool:
        """Whether the tokens' bytes end before the last character is whole; the server writes U+FFFD for such."""
        return self._text(tokens).endswith("\ufffd")

    def _text(self, tokens: Sequence[int]) -> str:
        return self._ask("POST", "/detokenize", tokens=list(tokens))["content"]

    def _ask(self, method: str, path: str, **body: Any) -> Any:
        return self._server.ask(method, path, body)
