"""Roots of Wan's authors: what `huggingface-cli download Wan-AI/Wan2.1-T2V-14B` makes.

    transformer      diffusion_pytorch_model*.safetensors with config.json, or the
                     folders high_noise_model/ and low_noise_model/
    VAE              Wan2.1_VAE.pth, Wan2.2_VAE.pth
    text encoder     models_t5_umt5-xxl-enc-bf16.pth; tokenizer in google/umt5-xxl/
    picture encoder  models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth

No file says what diffusers' `model_index.json` would: the pipeline follows from the
shapes of the networks, and the numbers are the published ones.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.errors import ConversionError
from convert.reader import open_source
from convert.root_plan import NOT_ASKED_FOR, RootPlan, check_only
from sixbit_jax import components
from sixbit_jax.pipelines.header import PipelineHeader

_SUFFIXES = (".pth", ".pt", ".safetensors")
# By the folder in the pipeline: the class, and how the file's name begins.
_FILES = {
    "vae": ("AutoencoderKLWan", ("Wan2.1_VAE", "Wan2.2_VAE")),
    "text_encoder": ("UMT5EncoderModel", ("models_t5_",)),
    "image_encoder": ("CLIPVisionModel", ("models_clip_",)),
}
_NETWORKS = ("transformer", "transformer_2")
_PAIR = ("high_noise_model", "low_noise_model")
_TOKENIZER, _PROCESSOR = "tokenizer", "image_processor"
_VOCABULARY = Path("google") / "umt5-xxl"
# Input channels of the published networks that start from a picture.
_IMAGE_CHANNELS = 36
_TI2V_CHANNELS = 48
_BOUNDARY, _IMAGE_BOUNDARY = 0.875, 0.9


def is_original_root(path: Path) -> bool:
    """Whether a path is a root of Wan's authors with more in it than transformers.

    >>> is_original_root(Path("no such folder"))
    False
    """
    names = [file.name for file in path.iterdir()] if path.is_dir() else []
    return any(_matches(name, folder) for name in names for folder in _FILES)


def _matches(name: str, folder: str) -> bool:
    begins = _FILES[folder][1]
    return name.startswith(begins) and name.endswith(_SUFFIXES)


def plan_original_root(source: Path, only: Sequence[str] = ()) -> RootPlan:
    """The plan of a root of Wan's authors.

    Args:
      source: the root.
      only: components to convert; empty for all.

    Raises:
      ConversionError: lists the components that are missing, are there twice, or are
        not what their names say.
    """
    pair = (source / _PAIR[1]).is_dir()
    networks = _NETWORKS if pair else _NETWORKS[:1]
    known = [*networks, "vae", "text_encoder"]
    if any(_matches(file.name, "image_encoder") for file in source.iterdir()):
        known.append("image_encoder")
    check_only(only, known)
    wanted = [name for name in known if not only or name in only]
    sources: dict[str, Path] = {}
    problems: list[str] = []
    for name in wanted:
        if name in networks:
            sources[name] = source / _PAIR[networks.index(name)] if pair else source
            continue
        files = sorted(file for file in source.iterdir() if _matches(file.name, name))
        if len(files) == 1:
            sources[name] = files[0]
            continue
        said = " or ".join(f"{begin}*{_SUFFIXES[0]}" for begin in _FILES[name][1])
        found = ", ".join(file.name for file in files) or "none"
        problems.append(f"{name}: expected one file {said}, found {found}")
    vocabulary = source / _VOCABULARY
    if "text_encoder" in wanted and not vocabulary.is_dir():
        problems.append(f"{_TOKENIZER}: expected a folder {_VOCABULARY.as_posix()}/")
    if problems:
        raise ConversionError(
            "\n  ".join(
                [
                    f"{source}: a root of Wan's authors (--only converts some of "
                    f"{', '.join(known)}):",
                    *problems,
                ]
            )
        )
    configs = {name: _config(name, path) for name, path in sources.items()}
    header = _header(configs, [name for name in known if name not in wanted])
    folders = {_TOKENIZER: vocabulary} if "text_encoder" in wanted else {}
    texts = {}
    if "image_encoder" in configs:
        side = configs["image_encoder"]["image_size"]
        place = f"{_PROCESSOR}/preprocessor_config.json"
        texts[place] = json.dumps(_processor(side), indent=1) + "\n"
    return RootPlan(header, sources, folders, texts)


def _config(name: str, path: Path) -> Mapping[str, Any]:
    """The configuration of a component, of the class that its place asks for.

    Raises:
      ConversionError: if it is something else.
    """
    try:
        config = open_source(path).config
        found = components.class_name_of(config)
    except ValueError as error:
        raise ConversionError(f"{name}: {error}") from error
    wanted = _FILES[name][0] if name in _FILES else "WanTransformer3DModel"
    if found != wanted:
        raise ConversionError(f"{name}: {path}: expected {wanted}, found {found}")
    return config


def _header(
    configs: Mapping[str, Mapping[str, Any]], missing: Sequence[str]
) -> PipelineHeader:
    network = configs.get(_NETWORKS[0], {})
    image = network.get("in_channels") == _IMAGE_CHANNELS
    options: dict[str, Any] = {}
    if _NETWORKS[1] in configs or _NETWORKS[1] in missing:
        options["boundary_ratio"] = _IMAGE_BOUNDARY if image else _BOUNDARY
    if network.get("in_channels") == _TI2V_CHANNELS:
        options["expand_timesteps"] = True
    copied = [_TOKENIZER] if "text_encoder" in configs else []
    copied += [_PROCESSOR] if "image_encoder" in configs else []
    return PipelineHeader(
        pipeline_class="WanImageToVideoPipeline" if image else "WanPipeline",
        components={
            name: components.class_name_of(config) for name, config in configs.items()
        },
        tokenizers=tuple(copied),
        options=options,
        # Without one, a pipeline takes what is published for its network.
        scheduler=None,
        missing=dict.fromkeys(missing, NOT_ASKED_FOR),
    )


def _processor(side: int) -> dict[str, Any]:
    """How pictures reach CLIP: as diffusers publishes it for these networks."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }


__all__ = ["is_original_root", "plan_original_root"]
