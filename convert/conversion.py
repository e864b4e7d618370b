"""PyTorch (diffusers) checkpoint -> a checkpoint directory of ours, streaming."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from convert.errors import ConversionError
from convert.lora import LoraChoice, fuse
from convert.lora_reader import open_lora
from convert.nvfp4_dialects import PackedInfo
from convert.planning import chosen_recipe, plan
from convert.reader import Source, open_source
from convert.report import ConversionReport
from convert.rules import Assignment
from convert.values import keep_packed, store
from sixbit_jax.checkpoint import CheckpointWriter, Header, summarize
from sixbit_jax.quantizers.storage import WeightRecipe


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
    how = {"weights": weights, "rotation": rotation, "refine": refine}
    header, assigned = plan(found, dtype=dtype, **how)
    _write(Path(destination), header, assigned, chosen_recipe(**how))
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


def _write(
    destination: Path,
    header: Header,
    assigned: Mapping[str, Assignment],
    recipe: WeightRecipe | None,
) -> None:
    """Reads, stores and writes one item after the other."""
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


__all__ = ["ConversionReport", "convert"]
