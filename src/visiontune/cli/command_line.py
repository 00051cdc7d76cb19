"""From the arguments of the command line to a verb, and from its answer or error to what is printed."""

import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError

from visiontune.cli.answer import Answer
from visiontune.cli.answer_verbs import compare, evaluate, predict
from visiontune.cli.data_verbs import inspect, prepare
from visiontune.cli.run_verbs import demo, doctor, export, pause, resume, train, verify
from visiontune.errors import RecipeError, VisiontuneError
from visiontune.machine import is_first_process

USAGE_ERROR = 2

app = App(
    name="visiontune",
    help="Turn your own images and annotations into a fine-tuned vision model, and prove each step.\n\n"
    "Every verb takes --json (one object on standard output) and --debug (the traceback of an error).",
    help_format="plaintext",
    result_action="return_value",
)
VERBS = {
    verb.__name__: verb
    for verb in (inspect, prepare, train, resume, pause, evaluate, compare, predict, export, verify, demo, doctor)
}
for verb in VERBS.values():
    app.command(verb)


def recipe_options(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Take `--section.field VALUE` out of the arguments; values are read as YAML: 8, true, null have types. Text
    is taken as it stands. Raises RecipeError for a value that is missing or is no YAML."""
    rest: list[str] = []
    overrides: dict[str, Any] = {}
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, equals, value = argument.partition("=")
        if not (name.startswith("--") and "." in name):
            rest.append(argument)
            continue
        if not equals:
            if not waiting:
                raise RecipeError(f"'{name}' has no value.", fix=f"{name} VALUE")
            value = waiting.pop(0)
        field = name.removeprefix("--").replace("-", "_")
        overrides[field] = _value(field, value)
    return rest, overrides


def _value(field: str, text: str) -> Any:
    import yaml

    from visiontune.recipe import sections

    section, _, inner = field.rpartition(".")
    kind = sections().get(section)
    facts = None if kind is None else kind.model_fields.get(inner)
    if facts is not None and facts.annotation in (str, str | None):
        return None if facts.annotation is not str and text in ("", "~", "null", "Null", "NULL") else text
    try:
        parsed = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of a date that is none
        raise RecipeError(
            f"The value of '{field}' is not YAML: {text!r}.", where=f"--{field}", fix="mend or quote it"
        ) from error
    # YAML 1.1 reads 1e-3 as text; a person means the number.
    return _number(parsed) if isinstance(parsed, str) else parsed


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, or with the exit code of the error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json, debug = "--json" in given, "--debug" in given
    given = [argument for argument in given if argument not in ("--json", "--debug")]
    sys.exit(_run(given, as_json, debug))


def _run(given: list[str], as_json: bool, debug: bool) -> int:
    try:
        rest, overrides = recipe_options(given)
        command, bound, _ = app.parse_args(rest, print_error=False, exit_on_error=False)
        if overrides:
            if command is not train:
                raise RecipeError(f"'--{next(iter(overrides))}' is a recipe field; only `train` takes those.")
            bound.arguments["overrides"] = overrides
        answer = command(*bound.args, **bound.kwargs)
    except CycloptsError as error:
        verb = f"{given[0]} " if given and given[0] in VERBS else ""
        _complain({"found": str(error), "where": None, "fix": f"visiontune {verb}--help"}, as_json)
        return USAGE_ERROR
    except VisiontuneError as error:
        if debug:
            traceback.print_exc()
        _complain(_parts(error), as_json)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        found = f"visiontune met an error it did not expect: {type(error).__name__}: {error}"
        _complain({"found": found, "where": None, "fix": "run again with --debug and report what it prints"}, as_json)
        return 70
    if not isinstance(answer, Answer):
        return 0
    failed = None if answer.error is None else _parts(answer.error)
    if is_first_process():
        value = answer.value if failed is None else {**answer.value, "error": failed}
        text = json.dumps(value, ensure_ascii=False, allow_nan=False) if as_json else answer.text
        try:
            if text:
                print(text, flush=True)
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if failed is not None:
            _complain(failed, as_json=False)
    return 0 if answer.error is None else answer.error.exit_code


def _parts(error: VisiontuneError) -> dict[str, str | None]:
    return {"found": error.found, "where": error.where, "fix": error.fix}


def _complain(error: dict[str, str | None], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": error}, ensure_ascii=False))
    print(f"error: {VisiontuneError(error['found'] or '', where=error['where'], fix=error['fix'])}", file=sys.stderr)
