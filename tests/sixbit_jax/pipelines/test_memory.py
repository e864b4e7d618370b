"""Estimates of memory: near what was measured, and a refusal that says what helps."""

import pytest

from sixbit_jax.checkpoint.header import Header, ParameterSpec
from sixbit_jax.models.cogvideox.config import CogVideoXConfig
from sixbit_jax.models.cogvideox.network import CogVideoXTransformer
from sixbit_jax.pipelines import memory
from sixbit_jax.pipelines.settings import resolve
from sixbit_jax.policies import chain, fixed, tdc
from sixbit_jax.routes import Route
from sixbit_jax.vae.cogvideox_config import CogVideoXVAEConfig

FIVE_B = CogVideoXConfig(
    num_attention_heads=48, num_layers=42, use_rotary_positional_embeddings=True
)


def header(name: str, size: int) -> Header:
    return Header(name, {}, {"w": ParameterSpec((size // 2,), "bfloat16")}, {})


def five_b(**options):
    description = CogVideoXTransformer.describe(FIVE_B)
    headers = {
        "transformer": header("CogVideoXTransformer3DModel", 3_200_000_000),
        "text_encoder": header("T5EncoderModel", 4_800_000_000),
        "vae": header("AutoencoderKLCogVideoX", 430_000_000),
    }
    settings = resolve(description, FIVE_B)
    return memory.estimate(
        headers,
        description,
        FIVE_B,
        CogVideoXVAEConfig(),
        settings,
        itemsize=2,
        **options,
    )


def test_estimate_of_five_b_is_near_what_was_measured():
    # Peak of the sampler on an H200 with one shared delta: 4.72 GB
    # (benchmarks/results/h200/sampling_5b.json).
    found = five_b(cached_blocks=2)
    assert found.sampling == pytest.approx(4.72e9, rel=0.1)
    assert found.cache == 2 * 17_776 * 3072 * 2
    # Of its decoder: 6.94 GB (benchmarks/results/h200/vae_cogvideox_groups.json).
    assert found.vae == pytest.approx(6.94e9, rel=0.1)


def test_tiles_and_cache_formats_need_less():
    assert five_b(tiled=True).vae < five_b().vae
    small = five_b(cached_blocks=84, cache_format="nvfp4")
    assert small.cache < five_b(cached_blocks=84).cache / 3


def test_what_cannot_fit_is_refused_with_what_would_help():
    found = five_b(cached_blocks=84)
    assert found.largest() in ("sampling", "vae")
    memory.check(found, None)
    memory.check(found, found.peak)
    with pytest.raises(MemoryError, match=r"at most 4.0 GB .* needs about .* less:"):
        memory.check(found, 4_000_000_000)


def test_the_cache_of_a_policy_is_counted_in_slots_of_all_branches():
    description = CogVideoXTransformer.describe(FIVE_B)

    def slots(policy, *, guided=True):
        return memory.cached_deltas(policy, description, "bf16", guided=guided)

    assert slots(chain()) == slots(fixed(route=Route.INT8)) == 0
    assert slots(chain(tdc(0.1))) == 84
    assert slots(chain(tdc(0.1)), guided=False) == 42
    # All blocks together have one delta, some of them a spare one too.
    assert slots(chain(tdc(0.1, together=None))) == 2
    assert slots(chain(tdc(0.1, blocks=(3, 4)))) == 6
    with pytest.raises(ValueError, match="cache_format: expected one of"):
        memory.cached_deltas(chain(), description, "fp8", guided=True)
