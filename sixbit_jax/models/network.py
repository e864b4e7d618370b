"""The contract of a network: what the sampler, the policies and the commands ask of it.

A network describes itself (`Description`, made from its configuration alone), embeds,
runs its stacks of blocks, and unembeds. `docs/add-a-model.md` is the checklist.
"""

from typing import Any, ClassVar, NamedTuple, Protocol, Self, runtime_checkable

from flax import nnx
from jaxtyping import Array, Bool, Float

from sixbit_jax.models.blocks import BlockControl, BlockStats
from sixbit_jax.models.description import (
    BlockStack,
    Compression,
    ConditionSpec,
    Defaults,
    Description,
    Prediction,
    PromptSpec,
)
from sixbit_jax.nn.axes import NO_AXES, Axes
from sixbit_jax.nn.site import SiteOptions


class PromptInputs(NamedTuple):
    """What of a prompt a network reads; the same in all steps. None where not taken.

    Attributes:
      text: embeddings.
      mask: which text tokens are no padding.
      pooled: embedding of the whole prompt.
      image: embeddings of image tokens.
      axes: over which the blocks' weights are split: whoever reads them here gathers
        them first (`Axes.gather`). Static.
    """

    text: Float[Array, "rows T E"]
    mask: Bool[Array, "rows T"] | None = None
    pooled: Float[Array, "rows P"] | None = None
    image: Float[Array, "rows I E2"] | None = None
    axes: Axes = NO_AXES


class Extra(NamedTuple):
    """What `embed` is given besides latents, prompt and timestep.

    Attributes:
      ofs: extra scalar of CogVideoX1.5 I2V.
      guidance: scale that the network itself reads.
      clean_frames: leading latent frames that are at timestep 0. Static.
    """

    ofs: Float[Array, "rows"] | None = None
    guidance: Float[Array, "rows"] | None = None
    clean_frames: int = 0


NO_EXTRA = Extra()


@runtime_checkable
class Conditioning(Protocol):
    """What every block reads besides the residual stream; a NamedTuple.

    Attributes:
      per_layer: None, or by name of a stack what each of its layers reads on its own,
        with a leading layer axis. A block is given its layer's slice in the place of
        the whole mapping (`for_layer`).
      boundaries: how many tokens stand before each change of treatment (text, clean
        frames). Between them all rows are alike to a block, so that a part of each run
        can stand for a part of the stream.
    """

    @property
    def per_layer(self) -> Any: ...

    @property
    def boundaries(self) -> tuple[int, ...]: ...

    def _replace(self, **changes: Any) -> Self: ...


def layers_of(conditioning: Any, stack: str) -> Any:
    """What the layers of a stack read on their own (see `Conditioning`), or None."""
    found = conditioning.per_layer
    return None if found is None else found.get(stack)


def for_layer(conditioning: Any, layer: Any) -> Any:
    """The `Conditioning` as one block is given it."""
    return conditioning._replace(per_layer=layer)


class Block(Protocol):
    """One block. It asks a `SiteRunner` for its sites by name."""

    def __call__(
        self,
        x: Float[Array, "batch tokens D"],
        conditioning: Any,
        control: BlockControl | None = None,
        options: SiteOptions = ...,
    ) -> tuple[Float[Array, "batch tokens D"], BlockStats]:
        """The new residual stream and the stats of the block's sites."""
        ...


class Network(Protocol):
    """A denoising network; `DescribedNetwork` has all that follows from `describe`.

    All stacks run over one residual stream [batch, tokens, D].
    """

    class_name: ClassVar[str]
    config_class: ClassVar[type]
    stack_names: ClassVar[tuple[str, ...]]
    config: Any
    pair_boundary: float | None

    @classmethod
    def describe(cls, config: Any) -> Description:
        """What follows from a configuration, without a network."""
        ...

    @staticmethod
    def weight_role(name: str) -> str | None:
        """How a parameter of this dotted path may be quantized.

        Returns:
          "site" for the weights of quantized linears, "small_batch" for those of
          linears that run on few rows (weights only), None for all that stays.
        """
        ...

    @property
    def description(self) -> Description: ...

    @property
    def stacks(self) -> tuple[BlockStack, ...]: ...

    @property
    def num_blocks(self) -> int: ...

    @property
    def sites(self) -> tuple[str, ...]: ...

    def blocks_by_stack(self) -> dict[str, nnx.Module]: ...

    def prepare_prompt(self, given: PromptInputs, *, dtype: Any) -> Any:
        """What of a prompt is computed once for all steps; a pytree for `embed`."""
        ...

    def embed(
        self,
        latents: Float[Array, "rows F C H W"],
        prompt: Any,
        timestep: Float[Array, "rows"],
        extra: Extra = NO_EXTRA,
    ) -> tuple[Float[Array, "rows tokens D"], Any]:
        """The residual stream before the blocks, and the conditioning."""
        ...

    def unembed(
        self,
        x: Float[Array, "rows tokens D"],
        conditioning: Any,
        latent_shape: tuple[int, ...],
    ) -> Float[Array, "rows F C H W"]:
        """The prediction, from the residual stream after the blocks."""
        ...


class DescribedNetwork(nnx.Module):
    """What every network has that follows from its description."""

    class_name: ClassVar[str]
    config_class: ClassVar[type]
    stack_names: ClassVar[tuple[str, ...]]
    config: Any

    pair_boundary: float | None = None
    """Set where this is one network of a pair: the noise level at which they change."""

    @classmethod
    def describe(cls, config: Any) -> Description:
        """What follows from a configuration, without a network."""
        raise NotImplementedError(f"{cls.__name__}.describe")

    @property
    def description(self) -> Description:
        """What follows from this network's configuration."""
        return type(self).describe(self.config)

    @property
    def stacks(self) -> tuple[BlockStack, ...]:
        """The blocks, in the order they run."""
        return self.description.stacks

    @property
    def num_blocks(self) -> int:
        """Blocks of all stacks together, L."""
        return self.description.num_blocks

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites of all stacks, each once, S."""
        return self.description.sites

    def blocks_by_stack(self) -> dict[str, nnx.Module]:
        """The stacked blocks by name of their stack, in the order they run."""
        return {stack.name: vars(self)[stack.name] for stack in self.stacks}


__all__ = [
    "NO_EXTRA",
    "Block",
    "BlockStack",
    "Compression",
    "ConditionSpec",
    "Conditioning",
    "Defaults",
    "DescribedNetwork",
    "Description",
    "Extra",
    "Network",
    "Prediction",
    "PromptInputs",
    "PromptSpec",
    "for_layer",
    "layers_of",
]
