"""The estimate of memory fits the usual cards: 12 GB and 24 GB, at 480p."""

import pytest

from sixbit_jax.benchmark.subject import CONFIGS, random_model, weight_bytes
from sixbit_jax.checkpoint.header import Header, ParameterSpec
from sixbit_jax.models.cogvideox.network import CogVideoXTransformer
from sixbit_jax.models.wan.network import WanTransformer
from sixbit_jax.pipelines import memory
from sixbit_jax.pipelines.settings import resolve
from sixbit_jax.policies import chain, tdc
from sixbit_jax.vae.cogvideox_config import CogVideoXVAEConfig
from sixbit_jax.vae.wan_config import WanVAEConfig

# Parameters of the text encoders and bytes of the VAEs (bf16), of the published files.
T5, UMT5 = 4_762_310_656, 5_680_910_336
COGVIDEOX_VAE, WAN_VAE = 431_000_000, 254_000_000
# Every second block may be skipped, all on one delta per branch; or each on its own.
POLICIES = {"one delta": chain(tdc(0.1, together=None)), "deltas": chain(tdc(0.1))}
# A card shows programs less than its name says.
USABLE = 0.92


def header(size: int) -> Header:
    return Header("part", {}, {"w": ParameterSpec((size // 2,), "bfloat16")}, {})


def needed(model: str, policy: str, cache_format: str) -> memory.MemoryEstimate:
    config = CONFIGS[model]
    wan = model.startswith("wan")
    network = WanTransformer if wan else CogVideoXTransformer
    description = network.describe(config)
    transformer = weight_bytes(random_model(config, quantized=True, abstract=True))
    headers = {
        "transformer": header(transformer),
        "text_encoder": header(int((UMT5 if wan else T5) * 1.04)),  # INT8
        "vae": header(WAN_VAE if wan else COGVIDEOX_VAE),
    }
    settings = resolve(description, config)
    assert min(settings.height, settings.width) == 480
    slots = memory.cached_deltas(
        POLICIES[policy], description, cache_format, guided=True
    )
    return memory.estimate(
        headers,
        description,
        config,
        WanVAEConfig() if wan else CogVideoXVAEConfig(),
        settings,
        itemsize=2,
        cached_blocks=slots,
        cache_format=cache_format,
    )


@pytest.mark.parametrize(
    ("model", "policy", "cache_format", "gigabytes"),
    [
        ("5b", "one delta", "bf16", 12),
        ("5b", "deltas", "nvfp4", 12),
        ("wan-1.3b", "one delta", "bf16", 12),
        ("wan-1.3b", "deltas", "nvfp4", 12),
        ("wan-14b", "one delta", "bf16", 24),
        ("wan-14b", "deltas", "nvfp4", 24),
    ],
)
def test_published_models_fit_small_cards(model, policy, cache_format, gigabytes):
    found = needed(model, policy, cache_format)
    memory.check(found, int(USABLE * gigabytes * 1e9))


def test_a_delta_of_its_own_for_every_block_in_bf16_does_not_fit_and_says_so():
    found = needed("wan-14b", "deltas", "bf16")
    with pytest.raises(MemoryError, match="--cache-format nvfp4"):
        memory.check(found, int(USABLE * 24e9))
