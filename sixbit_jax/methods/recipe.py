"""`Recipe`: a whole method as a composition of public pieces."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flax import nnx

from pallas_kernels.attention.api import Precision
from sixbit_jax.policies import Policy
from sixbit_jax.quantizers.nvfp4 import quantize
from sixbit_jax.quantizers.storage import WeightRecipe
from sixbit_jax.routes import Route


@dataclass(frozen=True)
class Recipe:
    """What a method does to weights, activations and steps.

    ```python
    recipe = sixbit_jax.recipes.dvd_quant()
    model = recipe.quantize(model)
    execution = Execution(**recipe.sampling())
    sample(model, scheduler, prompt, policy=recipe.policy(model), execution=execution)
    ```

    Attributes:
      name: as on the command line, e.g. "dvd-quant".
      description: one line.
      weights: which weights are stored, and how.
      make_policy: (model, **numbers) -> policy.
      routes: (4-bit, 8-bit) arithmetic that the policy chooses from.
      target_bits: mean activation width that calibration aims at.
      numbers: defaults of the policy's numbers, where the method has any.
      attention: precision of the scores; None: as the policy says, or 16 bits.
      cache_format: storage of the delta cache.
      arq_block: channels that share a live scale on the ARQ routes.
      quantizer: (model, weights, **data) -> quantized model, for methods that need
        data or tuning; None: `quantize(model, weights)`.
    """

    name: str
    description: str
    weights: WeightRecipe
    make_policy: Callable[..., Policy]
    routes: tuple[Route, Route]
    target_bits: float = 6.0
    numbers: Mapping[str, Any] = field(default_factory=dict)
    attention: Precision | None = None
    cache_format: str = "bf16"
    arq_block: int = 128
    quantizer: Callable[..., nnx.Module] | None = None

    def quantize(self, model: nnx.Module, **data: Any) -> nnx.Module:
        """A copy of a model in memory with the recipe's weights.

        Args:
          model: a ported transformer with plain weights.
          data: what the method needs besides; see the recipe's function.

        Raises:
          TypeError: data for a recipe that takes none.
        """
        if self.quantizer is not None:
            return self.quantizer(model, self.weights, **data)
        if data:
            raise TypeError(
                f"recipe {self.name}: expected no data, found {', '.join(data)}"
            )
        return quantize(model, self.weights)

    def policy(self, model: Any, **numbers: Any) -> Policy:
        """The policy for a model; `numbers` replace the recipe's own."""
        return self.make_policy(model, **{**self.numbers, **numbers})

    def sampling(self) -> dict[str, Any]:
        """The fields of `sixbit_jax.Execution` that belong to the method."""
        return {
            "attention": self.attention,
            "cache_format": self.cache_format,
            "arq_block": self.arq_block,
        }
