"""What `sample` is told, in small frozen dataclasses: what belongs together is one."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pallas_kernels.attention.api import Precision
from sixbit_jax.sampling import delta_cache
from sixbit_jax.sampling.pair import LowNoise


@dataclass(frozen=True, eq=False)
class Prompt:
    """The embedded prompts of a batch.

    Attributes:
      embeds: prompt embeddings, [batch, T, E].
      negative_embeds: of the negative prompts; needed where there is guidance.
      mask, negative_mask: which tokens are no padding, [batch, T], for networks that
        ask.
      pooled, negative_pooled: embeddings of the whole prompts, [batch, P], for networks
        that take them.
      as_given: take a prompt of another length as it is where the network's pipelines
        would pad it with zeros (Wan: to 512 tokens). For networks that were trained
        without padding.

    >>> import numpy as np
    >>> from sixbit_jax import Prompt
    >>> embeds = np.zeros((1, 226, 4096))
    >>> prompt = Prompt(embeds, negative_embeds=np.zeros_like(embeds))
    >>> prompt.embeds.shape
    (1, 226, 4096)
    """

    embeds: Float[Array | np.ndarray, "batch T E"]
    negative_embeds: Float[Array | np.ndarray, "batch T E"] | None = None
    mask: Bool[Array | np.ndarray, "batch T"] | None = None
    negative_mask: Bool[Array | np.ndarray, "batch T"] | None = None
    pooled: Float[Array | np.ndarray, "batch P"] | None = None
    negative_pooled: Float[Array | np.ndarray, "batch P"] | None = None
    as_given: bool = False


@dataclass(frozen=True, eq=False)
class Guidance:
    """Classifier-free guidance.

    Attributes:
      scale: 1 or less runs without guidance, in one branch; None is the network's
        published scale; may be traced (and is then taken to be more than 1).
      dynamic: diffusers' cosine schedule of the scale.
      embedded: the scale that the network itself reads, for networks that do; None is
        its published one.
    """

    scale: float | Float[Array, ""] | None = None
    dynamic: bool = False
    embedded: float | Float[Array, ""] | None = None


@dataclass(frozen=True, eq=False)
class Conditions:
    """What a network is given besides prompts; each network says which it takes.

    Attributes:
      image_latents: extra input channels of I2V models, [batch, F, C2, H, W].
      image_embeds: image tokens that Wan2.1 I2V reads by cross-attention, in every
        guidance branch, [batch, I, E2].
      first_frames: clean latents of the first frames, [batch, F0, C, H, W], for
        Wan2.2 TI2V: their tokens are at timestep 0 in every step.
      ofs: extra scalar of CogVideoX1.5 I2V; None is the published 2.0.
      low_noise: the second network of Wan2.2-A14B, its boundary and guidance scale;
        the model is then the one for high noise.
    """

    image_latents: Float[Array | np.ndarray, "batch F C2 H W"] | None = None
    image_embeds: Float[Array | np.ndarray, "batch I E2"] | None = None
    first_frames: Float[Array | np.ndarray, "batch F0 C H W"] | None = None
    ofs: float | Float[Array, ""] | None = None
    low_noise: LowNoise | None = None


@dataclass(frozen=True)
class Execution:
    """How the program computes.

    Attributes:
      dtype: compute dtype of the network; latents stay float32.
      attention: "bf16", or "int8" for scores of quantized queries and keys, in all
        blocks; None: as the policy says (`int8_attention`), or "bf16".
      cache_format: storage of the delta cache, "bf16", "int8", "nvfp4" or "float32".
      batched_guidance: both guidance branches in one forward with one shared plan.
      kernels: let the GPU kernels run where they can; False takes the plain
        definitions everywhere, which also run under `vmap`.
      progress: draw a progress bar from inside the program.
      arq_block: channels that share a live scale on the routes ARQ4 and ARQ8.

    Raises:
      ValueError: for values outside of these; lists all of them.

    >>> from sixbit_jax import Execution
    >>> Execution(attention="int8", cache_format="nvfp4").attention
    'int8'
    """

    dtype: Any = jnp.bfloat16
    attention: Precision | None = None
    cache_format: str = "bf16"
    batched_guidance: bool = False
    kernels: bool = True
    progress: bool = False
    arq_block: int = 128

    def __post_init__(self) -> None:
        problems = []
        if self.attention not in (None, "bf16", "int8"):
            problems.append(
                f"attention: expected 'bf16', 'int8' or None, found {self.attention!r}"
            )
        if self.cache_format not in delta_cache.CACHE_FORMATS:
            problems.append(
                f"cache_format: expected one of {', '.join(delta_cache.CACHE_FORMATS)};"
                f" found {self.cache_format!r}"
            )
        if isinstance(self.arq_block, bool) or not (
            isinstance(self.arq_block, int) and self.arq_block >= 1
        ):
            problems.append(
                f"arq_block: expected a positive integer, found {self.arq_block!r}"
            )
        try:
            floating = jnp.issubdtype(jnp.dtype(self.dtype), jnp.floating)
        except TypeError:
            floating = False
        if not floating:
            problems.append(
                f"dtype: expected a floating-point dtype, found {self.dtype!r}"
            )
        if problems:
            raise ValueError("Execution:\n  " + "\n  ".join(problems))


@dataclass(frozen=True, eq=False)
class Noise:
    """Noise that is given instead of drawn.

    Attributes:
      initial: initial latents, [batch, F, C, H, W]; None draws them from the seed.
      steps: what a stochastic scheduler adds, [steps, batch, F, C, H, W]; None draws it
        from the seed.
    """

    initial: Float[Array | np.ndarray, "batch F C H W"] | None = None
    steps: Float[Array | np.ndarray, "steps batch F C H W"] | None = None


__all__ = ["Conditions", "Execution", "Guidance", "Noise", "Prompt"]
