"""Each named part of a model frozen, trained with LoRA, or trained in full; the count is checked, never guessed.

Parts are module paths of the loaded model, never substrings of parameter names. LoRA is plain PEFT; `full` beside LoRA
becomes `modules_to_save`, by full path of the modules that hold the weights.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from visiontune.errors import ModelError, RecipeError
from visiontune.recipe_sections import Lora, PartState

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER = "default"  # the name PEFT gives to a model's only adapter


@dataclass(frozen=True)
class Part:
    """A named group of modules of a model, by their paths.

    `loose` are parameters that stand on a module which is not the part's, by their paths. `stacked` are those of its
    parameters that hold the weights of several linear layers, such as a layer's experts, (layers, out, in): LoRA
    adapts each of them.
    """

    name: str
    modules: tuple[str, ...]
    loose: tuple[str, ...] = ()
    stacked: tuple[str, ...] = ()

    def holds(self, path: str) -> bool:
        """Whether a module or parameter of the plain model belongs to this part."""
        return path in self.loose or any(path == module or path.startswith(f"{module}.") for module in self.modules)


@dataclass(frozen=True)
class PartSummary:
    """How much of a part is trained. Counts of numbers, not of tensors; adapters count as parameters."""

    part: str
    state: PartState
    modules: int
    parameters: int
    trainable: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def plain_name(name: str) -> str:
    """The name that a parameter of a PEFT model has in the plain model; adapter weights keep their own suffix."""
    name = name.removeprefix("base_model.model.")
    for inserted in (".base_layer", ".original_module", f".modules_to_save.{ADAPTER}"):
        name = name.replace(inserted, "")
    return name


def part_of(parts: Iterable[Part], name: str) -> str:
    """The part that a parameter or buffer belongs to; raises ModelError if none does."""
    plain = plain_name(name)
    for part in parts:
        if part.holds(plain):
            return part.name
    raise ModelError(f"'{plain}' belongs to no part of the model.", fix="add its module to the adapter's parts")


def check_parts(network: nn.Module, parts: tuple[Part, ...], states: Mapping[str, PartState]) -> None:
    """Every weight in exactly one part, no empty part, and a state for each; raises ModelError or RecipeError."""
    names = [part.name for part in parts]
    unknown, missing = sorted(set(states) - set(names)), sorted(set(names) - set(states))
    if unknown or missing:
        raise RecipeError(
            f"The recipe's parts do not fit the model: unknown {unknown}, missing {missing}.",
            where="parts",
            fix=f"the parts of this model are {', '.join(names)}",
        )
    found = dict.fromkeys(names, 0)
    for name, _ in network.named_parameters(remove_duplicate=False):
        holders = [part.name for part in parts if part.holds(name)]
        if len(holders) != 1:
            raise ModelError(f"Weight '{name}' belongs to {len(holders)} parts ({holders}); it must be exactly one.")
        found[holders[0]] += 1
    if empty := [name for name, count in found.items() if not count]:
        raise ModelError(f"Parts without any weight: {', '.join(empty)}.", fix="check the adapter's module paths")


def apply_states(
    network: nn.Module, parts: tuple[Part, ...], states: Mapping[str, PartState], lora: Lora, seed: int
) -> "PeftModel | None":
    """Freeze and adapt the network in place; returns the PEFT model where a part is trained with LoRA.

    New adapter weights depend on `seed` only. Raises RecipeError when nothing would be trained.
    """
    check_parts(network, parts, states)
    if all(state == "frozen" for state in states.values()):
        raise RecipeError(
            "Every part is frozen: nothing would be trained.", where="parts", fix="set one to lora or full"
        )
    by_name = {part.name: part for part in parts}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(states[part_of(parts, name)] == "full")
    adapted = [by_name[name] for name, state in states.items() if state == "lora"]
    if not adapted:
        return None
    full = [by_name[name] for name, state in states.items() if state == "full"]
    return _add_lora(network, adapted, full, lora, seed)


def without_cpu_kernels() -> None:
    """Leave unsaid that a kernel for weights in four bits is not there on the CPU; call it before PEFT is imported.

    PEFT imports bitsandbytes wherever that is installed, and bitsandbytes says so then. Here weights in four bits are
    computed with on CUDA alone.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_of_no_cpu_kernel)


