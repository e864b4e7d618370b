"""6Bit-Diffusion (arXiv 2603.18742) as a recipe."""

import os
from pathlib import Path
from typing import Any

import sixbit_jax.demo
from sixbit_jax.calibration import policy_from_file
from sixbit_jax.methods.recipe import Recipe
from sixbit_jax.policies import Policy
from sixbit_jax.quantizers.nvfp4 import NVFP4Recipe
from sixbit_jax.routes import Route

BUNDLED_POLICY = Path(sixbit_jax.demo.__path__[0]) / "policy.json"


def sixbit_diffusion(*, refine: bool = True) -> Recipe:
    """NVFP4 weights, DMPQ's NVFP4 and INT8 activations, Temporal Delta Cache, PDR.

    The policy's number is `file`, a policy that `sixbit calibrate` made for the model
    (default: that of the bundled model).

    Args:
      refine: NVFP4 block scales of least squared error (DVD-Quant's BGR); worth
        1.5 to 1.9 dB on the bundled model. False rounds to nearest, as the paper does.
    """
    return Recipe(
        name="sixbit-diffusion",
        description="NVFP4 weights, activations of 4 and 8 bits by predicted error, "
        "blocks skipped by the Temporal Delta Cache",
        weights=NVFP4Recipe(refine=refine),
        make_policy=_policy,
        routes=(Route.NVFP4, Route.INT8),
        numbers={"file": BUNDLED_POLICY},
    )


def _policy(model: Any, *, file: str | os.PathLike) -> Policy:
    return policy_from_file(file, model)
