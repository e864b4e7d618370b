"""PyTorch (diffusers) checkpoint -> a checkpoint directory of ours, streaming."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from convert.choices import DTYPES, ROTATIONS, WEIGHTS
from convert.errors import ConversionError
from convert.lora import LoraChoice, fuse
from convert.lora_reader import open_lora
from convert.nvfp4_dialects import PackedInfo, cropped
from convert.reader import Source, open_source
from convert.rules import Assignment, RuleTable, collapse
from convert.safetensors_file import TensorInfo
from convert.tables import table_for
from convert.values import keep_packed, kept_dtype, store
from sixbit_jax import components
from sixbit_jax.checkpoint import (
    CheckpointWriter,
    Header,
    ParameterSpec,
    Stack,
    parameter_shapes,
    summarize,
)
from sixbit_jax.methods.weights import weight_recipe
from sixbit_jax.quantizers.nvfp4 import NVFP4Recipe
from sixbit_jax.quantizers.storage import WeightRecipe, rotation_of
from sixbit_jax.sampling import schedulers

# Weights that are packed already are kept, where the network has them quantized.
_AS_PACKED = NVFP4Recipe(rotation=0)


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
      destination: the directory that was made.
      model_class: class name of the network.
      num_parameters: number of values.
      keys_read: tensors that became parameters.
      keys_quantized: how many of them are stored in a compressed format.
      keys_ignored: tensors that were ignored by name.
      source_dtypes: number of tensors by dtype.
      source_bytes: bytes of the source's files of weights.
      written_bytes: bytes of the new directory.
      seconds: wall time.
      packed: dialect and layout of weights that were packed already, who named it, and
        what the weights confirm of it; None if none were.
      loras: what was added to the weights, a record per file.
      left: what else the files hold (`Source.left`).
      unrotated: weights of sites that are stored without the rotation that was asked
        for, because it does not divide their width.
    """

    destination: Path
    model_class: str
    num_parameters: int
    keys_read: int
    keys_quantized: int
    keys_ignored: tuple[str, ...]
    source_dtypes: Mapping[str, int]
    source_bytes: int
    written_bytes: int
    seconds: float
    packed: Mapping[str, Any] | None = None
    loras: Sequence[Mapping[str, Any]] = ()
    left: Mapping[str, Any] = field(default_factory=dict)
    unrotated: tuple[str, ...] = ()

    def __str__(self) -> str:
        dtypes = ", ".join(f"{n} {d}" for d, n in sorted(self.source_dtypes.items()))
        lines = [
            f"{self.model_class}: {self.num_parameters:,} parameters from "
            f"{self.keys_read} tensors ({dtypes}); {self.keys_quantized} now quantized",
            f"{self.source_bytes:,} bytes read, {self.written_bytes:,} written "
            f"({self.written_bytes / self.source_bytes:.1%}) in {self.seconds:.1f} s: "
            f"{self.destination}",
        ]
        if self.keys_ignored:
            lines.append("ignored by name: " + ", ".join(collapse(self.keys_ignored)))
        if self.packed is not None:
            lines.append(_said_of_packed(self.packed))
        lines += [
            f"LoRA {lora['file']} at strength {lora['strength']:g}: "
            f"{lora['parameters_changed']} parameters changed, all "
            f"{lora['keys_read']} keys used"
            for lora in self.loras
        ]
        if others := self.left.get("others"):
            said = ", ".join(f"{kind} ({n} tensors)" for kind, n in others.items())
            lines.append(f"not taken, of other components: {said}")
        for name, record in self.left.get("state_dicts", {}).items():
            rest = ", ".join(f"{n} ({count})" for n, count in record["left"].items())
            lines.append(
                f"{name}: took {record['taken'] or 'the top level'}, left "
                f"{rest or 'nothing'}"
            )
        if self.unrotated:
            lines.append(
                "stored without rotation, which does not divide their width: "
                + ", ".join(self.unrotated)
            )
        return "\n".join(lines)


