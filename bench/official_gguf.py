"""Record what llama.cpp's own converter and quantiser make of the models in tests/exports/models_by_formula.py.

It needs an unpacked source distribution of llama-cpp-python, which holds llama.cpp's converter, and two packages that
visiontune does not use: sentencepiece, which that converter imports, and cyllama, which has llama.cpp's quantiser.

    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36 && tar xf llama_cpp_python-0.3.36.tar.gz
    pip install --no-deps --target EXTRA sentencepiece==0.2.3 cyllama==0.2.18
    python bench/official_gguf.py llama_cpp_python-0.3.36 --packages EXTRA

Without a folder it says so and ends: the record is part of the repository, and tests need nothing else.
"""

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1] / "tests" / "exports"
RECORD = HERE / "official_gguf.json"
OUTTYPES = ("f32", "f16", "bf16", "q8_0")
K_QUANTS = {"q4_0": 2, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18}  # as llama.cpp numbers file types


def load(name: str, path: Path) -> Any:
    """A module from its file."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Convert and quantise every model with llama.cpp's own tools and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", help="unpacked llama-cpp-python, or llama.cpp itself")
    parser.add_argument("--packages", type=Path, action="append", default=[], help="a folder of pip install --target")
    arguments = parser.parse_args()
    if arguments.source is None:
        print("nothing recorded: name a folder with llama.cpp's sources (see --help)")
        return
    tree = arguments.source.resolve()
    if (tree / "vendor" / "llama.cpp").is_dir():
        tree = tree / "vendor" / "llama.cpp"
    sys.path[:0] = [str(tree), str(tree / "gguf-py")]
    sys.path += [str(folder) for folder in arguments.packages]
    models = load("models_by_formula", HERE / "models_by_formula.py")
    converter = load("convert_hf_to_gguf", tree / "convert_hf_to_gguf.py")
    import cyllama.llama.llama_cpp as llama_cpp
    from conversion import base

    converted: dict[str, Any] = {}
    quantised: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder, path, smaller = (Path(scratch) / name for name in ("model", "model.gguf", "smaller.gguf"))
        for name, case in (models.CASES | models.LAYERED_CASES).items():
            models.build(case, folder)
            # The converter knows tokenizers by a hash of what they make of a text; these are not among them.
            base.TextModel.get_vocab_base_pre = lambda self, tokenizer, case=case: case.words
            for outtype in OUTTYPES if name in models.CASES else ["f32"]:
                for kind in ["text"] if case.family == "llama" else ["text", "mmproj"]:
                    sys.argv = ["convert", str(folder), "--outfile", str(path), "--outtype", outtype]
                    sys.argv += ["--mmproj"] if kind == "mmproj" else []
                    converter.main()
                    made = path if path.exists() else path.with_name(f"mmproj-{path.name}")
                    if name in models.CASES:
                        converted.setdefault(name, {}).setdefault(outtype, {})[kind] = models.described(made)
                        made.unlink()
            for quantisation, file_type in K_QUANTS.items() if name in models.LAYERED_CASES else ():
                parameters = llama_cpp.LlamaModelQuantizeParams()
                parameters.ftype, parameters.nthread = file_type, 1
                llama_cpp.model_quantize(str(path), str(smaller), parameters)
                quantised.setdefault(name, {})[quantisation] = models.described(smaller)["tensors"]
            shutil.rmtree(folder)
    record = {"converted": converted, "quantised": quantised}
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{RECORD}: {len(converted)} + {len(quantised)} models, {RECORD.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
