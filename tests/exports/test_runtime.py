"""What llama.cpp answers on the exported files is what torch answers on the checkpoint, and no child is left behind."""

import importlib.util
import io
import json
import math
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from visiontune.errors import MachineError, ModelError
from visiontune.exports import llama_server
from visiontune.exports.gguf import write_gguf
from visiontune.exports.runtime import Runtime
from visiontune.models.labels import LabelTree
from visiontune.models.smolvlm import build_tiny

MARKER = "<__media__>"
PROMPT = f"<|im_start|>User:{MARKER}What is this?<end_of_utterance>\nAssistant:"
TILE_TOKENS = 4
BEFORE = "<fake_token_around_image><row_1_col_1>"
BETWEEN = "\n\n<fake_token_around_image><global-img>"
AFTER = "<fake_token_around_image>"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that cares: random weights alone give nearly the same logits whatever they see."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("checkpoint")
    texts = ["What is this? Which digit is this?", "zero one two three four five six seven eight nine", "0123456789"]
    build_tiny(folder, texts, 1, image_size=32, width=64, layers=2)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= 10
    weights["model.connector.modality_projection.proj.weight"] *= 10
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    # Its answers are letters: most tokens of so small a vocabulary are single bytes of longer ones.
    others = [token for text, token in vocabulary.items() if not (text.isascii() and text.isalnum())]
    weights["lm_head.weight"][others] *= 0.2
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def files(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    text, projector = write_gguf(checkpoint, tmp_path_factory.mktemp("gguf"), "f32")
    return text.path, projector.path


@pytest.fixture(scope="module")
def runtime(files: tuple[Path, Path]) -> Iterator[Runtime]:
    with Runtime(*files, threads=1, context=512) as runtime:
        yield runtime


class Torch:
    """The checkpoint in plain transformers, the prompt put together by hand in llama.cpp's two-tile layout."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForImageTextToText, AutoTokenizer

        self.network: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.image_id: int = self.tokenizer.convert_tokens_to_ids("<image>")
        self.end: int = self.tokenizer.convert_tokens_to_ids("<end_of_utterance>")

    def ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt_ids(self, prompt: str) -> tuple[int, ...]:
        before, after = prompt.split(MARKER)
        tile = (self.image_id,) * TILE_TOKENS
        return self.ids(before + BEFORE) + tile + self.ids(BETWEEN) + tile + self.ids(AFTER + after)

    def logits(self, ids: tuple[int, ...], picture: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Of the next token, (vocabulary,)."""
        tile = torch.from_numpy((picture.astype(np.float32) / 255 - 0.5) / 0.5).permute(2, 0, 1)
        with torch.no_grad():
            made = self.network(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                pixel_values=tile.expand(1, 2, -1, -1, -1),
                pixel_attention_mask=torch.ones(1, 2, *tile.shape[1:], dtype=torch.long),
            )
        return made.logits[0, -1].double().numpy()

    def label_scores(self, prompt: str, picture: NDArray[np.uint8], tree: LabelTree) -> NDArray[np.float64]:
        asked = self.prompt_ids(prompt)
        return tree.log_probabilities(
            {prefix: self.logits(asked + prefix, picture)[list(next_)] for prefix, next_ in tree.branches.items()}
        )

    def tree(self, *labels: str) -> LabelTree:
        return LabelTree(labels, tuple((*self.ids(label), self.end) for label in labels))


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Torch:
    return Torch(checkpoint)


def picture(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def joining_letters(checkpoint: Path) -> tuple[str, str]:
    """Two letters that the tokenizer reads as one token when they meet."""
    merges = json.loads((checkpoint / "tokenizer.json").read_text())["model"]["merges"]
    return next((x, y) for x, y in merges if len(x) == len(y) == 1 and (x + y).isalpha() and (x + y).isascii())


def requests_of(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is asked of /completion from now on."""
    asked: list[dict[str, Any]] = []
    ask = runtime._ask

    def noted(method: str, path: str, **body: Any) -> Any:
        if path == "/completion":
            asked.append(body)
        return ask(method, path, **body)

    monkeypatch.setattr(runtime, "_ask", noted)
    return asked


def halted(runtime: Runtime) -> psutil.Process:
    """The child, stopped: a signal takes effect only when each thread meets it."""
    child = psutil.Process(runtime._server.process.pid)
    child.send_signal(signal.SIGSTOP)
    threads = [Path("/proc", str(child.pid), "task", str(thread.id), "stat") for thread in child.threads()]
    while any(thread.read_text().rsplit(")", 1)[1].split()[0] != "T" for thread in threads):
        time.sleep(0.01)
    return child


def test_the_prompt_is_read_as_torch_reads_it_and_the_image_takes_its_tokens(
    runtime: Runtime, reference: Torch
) -> None:
    reading = runtime.read(PROMPT, png(picture(0)), marker=MARKER)
    wanted = reference.prompt_ids(PROMPT)
    assert reading.prompt_ids == tuple(token for token in wanted if token != reference.image_id)
    assert reading.image_tokens == wanted.count(reference.image_id) == 2 * TILE_TOKENS
    before, after = PROMPT.split(MARKER)
    assert reading.prompt == before + BEFORE + BETWEEN + AFTER + after


def test_the_marker_may_have_any_name(runtime: Runtime) -> None:
    image = png(picture(0))
    renamed = PROMPT.replace(MARKER, "<image>")
    assert runtime.read(renamed, image, marker="<image>") == runtime.read(PROMPT, image, marker=MARKER)


@pytest.mark.parametrize(
    ("labels", "requests"),
    [
        (("zero", "nine", "four"), 1),
        (("s1", "s2", "s34", "s35"), 2 + 1),  # the prompt is read first, since it is no branching
        (("on", "oner", "two"), 2),
    ],
    ids=["they differ at once", "they differ deeper", "one is the beginning of another"],
)
def test_label_probabilities_are_torchs(
    runtime: Runtime,
    reference: Torch,
    monkeypatch: pytest.MonkeyPatch,
    labels: tuple[str, ...],
    requests: int,
) -> None:
    tree = reference.tree(*labels)
    asked = requests_of(runtime, monkeypatch)
    scores = [runtime.score_labels(PROMPT, png(picture(seed)), marker=MARKER, tree=tree) for seed in (0, 1)]
    for seed, found in enumerate(scores):
        assert np.abs(np.exp(found) - np.exp(reference.label_scores(PROMPT, picture(seed), tree))).max() < 1e-3
        assert np.exp(found).sum() == pytest.approx(1)
    assert np.abs(np.exp(scores[0]) - np.exp(scores[1])).max() > 0.01  # the image has a say
    assert len(asked) == 2 * requests and not any("grammar" in body for body in asked)


def test_labels_whose_beginning_is_read_otherwise_behind_the_prompt_are_spelled_out(
    runtime: Runtime, reference: Torch, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, first = joining_letters(checkpoint)
    prompt = PROMPT + last
    tree = reference.tree(f"{first}0", f"{first}12", f"{first}13")
    assert reference.ids(last + first) != reference.ids(last) + reference.ids(first)
    asked = requests_of(runtime, monkeypatch)
    found = runtime.score_labels(prompt, png(picture(0)), marker=MARKER, tree=tree)
    assert np.abs(np.exp(found) - np.exp(reference.label_scores(prompt, picture(0), tree))).max() < 1e-3
    assert sum("grammar" in body for body in asked) == 4  # two branchings of two


def test_a_label_is_spelled_in_its_own_tokens_even_where_the_model_prefers_others(
    runtime: Runtime, reference: Torch, checkpoint: Path
) -> None:
    first, second = joining_letters(checkpoint)
    (one,), (two,), (joined,) = reference.ids(first), reference.ids(second), reference.ids(first + second)
    tree = LabelTree(("1", "2"), tuple((one, two, *reference.ids(digit), reference.end) for digit in "12"))
    asked = reference.prompt_ids(PROMPT)
    seed = next(i for i in range(50) if np.diff(reference.logits(asked, picture(i))[[one, joined]])[0] > 0)
    found = runtime.score_labels(PROMPT, png(picture(seed)), marker=MARKER, tree=tree)
    assert np.abs(np.exp(found) - np.exp(reference.label_scores(PROMPT, picture(seed), tree))).max() < 1e-3


def test_labels_that_differ_within_a_letter_are_spelled_out(runtime: Runtime, reference: Torch) -> None:
    tree = reference.tree("é", "è", "ê1")
    assert len(tree.tokens[0]) == 3 and () not in tree.branches  # two bytes and the end, the first byte shared
    found = runtime.score_labels(PROMPT, png(picture(0)), marker=MARKER, tree=tree)
    assert np.abs(np.exp(found) - np.exp(reference.label_scores(PROMPT, picture(0), tree))).max() < 1e-3


def test_a_label_that_cannot_be_said_is_named(runtime: Runtime, reference: Torch, checkpoint: Path) -> None:
    first, second = joining_letters(checkpoint)
    apart, joined = (*reference.ids(first), *reference.ids(second)), reference.ids(first + second)
    # Behind "is" the tokens "i" and "is" both fit the text "is"; no tokenizer writes a word so.
    tokens = tuple((*apart, *joined, *reference.ids(digit), reference.end) for digit in "12")
    with pytest.raises(ModelError, match="label 'odd'"):
        runtime.score_labels(PROMPT, png(picture(0)), marker=MARKER, tree=LabelTree(("odd", "even"), tokens))


def test_labels_whose_first_tokens_end_within_a_letter_are_scored(runtime: Runtime, reference: Torch) -> None:
    tree = reference.tree("é", "一", "two")  # single bytes for this tokenizer, of which the server tells nothing
    assert len(tree.branches[()]) == 3 and len(tree.tokens[1]) == 4
    found = runtime.score_labels(PROMPT, png(picture(0)), marker=MARKER, tree=tree)
    assert np.abs(np.exp(found) - np.exp(reference.label_scores(PROMPT, picture(0), tree))).max() < 1e-3
    with pytest.raises(ModelError, match="within a letter"):  # they differ in the second byte of three
        runtime.score_labels(PROMPT, png(picture(0)), marker=MARKER, tree=reference.tree("水", "木"))


def test_tokens_within_a_letter_have_no_log_probability_and_the_others_keep_theirs(
    runtime: Runtime, reference: Torch, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = "é一o"
    ids = reference.ids(word)
    assert len(ids) == 6
    weights = {token: 1000.0 * (9 - i) for i, token in enumerate(ids)}
    forced = {"grammar": f'root ::= "{word}"', "logit_bias": list(weights.items())}
    complete = runtime._complete
    monkeypatch.setattr(runtime, "_complete", lambda *a, **b: complete(*a, **b, **forced))
    answer = runtime.answer(PROMPT, png(picture(0)), marker=MARKER, max_new_tokens=6)
    assert answer.tokens == ids and answer.text == word
    asked = reference.prompt_ids(PROMPT)
    for i, token in enumerate(ids):
        logits = reference.logits(asked + ids[:i], picture(0))
        wanted = float(torch.from_numpy(logits).log_softmax(-1)[token])
        if i in (1, 4, 5):
            assert answer.log_probabilities[i] == pytest.approx(wanted, abs=1e-3)
        else:
            assert math.isnan(answer.log_probabilities[i]) and math.isnan(answer.margins[i])


def test_a_share_that_float32_cannot_hold_is_no_error(
    runtime: Runtime, reference: Torch, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"completion_probabilities": [{"top_probs": [{"id": 7, "prob": 1.0}]}]}
    monkeypatch.setattr(runtime, "_complete", lambda *_, **__: said)
    _, scores = runtime._shares("", (5, 7), reference.tree("1", "2"), fresh=True)
    assert scores[1] == 0 and scores[0] < -100 and math.isfinite(scores[0])


def test_text_alone_is_scored_as_torch_scores_it(files: tuple[Path, Path], reference: Torch) -> None:
    prompt = "<|im_start|>User: What is this?<end_of_utterance>\nAssistant:"
    tree = reference.tree("on", "one", "two")
    with Runtime(files[0], None, threads=1, context=512) as runtime:
        found = runtime.score_labels(prompt, None, marker=MARKER, tree=tree)
    with torch.no_grad():
        at_branches = {
            prefix: reference.network(input_ids=torch.tensor([reference.ids(prompt) + prefix])).logits[0, -1, next_]
            for prefix, next_ in ((prefix, list(next_)) for prefix, next_ in tree.branches.items())
        }
    wanted = tree.log_probabilities({prefix: scores.numpy() for prefix, scores in at_branches.items()})
    assert np.abs(np.exp(found) - np.exp(wanted)).max() < 1e-3


@pytest.mark.parametrize("fresh", [True, False])
def test_greedy_tokens_and_their_log_probabilities_are_torchs(runtime: Runtime, reference: Torch, fresh: bool) -> None:
    image = png(picture(2))
    answer = runtime.answer(PROMPT, image, marker=MARKER, max_new_tokens=6, fresh=fresh)
    ids = reference.prompt_ids(PROMPT)
    for token, log_probability, margin in zip(answer.tokens, answer.log_probabilities, answer.margins, strict=True):
        logs = torch.from_numpy(reference.logits(ids, picture(2))).log_softmax(-1)
        best, second = logs.topk(2).values.tolist()
        assert token == int(logs.argmax())
        assert log_probability == pytest.approx(best, abs=1e-3)
        assert margin == pytest.approx(best - second, abs=2e-3)
        ids += (token,)
    assert len(answer.tokens) == 6 and not answer.ended
    assert 0 < answer.prompt_seconds <= answer.seconds < 60


def test_a_fresh_answer_reads_the_image_anew_and_another_does_not(
    runtime: Runtime, reference: Torch, monkeypatch: pytest.MonkeyPatch
) -> None:
    reused: list[int] = []
    complete = runtime._complete

    def noted(*arguments: Any, **options: Any) -> Any:
        said = complete(*arguments, **options)
        reused.append(said["timings"]["cache_n"])
        return said

    monkeypatch.setattr(runtime, "_complete", noted)
    for fresh in (True, True, False):
        runtime.answer(PROMPT, png(picture(0)), marker=MARKER, max_new_tokens=1, fresh=fresh)
    runtime.answer(PROMPT, png(picture(1)), marker=MARKER, max_new_tokens=1, fresh=False)
    assert reused[:2] == [0, 0] and reused[2] > 2 * TILE_TOKENS
    before_the_image = len(reference.ids(PROMPT.split(MARKER)[0] + BEFORE))
    assert reused[3] <= before_the_image  # another image is never taken for the last one


def test_an_end_token_ends_the_answer_and_stands_in_its_tokens_alone(
    checkpoint: Path, reference: Torch, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    ids = reference.prompt_ids(PROMPT)
    best = int(reference.logits(ids, picture(0)).argmax())
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in checkpoint.iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    weights = load_file(checkpoint / "model.safetensors")
    weights["lm_head.weight"][reference.end] = weights["lm_head.weight"][best] * 1.5
    save_file(weights, changed / "model.safetensors", {"format": "pt"})
    text, projector = write_gguf(changed, tmp_path / "gguf", "f32")
    with Runtime(text.path, projector.path, threads=1, context=512) as runtime:
        answer = runtime.answer(PROMPT, png(picture(0)), marker=MARKER, max_new_tokens=6)
    assert answer.ended and answer.tokens == (reference.end,) and answer.text == ""
    assert len(answer.log_probabilities) == len(answer.margins) == 1


@pytest.mark.parametrize("prompt", ["What is this?", f"{MARKER} and {MARKER}"], ids=["missing", "doubled"])
def test_an_image_without_exactly_one_marker_is_refused(runtime: Runtime, reference: Torch, prompt: str) -> None:
    with pytest.raises(ModelError, match="times for 1 images"):
        runtime.answer(prompt, png(picture(0)), marker=MARKER, max_new_tokens=1)
    with pytest.raises(ModelError, match="times for 1 images"):
        runtime.score_labels(prompt, png(picture(0)), marker=MARKER, tree=reference.tree("1", "2"))


def test_a_marker_without_an_image_is_refused(runtime: Runtime) -> None:
    with pytest.raises(ModelError, match="1 times for 0 images"):
        runtime.answer(PROMPT, None, marker=MARKER, max_new_tokens=1)


def test_bytes_that_are_no_image_are_refused_and_the_runtime_lives_on(runtime: Runtime) -> None:
    with pytest.raises(ModelError, match=r"llama\.cpp refused"):
        runtime.answer(PROMPT, b"no image", marker=MARKER, max_new_tokens=1)
    assert runtime.answer(PROMPT, png(picture(0)), marker=MARKER, max_new_tokens=1).tokens


def test_a_prompt_or_an_answer_beyond_the_context_is_an_error(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="exceeds the available context") as caught:
        runtime.answer(PROMPT + "1" * 1000, png(picture(0)), marker=MARKER, max_new_tokens=1)
    assert "context of more than 1" in (caught.value.fix or "")
    complete = runtime._complete
    monkeypatch.setattr(runtime, "_complete", lambda *a, **b: complete(*a, **b, ignore_eos=True))
    with pytest.raises(ModelError, match="context of 512"):
        runtime.answer(PROMPT, png(picture(0)), marker=MARKER, max_new_tokens=1000)


def test_a_text_model_alone_refuses_an_image(files: tuple[Path, Path]) -> None:
    with Runtime(files[0], None, threads=1) as runtime, pytest.raises(ModelError, match="cannot see") as caught:
        runtime.answer(PROMPT, png(picture(0)), marker=MARKER, max_new_tokens=1)
    assert "mmproj-" in (caught.value.fix or "")


def test_files_that_cannot_be_loaded_are_named_with_llama_cpps_words(files: tuple[Path, Path], tmp_path: Path) -> None:
    before = set(psutil.Process().children())
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match="no such file") as caught:
        Runtime(files[0], tmp_path / "mmproj.gguf", threads=1)
    assert "mmproj.gguf" in (caught.value.where or "")
    for pair in [(broken, None), (files[0], broken), (files[1], None), (files[0], files[0])]:
        with pytest.raises(ModelError, match="could not load") as caught:
            Runtime(*pair, threads=1)
        assert str(pair[1] or pair[0]) in (caught.value.where or "")
        assert " E " in caught.value.found  # the lines that llama.cpp calls errors
    assert set(psutil.Process().children()) == before


def test_without_the_package_the_error_says_what_to_install(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match="xllamacpp") as caught:
        Runtime(*files, threads=1)
    assert caught.value.fix == "pip install 'visiontune[gguf]'"


def test_only_who_holds_the_key_is_answered(runtime: Runtime) -> None:
    request = urllib.request.Request(f"http://{runtime._server._address}/tokenize", b'{"content": "1"}')
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=5)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc whether the child has stopped")
def test_a_child_that_dies_while_asked_is_a_clear_error_at_once(files: tuple[Path, Path]) -> None:
    with Runtime(*files, threads=1, context=512) as runtime:
        child = halted(runtime)  # so that the request is under way when the child dies
        threading.Timer(0.3, child.kill).start()
        started = time.monotonic()
        with pytest.raises(ModelError, match="exit code -9") as caught:
            runtime.answer(PROMPT, png(picture(0)), marker=MARKER, max_new_tokens=1)
        assert time.monotonic() - started < 5
        assert "srv" in caught.value.found  # the last lines of llama.cpp's log
        with pytest.raises(ModelError, match="exit code -9"):
            runtime.peak_memory_bytes()
    assert not psutil.pid_exists(child.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc whether the child has stopped")
def test_a_child_that_does_not_answer_is_an_error_and_is_ended(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Runtime(*files, threads=1, context=512) as runtime:
        pid = halted(runtime).pid
        monkeypatch.setattr(llama_server, "REQUEST_SECONDS", 0.2)
        monkeypatch.setattr(llama_server, "END_SECONDS", 0.2)
        with pytest.raises(ModelError, match=r"did not answer within"):
            runtime.tokenize("1")
    assert not psutil.pid_exists(pid)


def test_closing_leaves_neither_a_child_nor_a_file(files: tuple[Path, Path]) -> None:
    with Runtime(*files, threads=1, context=512) as runtime:
        pid, log = runtime._server.process.pid, runtime._server.log
        assert psutil.pid_exists(pid) and log.exists()
        assert 1e6 < runtime.peak_memory_bytes() < 4e9
        assert 0 < runtime.load_seconds < 60 and runtime.version.startswith("xllamacpp 20")
    assert not psutil.pid_exists(pid) and not log.parent.exists()
    runtime.close()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_parent_that_is_killed_takes_the_child_with_it(files: tuple[Path, Path]) -> None:
    code = f"""
import time
from pathlib import Path
from visiontune.exports.runtime import Runtime
runtime = Runtime(Path({str(files[0])!r}), Path({str(files[1])!r}), threads=1, context=512)
print(runtime._server.process.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE  # where nobody collects orphans


def test_the_template_inside_the_file_shows_what_llama_cpp_makes_of_it(
    checkpoint: Path, runtime: Runtime, tmp_path: Path
) -> None:
    # The template of SmolVLM writes "User:" before an image; llama.cpp shows it a text, so it writes "User: ".
    asked = PROMPT.replace("What is this?", "Hello")
    assert runtime.chat_prompt("Hello") == asked.replace("User:", "User: ")
    template = asked.replace(f"{MARKER}Hello", "{% for part in messages[0]['content'] %}{{ part['text'] }}{% endfor %}")
    text, projector = write_gguf(checkpoint, tmp_path, "f32", with_template=template)
    with Runtime(text.path, projector.path, threads=1, context=512) as other:
        assert other.chat_prompt("Hello") == asked
    with Runtime(text.path, None, threads=1, context=512) as other:
        assert other.chat_prompt("Hello") == asked.replace(MARKER, "")