def _said_of_packed(facts: Mapping[str, Any]) -> str:
    """What is known of the layout of packed weights, and what is only believed."""
    text = (
        f"packed weights: read as {facts['dialect']}, named by {facts['named_by']} "
        f"({facts['layout']}); the weights themselves confirm: "
        f"{', '.join(facts['confirmed']) or 'nothing'}"
    )
    if facts["unconfirmed"] and "reference_error" not in facts:
        text += f"; they do not tell: {', '.join(facts['unconfirmed'])}"
        if facts["named_by"] == "the caller":
            text += " (a wrong dialect would look the same: give --reference)"
    if "reference_error" in facts:
        text += f"; relative error against the reference: {facts['reference_error']}"
    return text


def convert(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    dtype: Literal["keep", "float32", "float16", "bfloat16"] = "keep",
    weights: str | WeightRecipe = "keep",
    rotation: int | None = None,
    refine: bool = False,
    dialect: str = "auto",
    reference: str | os.PathLike | None = None,
    lora: Sequence[str | os.PathLike | LoraChoice] = (),
    state_dict: str | None = None,
) -> ConversionReport:
    """Converts a diffusers checkpoint; holds one block in memory at a time.

    Args:
      source: diffusers root, its `transformer/` directory, or one file of weights
        (safetensors, or what `torch.save` writes; see `open_source`).
      destination: the directory to make; it appears when it is complete.
      dtype: of the parameters that stay floating point. "keep" keeps the source's
        (float64 becomes float32, float8 becomes bfloat16, which holds it exactly).
      weights: what `quantize` takes, or the name of such a recipe with its defaults.
        "nvfp4" stores the linears of the blocks and the modulation linears in
        4.5 bits; embeddings, norms, biases and the output stay. "uniform2" to
        "uniform8" stores the same linears on asymmetric grids per output channel,
        "residual2" to "residual4" in MPQ-DMv2's residual mixed precision, fitted.
      rotation: of a named recipe: width of the block Hadamard folded into the blocks'
        linears along K before quantization (128, or 0 for none; None is the recipe's
        own: 128 for nvfp4 and uniform, 0 for residual); activations are rotated to
        match. Linears whose width it does not divide are stored without; the report
        names them.
      refine: of a named recipe, DVD-Quant's grid refinement: with nvfp4, block scales
        of least squared error on the E2M1 grid instead of amax / 6; with uniform grids,
        BGR instead of the range of each channel.
        Same files, same speed when sampling; the conversion takes longer.
      dialect: of a source whose weights are packed NVFP4 already (`convert.DIALECTS`):
        its codes and scales are kept, without rotation; weights that are not packed
        follow `weights`. "auto" is what the files say.
      reference: the same network unquantized, to check packed weights against.
      lora: LoRA files to add to the weights, in float32, before anything is quantized:
        FILE or FILE:strength; see `lora_names` for whose files are read.
      state_dict: of a file of `torch.save` with several (raw and EMA weights), the one
        to take.

    Returns:
      What was read and written.

    Raises:
      ConversionError: if the source is not a complete, finite checkpoint of a
        supported network; all problems of its files and keys at once.
      sixbit_jax.checkpoint.CheckpointError: if the destination exists or cannot be
        written. Nothing is left behind in either case.
      ValueError: for values of the options that are not in the lists above, and for
        refine without quantized weights.
    """
    began = time.perf_counter()
    found = open_source(
        source, dialect=dialect, reference=reference, state_dict=state_dict
    )
    found = _with_loras(found, lora)
    header, assigned = plan(
        found, dtype=dtype, weights=weights, rotation=rotation, refine=refine
    )
    recipe = _recipe(weights, rotation, refine)
    with CheckpointWriter(destination, header) as writer:
        for item in header.items():
            values = {}
            for name, spec in item.parameters.items():
                chosen = assigned[item.path(name)]
                if isinstance(chosen.tensor, PackedInfo) and spec.dtype == "nvfp4":
                    values[name] = keep_packed(chosen.tensor, chosen.key)
                    continue
                array = chosen.rule.transform.forward(chosen.tensor.read())
                values[name] = store(array, spec, chosen.key, recipe)
            writer.write(item, values)
    return ConversionReport(
        destination=Path(destination),
        model_class=header.model_class,
        num_parameters=header.num_parameters,
        keys_read=len(assigned),
        keys_quantized=sum(n for spec, n in header.specs() if spec.compressed),
        keys_ignored=tuple(header.source["keys_ignored"]),
        source_dtypes=header.source["dtypes"],
        source_bytes=found.nbytes,
        written_bytes=summarize(destination).disk_bytes,
        seconds=time.perf_counter() - began,
        packed=found.packed.facts,
        loras=found.loras,
        left=found.left,
        unrotated=tuple(header.quantization.get("unrotated", ())),
    )