def _is_of_no_cpu_kernel(record: logging.LogRecord) -> bool:
    return "Failed to load CPU gemm_4bit_forward" not in record.getMessage()


def _add_lora(network: nn.Module, adapted: list[Part], full: list[Part], lora: Lora, seed: int) -> "PeftModel":
    without_cpu_kernels()
    from peft import LoraConfig, PeftModel, get_peft_model

    targets: list[str] = []
    stacked: list[str] = []
    if strange := sorted(set(lora.layers) - {part.name for part in adapted}):
        raise RecipeError(
            f"Layers are named of '{strange[0]}', which is no part that LoRA adapts.",
            where="lora.layers",
            fix=f"parts set to lora: {', '.join(part.name for part in adapted)}",
        )
    for part in adapted:
        linear = [p for p, m in network.named_modules() if isinstance(m, nn.Linear) and part.holds(p)]
        if not linear and not part.stacked:
            raise RecipeError(
                f"Part '{part.name}' has no linear layer for LoRA.", where="parts", fix="use full or frozen"
            )
        named = _layers_named([*linear, *part.stacked], part, lora)
        targets += [path for path in named if path not in part.stacked]
        stacked += [path for path in named if path in part.stacked]
    if stacked and lora.decomposed:
        raise RecipeError(
            f"The experts' weights, {stacked[0]} and others, are not decomposed: PEFT has no DoRA for stacked weights.",
            where="lora.decomposed",
            fix="leave it off, or leave those weights out with lora.layers",
        )
    for part in full:
        if part.loose:
            raise RecipeError(
                f"Part '{part.name}' cannot be trained in full beside LoRA: {', '.join(part.loose)} stand on a module "
                "that is not the part's, and PEFT saves whole modules.",
                where=f"parts.{part.name}",
                fix="use lora or frozen for it, or full and frozen for all parts",
            )
    saved: list[str] = []
    for path, module in network.named_modules():  # a module comes before those inside it
        has_weights = next(module.parameters(recurse=False), None) is not None
        inside = any(path.startswith(f"{outer}.") for outer in saved)
        if has_weights and not inside and any(part.holds(path) for part in full):
            saved.append(path)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]  # PEFT divides by it; fractions are fine
        # PEFT refuses dropout beside stacked weights; the linear layers get theirs below.
        lora_dropout=0.0 if stacked else lora.dropout,
        target_modules=targets,
        target_parameters=stacked or None,
        modules_to_save=saved or None,
        ensure_weight_tying=bool(saved) and _is_tied(network),
        bias="none",
        use_rslora=lora.stabilised,
        use_dora=lora.decomposed,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft = get_peft_model(network, config)  # pyright: ignore[reportArgumentType]
    if not isinstance(peft, PeftModel):
        raise ModelError(f"PEFT made a {type(peft).__name__}, not a PeftModel.")
    # A stacked weight's adapter stands on its module, one around the other where there are several.
    wanted = Counter([*targets, *(path.rpartition(".")[0] for path in stacked)])
    adapted_now = Counter(
        plain_name(n).split(".lora_A")[0] for n, _ in peft.named_parameters() if f".lora_A.{ADAPTER}" in n
    )
    if adapted_now != wanted:
        raise ModelError(f"LoRA was put on {adapted_now.total()} weights; {wanted.total()} were asked for.")
    if stacked and lora.dropout:
        for path in targets:
            layer: Any = network.get_submodule(path)
            layer.lora_dropout[ADAPTER] = nn.Dropout(lora.dropout)
    return peft


def _layers_named(paths: Sequence[str], part: Part, lora: Lora) -> list[str]:
    """Those of a part's layers and stacked weights that the recipe names; all where it names none of this part."""
    wanted = lora.layers.get(part.name)
    if wanted is None:
        return list(paths)
    there = {path.rpartition(".")[2] for path in paths}
    if unknown := [name for name in wanted if name not in there]:
        raise RecipeError(
            f"Part '{part.name}' has no layer called {unknown[0]!r}.",
            where="lora.layers",
            fix=f"its layers: {', '.join(sorted(there))}",
        )
    return [path for path in paths if path.rpartition(".")[2] in wanted]


