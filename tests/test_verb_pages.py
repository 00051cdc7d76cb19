"""docs/ has a page for each verb: its options, its errors and its examples are those of the code."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import visiontune
from visiontune import errors
from visiontune.cli.command_line import USAGE_ERROR, app, recipe_options
from visiontune.data.sample import Prediction, Text
from visiontune.metrics.average_precision import FIGURES
from visiontune.metrics.predicted_session import PredictedSession
from visiontune.metrics.response_scores import score_responses
from visiontune.metrics.text import PER_CLASS, score_texts
from visiontune.recipe import check_names, sections

ROOT = Path(__file__).parent.parent
VERBS = [name for name in app if not name.startswith("-")]
PAGES = [ROOT / "README.md", ROOT / "examples/README.md", *sorted((ROOT / "docs").glob("*.md"))]
UNEXPECTED, INTERRUPTED = 70, 130


def page_of(verb: str) -> str:
    return (ROOT / f"docs/{verb}.md").read_text(encoding="utf-8")


def cells(text: str, heading: str) -> list[str]:
    """The first cells of the first table below a heading."""
    section = re.split(r"^##+ ", text.split(f"\n## {heading}\n", 1)[1], flags=re.M)[0]
    rows = [re.split(r"(?<!\\)\|", line)[1].strip() for line in section.splitlines() if line.startswith("|")]
    return rows[2:]


def options(verb: str) -> set[str]:
    """What the command line takes: options by their names, what stands without a name in capitals."""
    found = set()
    for argument in app[verb].assemble_argument_collection():
        if argument.parse:
            name = argument.names[0]
            found.add(name if argument.index is None else name.removeprefix("--").upper())
    return found


def test_every_verb_stands_in_the_list_of_verbs_and_has_a_page() -> None:
    listed = cells(
        (ROOT / "docs/verbs.md").read_text(encoding="utf-8").replace("# The verbs", "\n## The verbs"), "The verbs"
    )
    assert listed == [f"[{verb}]({verb}.md)" for verb in VERBS]
    for verb in VERBS:
        assert page_of(verb).startswith(f"# {verb}: ")


@pytest.mark.parametrize("verb", VERBS)
def test_the_page_of_a_verb_lists_the_options_that_it_has_and_no_others(verb: str) -> None:
    wanted = options(verb)
    if not wanted:
        assert "It has none" in page_of(verb)
        return
    listed = [re.match(r"`(--[a-z-]+|[A-Z]+)\b", cell) for cell in cells(page_of(verb), "Options")]
    assert None not in listed
    assert sorted(match[1] for match in listed if match) == sorted(wanted)


def test_every_option_that_a_page_names_exists_in_some_verb() -> None:
    known = set().union(*map(options, VERBS)) | {"--json", "--debug", "--help", "--nproc-per-node"}
    for verb in VERBS:
        for option in re.findall(r"(?<![\w-])--[a-z][a-z_-]*(?:\.[a-z_.]+)?", page_of(verb)):
            if "." not in option:
                assert option in known, f"{verb}.md names {option}"
            elif option != "--section.field":
                check_names([option.removeprefix("--").rstrip(".")])


def messages() -> list[str]:
    """The texts that the code can say, each piece of one that is put together by itself."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "src").rglob("*.py"))
    nodes = (node for tree in trees for node in ast.walk(tree))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_every_error_that_a_page_quotes_is_one_that_the_code_raises() -> None:
    said = messages()
    for verb in VERBS:
        if "\n## What may go wrong\n" in page_of(verb):
            for cell in cells(page_of(verb), "What may go wrong"):
                quoted = cell.strip("`").strip()
                assert any(quoted in one for one in said), f"{verb}.md quotes {quoted!r}"


def test_the_exit_codes_are_those_of_the_errors() -> None:
    page = (ROOT / "docs/verbs.md").read_text(encoding="utf-8")
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    wanted = {0, USAGE_ERROR, UNEXPECTED, INTERRUPTED, *(kind.exit_code for kind in kinds)}
    assert {int(cell) for cell in re.findall(r"^\| (\d+) \|", page, re.M)} == wanted


def calls(code: str) -> Iterator[tuple[str, ast.Call]]:
    """The calls of visiontune.NAME(...), each with its name."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[0] == "visiontune":
            yield ast.unparse(node.func).rpartition(".")[2], node


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "demo"])
def test_the_python_of_a_page_calls_what_exists_as_it_takes_it(verb: str) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", page_of(verb), re.M | re.S)
    compile(code, f"docs/{verb}.md", "exec")
    called = set()
    for name, call in calls(code):
        called.add(name)
        given = {keyword.arg: None for keyword in call.keywords if keyword.arg}
        signature = inspect.signature(getattr(visiontune, name))
        spread = len(given) < len(call.keywords)  # some are in a **mapping
        (signature.bind_partial if spread else signature.bind)(*call.args, **given)
    assert verb in called
    texts = [str(node.value) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    check_names([text for text in texts if "." in text and text.partition(".")[0] in sections()])


def commands(path: Path) -> list[str]:
    """The command lines in the fenced blocks of a page."""
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [found[1] for line in lines if (found := re.match(r"(?:torchrun .*-m )?visiontune (.*)", line))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_every_page_is_understood(path: Path) -> None:
    for line in commands(path):
        rest, overrides = recipe_options([part for part in shlex.split(line) if part not in ("--json", "--debug")])
        app.parse_args(rest, print_error=False, exit_on_error=False)
        check_names(list(overrides))


def headings(path: Path) -> set[str]:
    """The anchors of a page as GitHub makes them."""
    found = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_between_pages_leads_somewhere(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#?([^)]*)\)", path.read_text(encoding="utf-8")):
        page = path.parent / target if target else path
        assert page.exists(), f"{path.name} links to {target}"
        assert not anchor or anchor in headings(page), f"{path.name} links to {target}#{anchor}"


def named(text: str, heading: str) -> set[str]:
    return {name for cell in cells(text, heading) for name in re.findall(r"`([\w.]+)`", cell)}


def test_the_page_on_evaluation_lists_the_metrics_of_objects_and_of_responses() -> None:
    page = page_of("evaluate")
    assert named(page, "Metrics of boxes and masks") == set(FIGURES)
    generator = np.random.default_rng(0)
    counts = generator.poisson(0.5, (120, 2)).astype(np.float64)
    places = np.arange(120)
    session = PredictedSession(
        "s", ("a", "b"), counts + 0.5, counts, np.ones((120, 2), bool), places // 20, places // 60, places % 20
    )  # fmt: skip
    assert named(page, "Metrics of responses") == set(score_responses([session]).metrics)


def test_the_page_on_evaluation_lists_the_metrics_of_labels() -> None:
    answers = [
        Prediction(str(i), (), Text(answer), {"at_length_limit": 0.0}, truth=Text("cat"), abstained=False)
        for i, answer in enumerate(("cat", "dog"))
    ]
    found = set(score_texts(answers, ["cat", "dog"]).metrics) - {"exact_match", "normalised_match", "at_length_limit"}
    text = page_of("evaluate").split("Where the answers are labels")[1]
    assert named("\n## Labels\n" + text, "Labels") == found | {f"{kind}.LABEL" for kind in PER_CLASS}