def _with_loras(
    found: Source, choices: Sequence[str | os.PathLike | LoraChoice]
) -> Source:
    """The source with LoRA files added to its tensors when they are read."""
    if not choices:
        return found
    parsed = [LoraChoice.parse(choice) for choice in choices]
    if any(choice.network for choice in parsed):
        raise ConversionError(
            "LoRA: expected high= and low= with a pair of networks, found one network"
        )
    shapes = {key: info.shape for key, info in found.tensors.items()}
    model = str(found.config.get("_class_name", "the network"))
    loras = [open_lora(choice, shapes, model=model) for choice in parsed]
    return replace(
        found,
        tensors=fuse(found.tensors, loras),
        loras=tuple(one.record() for one in loras),
    )


def _check_options(
    dtype: str, weights: str | WeightRecipe, rotation: int | None, refine: bool
) -> None:
    options: dict[str, tuple[Any, tuple[Any, ...]]] = {"dtype": (dtype, DTYPES)}
    if isinstance(weights, str):
        options["weights"] = (weights, WEIGHTS)
        options["rotation"] = (rotation, (*ROTATIONS, None))
    elif refine or rotation is not None:
        raise ValueError(
            "rotation, refine: expected neither beside a recipe, which says both, "
            f"found rotation={rotation!r}, refine={refine!r}"
        )
    for name, (value, allowed) in options.items():
        if value not in allowed:
            raise ValueError(f"{name}: expected one of {allowed}, found {value!r}")


def _recipe(
    weights: str | WeightRecipe, rotation: int | None, refine: bool
) -> WeightRecipe | None:
    """What is done with weights; None keeps them."""
    if not isinstance(weights, str):
        return weights
    if weights != "keep":
        return weight_recipe(weights, rotation=rotation, refine=refine)
    if refine:
        raise ValueError("refine: expected quantized weights, found weights='keep'")
    return None


def _per_layer(
    stacked: Mapping[str, tuple[int, ...]], table: RuleTable
) -> dict[str, tuple[int, ...]]:
    """Shapes by path, one path per layer of a stack."""
    shapes = {}
    for path, shape in stacked.items():
        stack, _, leaf = path.partition(".")
        if stack in table.stacks:
            for layer in range(shape[0]):
                shapes[f"{stack}.{layer}.{leaf}"] = shape[1:]
        else:
            shapes[path] = shape
    return shapes


def _without_padding(
    found: Source, table: RuleTable, shapes: Mapping[str, tuple[int, ...]]
) -> Mapping[str, TensorInfo]:
    """The tensors, packed ones without the zeros that some writers add."""
    if found.packed.dialect is None:
        return found.tensors
    tensors = dict(found.tensors)
    for path, shape in shapes.items():
        key, rule = table.source_of(path)
        info = tensors.get(key)
        if isinstance(info, PackedInfo):
            tensors[key] = cropped(info, rule.transform.source_shape(tuple(shape)))
    return tensors


def _check_scheduler(found: Source) -> None:
    """Refuses a scheduler's configuration that sampling would refuse.

    A class that is not supported is kept by name: `sample` takes another scheduler.
    """
    config = found.scheduler
    if config is None:
        return
    name = config.get("_class_name")
    other = isinstance(name, str) and name.isidentifier() and len(name) < 100
    if other and name not in schedulers.CLASSES:
        return
    try:
        schedulers.from_config(config)
    except ValueError as error:
        raise ConversionError(f"scheduler_config.json: {error}") from error


