"""The transformers of a pipeline as one function from embeddings to latents."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from jax.sharding import Mesh
from jaxtyping import Array

from sixbit_jax.checkpoint import CheckpointError
from sixbit_jax.pipelines.loading import SECOND, TRANSFORMER, Components
from sixbit_jax.pipelines.prompts import PromptEmbeds, prompt_of
from sixbit_jax.pipelines.settings import VideoSettings
from sixbit_jax.policies import Policy
from sixbit_jax.sampling.api import sample
from sixbit_jax.sampling.options import Conditions, Execution, Guidance, Noise
from sixbit_jax.sampling.pair import LowNoise
from sixbit_jax.sampling.schedulers.choice import choose_scheduler


@contextlib.contextmanager
def denoiser(
    pipe: Components,
    description: Any,
    settings: VideoSettings,
    *,
    scheduler: str | None = None,
    shift: float | None = None,
    sigmas: Sequence[float] | None = None,
    timesteps: Sequence[float] | None = None,
    policy: Policy | Callable[[Any], Policy] | None = None,
    execution: Execution | None = None,
    guidance_scale_2: float | None = None,
    mesh: Mesh | None = None,
) -> Iterator[Callable[..., Any]]:
    """The transformer (or both) on the device; see `VideoPipeline.sampler`."""
    chosen = choose_scheduler(
        description,
        pipe.header.scheduler,
        name=scheduler,
        shift=shift,
        size=(settings.height, settings.width),
        sigmas=sigmas,
        timesteps=timesteps,
    )
    execution = Execution(dtype=pipe.dtype) if execution is None else execution
    guidance = Guidance(settings.guidance_scale, embedded=settings.embedded_guidance)
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(pipe.component(TRANSFORMER, mesh=mesh))
        low = None
        if SECOND in pipe.headers:
            second = stack.enter_context(pipe.component(SECOND, mesh=mesh))
            low = LowNoise(second, _boundary(pipe), guidance_scale_2)
        if callable(policy) and not isinstance(policy, Policy):
            policy = policy(model)

        def run(
            embeds: PromptEmbeds,
            negative: PromptEmbeds | None,
            *,
            seed: int = 0,
            noise: Noise | Array | None = None,
            on_step: Callable[[int, int], bool | None] | None = None,
            conditions: Conditions | None = None,
        ) -> Any:
            result = sample(
                model,
                chosen,
                prompt_of(embeds, negative),
                latent_shape=settings.latent_shape,
                num_steps=settings.num_steps,
                guidance=guidance,
                conditions=replace(conditions or Conditions(), low_noise=low),
                policy=policy,
                execution=execution,
                seed=seed,
                noise=noise,
                on_step=on_step,
                mesh=mesh,
            )
            if mesh is None:
                return result
            # Every device has the whole latents; the VAE runs on one of them.
            own = result.latents.addressable_shards[0].data
            return result._replace(latents=own)

        yield run


def _boundary(pipe: Components) -> float:
    """The noise level at which a pair of networks changes."""
    boundary = pipe.header.options.get("boundary_ratio")
    if boundary is None:
        raise CheckpointError(
            f"{pipe.path}: expected boundary_ratio beside {SECOND}, found none"
        )
    return boundary


__all__ = ["denoiser"]
