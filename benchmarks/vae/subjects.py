"""The autoencoders that are timed, and the ways of computing each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.vae import arithmetic
from sixbit_jax.vae.causal_conv import METHODS

_WAN_22 = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
_METHODS: dict[str, dict[str, Any]] = {name: {"method": name} for name in METHODS}
_KERNELS = {"kernels": {"kernels": True}}
_WHOLE = {"whole chunks": {"group_bytes": 2**50}}
_CHUNKS: dict[str, dict[str, Any]] = {
    f"chunk {count}": {"chunk": count} for count in (1, 2, 3, 7)
} | {
    method: {"chunk": 1, "method": method} for method in METHODS if method != "stacked"
}


@dataclass(frozen=True)
class Subject:
    """One autoencoder.

    Attributes:
      class_name: diffusers'.
      size: latent frames, height and width of the published video.
      decoders: options of `decode_stream` by the name of the job.
      values: of its config.json, where they are not the defaults.
      flops: (config, size) -> of the decoder.
      peer: module of the PyTorch peer, or None.
      parts: module of its operations alone, or None.
    """

    class_name: str
    size: tuple[int, int, int]
    decoders: dict[str, dict[str, Any]]
    values: dict[str, Any] = field(default_factory=dict)
    flops: Callable[[Any, tuple[int, int, int]], float] | None = None
    peer: str | None = None
    parts: str | None = None

    def config(self, values: dict[str, Any] | None) -> Any:
        """The configuration; `values` are of another config.json."""
        return self.network().config_class.from_dict(values or self.values)

    def network(self) -> Any:
        """Its class."""
        from sixbit_jax import components

        return components.get(self.class_name)[1]

    def functions(self) -> tuple[Callable[..., Iterator[Any]], Callable[..., Any]]:
        """`decode_stream` and `encode`."""
        if self.class_name == "AutoencoderKLWan":
            from sixbit_jax.vae import wan as module
        else:
            from sixbit_jax.vae import streaming as module
        return module.decode_stream, module.encode


def shape_of(config: Any) -> tuple[int, int, int]:
    """Channels of the latents, and frames and pixels that a latent stands for."""
    if hasattr(config, "z_dim"):
        return config.z_dim, config.scale_factor_temporal, config.scale_factor_spatial
    return (
        config.latent_channels,
        config.temporal_compression_ratio,
        config.spatial_compression_ratio,
    )


SUBJECTS = {
    "cogvideox": Subject(
        "AutoencoderKLCogVideoX",
        (13, 60, 90),
        _METHODS | _WHOLE | _KERNELS,
        flops=arithmetic.cogvideox,
        peer="benchmarks.vae.torch_cogvideox",
        parts="benchmarks.vae.parts_cogvideox",
    ),
    "wan-2.1": Subject(
        "AutoencoderKLWan",
        (21, 60, 104),
        _CHUNKS,
        flops=arithmetic.wan,
        peer="benchmarks.vae.torch_wan",
        parts="benchmarks.vae.parts_wan",
    ),
    "wan-2.2": Subject(
        "AutoencoderKLWan",
        (21, 44, 80),
        _CHUNKS,
        values=_WAN_22,
        flops=arithmetic.wan,
        peer="benchmarks.vae.torch_wan",
        parts="benchmarks.vae.parts_wan",
    ),
    "hunyuan-video": Subject(
        "AutoencoderKLHunyuanVideo", (33, 90, 160), _METHODS | _WHOLE | _KERNELS
    ),
}
ENCODE, PARTS, TORCH = "encode", "parts", "torch"
JOBS = tuple(
    dict.fromkeys(
        [name for subject in SUBJECTS.values() for name in subject.decoders]
        + [ENCODE, PARTS, TORCH]
    )
)


def jobs_of(subject: Subject) -> tuple[str, ...]:
    """What there is to run for one autoencoder, in order."""
    others = [ENCODE]
    others += [] if subject.parts is None else [PARTS]
    others += [] if subject.peer is None else [TORCH]
    return (*subject.decoders, *others)