def save_adapter(peft: "PeftModel", folder: Path) -> None:
    """Write the adapter to `folder` so that plain PEFT loads it upon the base model; ModelError if it would not.

    PEFT renames the weights of an adapter as transformers renames those of the base checkpoint. Where a pattern fits
    the new names too, as DeepSeek-OCR's `model.layers.` fits in `language_model.layers.`, they are renamed once too
    often and the adapter is left out, with no more than a warning. Such names are written as the base checkpoint has
    them.
    """
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
    from safetensors.torch import load_file, save_file
    from transformers.core_model_loading import revert_weight_conversion

    prefix = "base_model.model."
    network: Any = peft.get_base_model()

    def as_loaded(name: str) -> str:
        (loaded,) = convert_peft_adapter_state_dict_for_transformers(
            peft, peft.peft_config[ADAPTER], {name: written[name]}
        )
        return loaded

    peft.save_pretrained(str(folder))
    file = folder / "adapter_model.safetensors"
    written = load_file(file)
    renamed = {}
    for name in list(written):
        if as_loaded(name) == name:
            continue
        (reverted,) = revert_weight_conversion(network, {name.removeprefix(prefix): written[name]})
        written[prefix + reverted] = written.pop(name)
        renamed[prefix + reverted] = name
    if lost := [name for stored, name in renamed.items() if as_loaded(stored) != name]:
        raise ModelError(f"PEFT would not find {len(lost)} weights of the adapter again, the first is {lost[0]}.")
    if renamed:
        save_file(written, file, metadata={"format": "pt"})


def _is_tied(network: nn.Module) -> bool:
    return len(list(network.parameters())) != len(list(network.named_parameters(remove_duplicate=False)))


def train_in_float32(module: nn.Module) -> None:
    """Give trained weights float32, whatever the frozen ones have: updates below a bf16 step must not vanish."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def set_training_mode(
    module: nn.Module, network: nn.Module, parts: tuple[Part, ...], states: Mapping[str, PartState]
) -> None:
    """Train mode for what is trained; frozen parts stay in eval mode, so that their dropout and statistics rest."""
    module.train()
    for part in parts:
        if states[part.name] == "frozen":
            for path in part.modules:
                network.get_submodule(path).eval()


def trained_tensors(
    module: nn.Module, parts: tuple[Part, ...], states: Mapping[str, PartState]
) -> dict[str, torch.Tensor]:
    """What a run may change, by name: trainable parameters, and persistent buffers of parts trained in full."""
    tensors = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    persistent = set(module.state_dict().keys())
    for name, buffer in module.named_buffers():
        if name in persistent and states[part_of(parts, name)] == "full":
            tensors[name] = buffer.detach()
    return tensors


def frozen_tensors(
    module: nn.Module, parts: tuple[Part, ...], states: Mapping[str, PartState]
) -> dict[str, torch.Tensor]:
    """What a run must not change: frozen weights, and the buffers of parts that are not trained in full."""
    tensors = {name: p.detach() for name, p in module.named_parameters() if not p.requires_grad}
    for name, buffer in module.named_buffers():
        if states[part_of(parts, name)] != "full":
            tensors[name] = buffer.detach()
    return tensors


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """One hash over names, types, shapes and bytes of tensors, whatever device they are on."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def summarise(module: nn.Module, parts: tuple[Part, ...], states: Mapping[str, PartState]) -> list[PartSummary]:
    """How many parameters each part has and trains."""
    named = [(part_of(parts, name), p) for name, p in module.named_parameters()]
    return [
        PartSummary(
            part=part.name,
            state=states[part.name],
            modules=len(part.modules),
            parameters=sum(_weights(p) for name, p in named if name == part.name),
            trainable=sum(p.numel() for name, p in named if name == part.name and p.requires_grad),
        )
        for part in parts
    ]


def _weights(parameter: nn.Parameter) -> int:
    """How many weights a tensor holds; of those in four bits a byte holds two."""
    return parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)