def plan(
    found: Source,
    *,
    dtype: str,
    weights: str | WeightRecipe,
    rotation: int | None = None,
    refine: bool = False,
) -> tuple[Header, dict[str, Assignment]]:
    """Decides how every parameter is stored, from the headers of the files alone.

    Args:
      found: the source.
      dtype, weights, rotation, refine: options of `convert`.

    Returns:
      The header of the directory to write, and the tensor of every parameter by path.

    Raises:
      ConversionError: for an unknown network, an unsupported configuration, and keys
        that do not fit it.
      ValueError: for unknown values of the options.
    """
    _check_options(dtype, weights, rotation, refine)
    recipe = _recipe(weights, rotation, refine)
    table = table_for(found.config, found.tensors.keys())
    # Packed weights are described by the header of ours.
    config = {k: v for k, v in found.config.items() if k != "quantization_config"}
    try:
        stacked = parameter_shapes(table.model_class, config)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ConversionError(f"{found.directory / 'config.json'}: {error}") from error
    _check_scheduler(found)
    shapes = _per_layer(stacked, table)
    assigned, ignored = table.assign(_without_padding(found, table, shapes), shapes)
    weight_role = components.get(table.model_class)[1].weight_role  # pyrefly: ignore
    unrotated: list[str] = []

    def spec(
        path: str, shape: tuple[int, ...], layers: list[Assignment]
    ) -> ParameterSpec:
        role = weight_role(path)
        packed = all(isinstance(layer.tensor, PackedInfo) for layer in layers)
        chosen = _AS_PACKED if packed else recipe
        if chosen is not None and role is not None:
            turned = rotation_of(chosen, role, shape[-1])
            if turned is not None:
                if found.packed.dialect is not None:
                    # Packed weights are not rotated, and linears of a site are alike.
                    turned = 0
                elif turned == 0 and role == "site" and chosen.rotation:
                    unrotated.append(path)
                return ParameterSpec(shape, chosen.format_name, turned)
        kept = kept_dtype(*(layer.tensor.dtype for layer in layers))
        return ParameterSpec(shape, kept if dtype == "keep" else dtype)

    plain: dict[str, ParameterSpec] = {}
    stacks: dict[str, dict[str, ParameterSpec]] = {name: {} for name in table.stacks}
    lengths = dict.fromkeys(table.stacks, 0)
    for path, shape in stacked.items():
        stack, _, leaf = path.partition(".")
        if stack in stacks:
            lengths[stack] = shape[0]
            layers = [assigned[f"{stack}.{i}.{leaf}"] for i in range(shape[0])]
            stacks[stack][leaf] = spec(path, shape[1:], layers)
        else:
            plain[path] = spec(path, shape, [assigned[path]])
    how: dict[str, object] = {"weights": "keep", "dtype": dtype}
    if recipe is not None:
        turned = 0 if found.packed.dialect is not None else recipe.rotation
        how |= {"weights": recipe.format_name, "method": recipe.fit, "rotation": turned}
    if unrotated:
        how["unrotated"] = unrotated
    if found.packed.facts is not None:
        how["packed"] = dict(found.packed.facts)
    dtypes: dict[str, int] = {}
    for chosen in assigned.values():
        name = chosen.tensor.dtype_name
        dtypes[name] = dtypes.get(name, 0) + 1
    header = Header(
        model_class=table.model_class,
        config=config,
        parameters=plain,
        stacks={name: Stack(lengths[name], parts) for name, parts in stacks.items()},
        scheduler=found.scheduler,
        quantization=how,
        source={
            "files": [file.name for file in found.files],
            "bytes": found.nbytes,
            "dtypes": dtypes,
            "keys_read": len(assigned),
            "keys_ignored": [*ignored, *found.packed.unused],
            **({"loras": list(found.loras)} if found.loras else {}),
            **({"left": dict(found.left)} if found.left else {}),
        },
    )
    return header, assigned
