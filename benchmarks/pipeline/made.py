"""Pipelines of real size with random weights: written to disk, or made when needed."""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from sixbit_jax import checkpoint
from sixbit_jax.benchmark.subject import CONFIGS, Config, random_model
from sixbit_jax.checkpoint.header import HEADER_NAME, Header
from sixbit_jax.models.wan.config import WanConfig
from sixbit_jax.pipelines.header import PIPELINE_NAME, PipelineHeader
from sixbit_jax.pipelines.pipeline import VideoPipeline
from sixbit_jax.quantizers.storage import rotation_of
from sixbit_jax.quantizers.uniform import UniformRecipe
from sixbit_jax.text_encoders.clip_config import CLIPVisionConfig
from sixbit_jax.text_encoders.clip_pixels import CLIPPixelsConfig
from sixbit_jax.text_encoders.clip_vision import CLIPVisionEncoder
from sixbit_jax.text_encoders.t5 import T5Encoder, UMT5Encoder
from sixbit_jax.text_encoders.t5_config import T5Config
from sixbit_jax.vae.cogvideox import AutoencoderKLCogVideoX
from sixbit_jax.vae.wan import AutoencoderKLWan


@dataclass(frozen=True)
class Component:
    """A network beside the transformer: its class, its configuration, how it is stored.

    Attributes:
      quantized: in INT8, as a recipe stores encoders; bf16 otherwise.
    """

    network: Any
    config: Any
    quantized: bool = False


@dataclass(frozen=True)
class Case:
    """A pipeline to imitate.

    Attributes:
      pipeline_class: diffusers'.
      network: configuration of the transformer, which is stored in NVFP4.
      others: the other components, by folder.
      tokenizer: name of the golden tokenizer that stands in its place.
      picture: whether its videos begin with one.
    """

    pipeline_class: str
    network: Config
    others: dict[str, Component]
    tokenizer: str
    picture: bool = False


def _cogvideox(network: Config) -> Case:
    others = {
        "text_encoder": Component(T5Encoder, T5Config(), True),
        "vae": Component(AutoencoderKLCogVideoX, AutoencoderKLCogVideoX.config_class()),
    }
    return Case("CogVideoXPipeline", network, others, "t5")


def _wan(network: Config, *, picture: bool = False) -> Case:
    words = T5Config(vocab_size=256384)
    others = {
        "text_encoder": Component(UMT5Encoder, words, True),
        "vae": Component(AutoencoderKLWan, AutoencoderKLWan.config_class()),
    }
    if picture:
        others["image_encoder"] = Component(CLIPVisionEncoder, CLIPVisionConfig())
    name = "WanImageToVideoPipeline" if picture else "WanPipeline"
    return Case(name, network, others, "umt5", picture)


CASES = {
    "2b": _cogvideox(CONFIGS["2b"]),
    "5b": _cogvideox(CONFIGS["5b"]),
    "wan-1.3b": _wan(CONFIGS["wan-1.3b"]),
    "wan-14b": _wan(CONFIGS["wan-14b"]),
    "wan-14b-i2v": _wan(
        WanConfig(in_channels=36, image_dim=1280, added_kv_proj_dim=5120),
        picture=True,
    ),
}


@partial(jax.jit, static_argnames=("shape", "rotation", "quantized", "layers"))
def _leaf(
    key: jax.Array,
    *,
    shape: tuple[int, ...],
    layers: int,
    quantized: bool,
    rotation: int,
) -> Any:
    def draw(key: jax.Array) -> Any:
        if len(shape) < 2:
            return jnp.ones(shape, jnp.bfloat16)
        bound = shape[-1] ** -0.5
        w = jax.random.uniform(key, shape, jnp.float32, -bound, bound)
        if not quantized:
            return w.astype(jnp.bfloat16)
        return UniformRecipe(8, grid="minmax").compress(w, rotation=rotation)

    if not layers:
        return draw(key)
    return jax.lax.map(draw, jax.random.split(key, layers))


