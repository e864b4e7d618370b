"""What a checkpoint directory holds, from its header alone."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sixbit_jax import components
from sixbit_jax.checkpoint.header import Header, read_header
from sixbit_jax.checkpoint.items import check_sizes, directory_bytes


@dataclass(frozen=True)
class Summary:
    """The facts that `sixbit inspect` prints.

    Attributes:
      header: the directory's header.
      num_parameters: number of logical values.
      values_by_dtype, bytes_by_dtype: by "nvfp4", "uniform4", "bfloat16", ...
      memory_bytes: bytes of the parameters once loaded.
      disk_bytes: bytes of all files of the directory.
      bf16_bytes: bytes of the same parameters in bf16.
      num_blocks: layers of all stacks together.
      sites: names of the sites of a block; none but a transformer has them.
    """

    header: Header
    num_parameters: int
    values_by_dtype: Mapping[str, int]
    bytes_by_dtype: Mapping[str, int]
    memory_bytes: int
    disk_bytes: int
    bf16_bytes: int
    num_blocks: int
    sites: tuple[str, ...]

    @property
    def memory_ratio(self) -> float:
        """How many times smaller than bf16 the loaded parameters are."""
        return self.bf16_bytes / self.memory_bytes

    @property
    def disk_ratio(self) -> float:
        """How many times smaller than bf16 the directory is."""
        return self.bf16_bytes / self.disk_bytes

    @property
    def weight_bits(self) -> float:
        """Mean stored bits per parameter."""
        return 8.0 * self.memory_bytes / self.num_parameters

    def __str__(self) -> str:
        scheduler = (self.header.scheduler or {}).get("_class_name", "none")
        recipe = self.header.quantization
        rotations = {s.rotation for s, _ in self.header.specs() if s.compressed}
        lines = [
            f"model        {self.header.model_class}",
            f"parameters   {self.num_parameters:,}",
            f"blocks       {self.num_blocks}"
            + (f", sites {', '.join(self.sites)}" if self.sites else ""),
            f"scheduler    {scheduler}",
            "recipe       " + ", ".join(f"{k} {v}" for k, v in recipe.items()),
        ]
        for dtype, size in sorted(self.bytes_by_dtype.items()):
            values = self.values_by_dtype[dtype]
            lines.append(f"{dtype:12} {size:,} bytes, {values:,} values")
        if rotations:
            lines.append(f"rotation     {', '.join(map(str, sorted(rotations)))}")
        lines.append(
            f"in memory    {self.memory_bytes:,} bytes, {self.weight_bits:.2f} bits "
            f"per parameter, {_compare(self.memory_ratio)}"
        )
        lines.append(
            f"on disk      {self.disk_bytes:,} bytes, {_compare(self.disk_ratio)}"
        )
        return "\n".join(lines)


def _compare(ratio: float) -> str:
    if ratio >= 1:
        return f"{ratio:.2f}x smaller than bf16"
    return f"{1 / ratio:.2f}x larger than bf16"


def summarize(path: str | os.PathLike) -> Summary:
    """Describes a checkpoint directory without reading its parameters.

    Raises:
      CheckpointError: if it is not a checkpoint directory, or items are missing or
        truncated; lists all of them.
      ValueError: if no port of its model class exists.

    >>> import sixbit_jax
    >>> from sixbit_jax.checkpoint.summary import summarize
    >>> from sixbit_jax.demo.model import COGVIDEOX
    >>> model = COGVIDEOX.new(0, {"num_layers": 2})
    >>> _ = sixbit_jax.save(model, "toy")
    >>> summarize("toy").num_parameters
    2546992
    """
    header = read_header(path)
    check_sizes(Path(path), header)
    values: dict[str, int] = {}
    stored: dict[str, int] = {}
    for spec, count in header.specs():
        values[spec.dtype] = values.get(spec.dtype, 0) + spec.size * count
        stored[spec.dtype] = stored.get(spec.dtype, 0) + spec.nbytes * count
    config_type, model_type = components.get(header.model_class)
    sites: tuple[str, ...] = ()
    if components.kind_of(header.model_class) == "transformer":
        sites = model_type.describe(config_type.from_dict(header.config)).sites
    return Summary(
        header=header,
        num_parameters=header.num_parameters,
        values_by_dtype=values,
        bytes_by_dtype=stored,
        memory_bytes=header.nbytes,
        disk_bytes=directory_bytes(path),
        bf16_bytes=2 * header.num_parameters,
        num_blocks=sum(stack.length for stack in header.stacks.values()),
        sites=sites,
    )
