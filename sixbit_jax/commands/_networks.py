"""Networks of the command line: one, or the pair of Wan2.2-A14B."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

FOLDERS = ("transformer", "transformer_2")
"""Of a pipeline's networks; of a pair, the first is for high noise."""


class Network(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      model: the network; of a pair, the one for high noise.
      low_noise: the other one of a pair (`LowNoise`), or None.
      header: the header of the checkpoint.
    """

    model: Any
    low_noise: Any
    header: Any

    def changed(self, change: Callable[[Any], Any]) -> "Network":
        """The same with other weights, in both networks of a pair."""
        low = self.low_noise
        if low is not None:
            low = replace(low, model=change(low.model))
        return self._replace(model=change(self.model), low_noise=low)

    def conditions(self, given: dict[str, Any] | None = None) -> Any:
        """`sampling.options.Conditions` with the second network of a pair."""
        from sixbit_jax.sampling.options import Conditions

        return Conditions(**(given or {}), low_noise=self.low_noise)


def is_converted(path: Path) -> bool:
    """Whether a directory is one that `sixbit convert` made."""
    return (path / "sixbit.json").is_file() or is_pair(path) or is_pipeline(path)


def is_pair(path: Path) -> bool:
    """Whether a directory holds the two networks of a pair, converted."""
    return (path / "pair.json").is_file()


def is_pipeline(path: Path) -> bool:
    """Whether a directory holds a whole pipeline, converted."""
    return (path / "sixbit_pipeline.json").is_file()


def load_network(path: Path, *, second_guidance: float | None = None) -> Network:
    """Loads what `sixbit convert` made.

    Args:
      path: the directory; of a whole pipeline, its transformers are taken.
      second_guidance: the value of `--guidance-2`.

    Raises:
      ValueError: for a second scale where there is one network.
    """
    from sixbit_jax.checkpoint import load
    from sixbit_jax.checkpoint.pair import load_pair

    if is_pair(path):
        high, low, header = load_pair(path, guidance_scale=second_guidance)
        return Network(high, low, header)
    if is_pipeline(path):
        return _of_pipeline(path, second_guidance)
    if second_guidance is not None:
        raise ValueError(
            f"--guidance-2: expected a directory with a pair of networks, found one "
            f"network in {path}"
        )
    model, header = load(path)
    return Network(model, None, header)


def _of_pipeline(path: Path, second_guidance: float | None) -> Network:
    """The transformers of a pipeline, with its scheduler."""
    from sixbit_jax.checkpoint import load
    from sixbit_jax.pipelines.header import read_pipeline_header
    from sixbit_jax.sampling.pair import LowNoise

    pipeline = read_pipeline_header(path)
    names = [name for name in FOLDERS if name in pipeline.components]
    if not names or names[0] != FOLDERS[0]:
        raise ValueError(f"{path}: expected a pipeline with a transformer, found none")
    if len(names) == 1:
        network = load_network(path / names[0], second_guidance=second_guidance)
    else:
        boundary = pipeline.options.get("boundary_ratio")
        if boundary is None:
            raise ValueError(
                f"{path}: expected boundary_ratio beside {FOLDERS[1]}, found none"
            )
        loaded: list[Any] = [load(path / name) for name in names]
        (high, header), (low, _) = loaded
        for model in (high, low):
            model.pair_boundary = boundary
        network = Network(high, LowNoise(low, boundary, second_guidance), header)
    scheduler = pipeline.scheduler or network.header.scheduler
    return network._replace(header=replace(network.header, scheduler=scheduler))


def convert_and_load(
    source: Path, weights: Any = "keep", *, second_guidance: float | None = None
) -> Network:
    """Loads a diffusers directory through a conversion that is thrown away.

    Args:
      source: the directory.
      weights: as in `convert`; "nvfp4" is refined.
      second_guidance: the value of `--guidance-2`.
    """
    from convert import convert
    from convert.pair import convert_pair
    from convert.pair import is_pair as is_pair_of_source

    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "model"
        function = convert_pair if is_pair_of_source(source) else convert
        function(source, made, weights=weights, refine=weights == "nvfp4")
        return load_network(made, second_guidance=second_guidance)


def quantized_by(recipe: Any, model: Any) -> Any:
    """The model with the recipe's weights; weights that are stored stay as they are."""
    from sixbit_jax.sampling.api import is_quantized

    return model if is_quantized(model) else recipe.quantize(model)