def random_component(component: Component) -> nnx.Module:
    """An encoder or a VAE with random weights."""
    model = component.network
    make = lambda: model(component.config, rngs=nnx.Rngs(0))  # noqa: E731
    graph, state = nnx.split(nnx.eval_shape(make))
    flat = dict(nnx.to_flat_state(state))
    recipe = UniformRecipe(8)
    for number, (path, variable) in enumerate(list(flat.items())):
        name = ".".join(map(str, path))
        shape = tuple(variable.get_value().shape)
        layers = shape[0] if path[0] in model.stacks else 0
        shape = shape[1:] if layers else shape
        rotation = None
        if component.quantized:
            rotation = rotation_of(recipe, model.weight_role(name), shape[-1])
        made = _leaf(
            jax.random.key(number),
            shape=shape,
            layers=layers,
            quantized=rotation is not None,
            rotation=rotation or 0,
        )
        flat[path] = variable.replace(made)
    return nnx.merge(graph, nnx.from_flat_state(flat))


def make(case: Case, part: str) -> Any:
    """A component with random weights on the device."""
    if part == "transformer":
        return random_model(case.network, quantized=True)
    return random_component(case.others[part])


def write_pipeline(case: Case, path: Path, *, headers_only: bool = False) -> None:
    """Writes the pipeline directory of a case.

    Args:
      case: of random weights.
      path: to make.
      headers_only: without weights, for `MadePipeline`.
    """
    from tests.golden.tokenizer_cases import unpack

    path.mkdir()
    classes = {}
    for part in ("transformer", *case.others):
        if headers_only:
            model = _abstract(case, part)
            config = model.config.to_dict() | {"_class_name": type(model).class_name}
            (path / part).mkdir()
            header = Header(type(model).class_name, config, {}, {})
            text = header.to_json()
            (path / part / HEADER_NAME).write_text(text, encoding="utf-8")
        else:
            model = make(case, part)
            stacks = None if part == "transformer" else type(model).stacks
            checkpoint.save(model, path / part, stacks=stacks)
        classes[part] = type(model).class_name
    unpack(case.tokenizer, path).rename(path / "tokenizer")
    if case.picture:
        (path / "image_processor").mkdir()
        side = case.others["image_encoder"].config.image_size
        values: dict[str, Any] = asdict(
            CLIPPixelsConfig(shortest_edge=side, crop_size=(side, side))
        )
        edge, (rows, columns) = values.pop("shortest_edge"), values.pop("crop_size")
        values["size"] = {"shortest_edge": edge}
        values["crop_size"] = {"height": rows, "width": columns}
        file = path / "image_processor" / "preprocessor_config.json"
        file.write_text(json.dumps(values), encoding="utf-8")
    header = PipelineHeader(case.pipeline_class, classes, ("tokenizer",))
    (path / PIPELINE_NAME).write_text(header.to_json(), encoding="utf-8")


def _abstract(case: Case, part: str) -> Any:
    if part == "transformer":
        return random_model(case.network, quantized=True, abstract=True)
    other = case.others[part]
    return nnx.eval_shape(lambda: other.network(other.config, rngs=nnx.Rngs(0)))


class MadePipeline(VideoPipeline):
    """A pipeline whose components are made on the device when they are needed.

    Only headers are on disk. The device holds what it would hold of loaded ones, and
    frees them as it would; the seconds of "loading" are those of making them.
    """

    def __init__(self, case: Case, path: Path):
        super().__init__(path)
        self._case = case

    @contextlib.contextmanager
    def component(
        self, name: str, *, dtype: Any = None, mesh: Mesh | None = None
    ) -> Iterator[Any]:
        """A component with random weights, for the length of a `with`; no mesh."""
        if mesh is not None:
            raise ValueError(f"mesh: expected none for made weights, found {mesh}")
        began = time.perf_counter()
        model = make(self._case, name)
        if dtype is not None and name != "text_encoder":
            graph, state = nnx.split(model)
            model = nnx.merge(graph, jax.tree.map(lambda x: x.astype(dtype), state))
            del state
        jax.block_until_ready(nnx.state(model))
        self.load_seconds += time.perf_counter() - began
        yield model
