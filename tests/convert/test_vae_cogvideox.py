"""The rule table of CogVideoX's autoencoder accounts for every key of diffusers."""

import pytest
from flax import nnx

from convert.rules import Role
from convert.vae_cogvideox import TABLE
from sixbit_jax.vae.cogvideox import AutoencoderKLCogVideoX
from sixbit_jax.vae.cogvideox_config import CogVideoXVAEConfig
from tests.golden import vae_cases

FOLDER = "vae_cogvideox"


def paths(config: CogVideoXVAEConfig) -> dict[str, tuple[int, ...]]:
    state = nnx.eval_shape(
        lambda: nnx.state(AutoencoderKLCogVideoX(config, rngs=nnx.Rngs(0)))
    )
    return {
        ".".join(map(str, path)): leaf.get_value().shape
        for path, leaf in nnx.to_flat_state(state)
    }


@pytest.mark.parametrize("name", vae_cases.names(FOLDER))
def test_the_table_names_exactly_the_keys_of_diffusers(name):
    case = vae_cases.load(FOLDER, name)
    shapes = paths(CogVideoXVAEConfig.from_dict(case.config))
    keys = {TABLE.source_of(path)[0]: shape for path, shape in shapes.items()}
    assert keys == case.shapes


def test_every_key_has_one_rule_and_none_is_quantized():
    for path in paths(CogVideoXVAEConfig()):
        key, rule = TABLE.source_of(path)
        assert [t for r in TABLE.rules if (t := r.to_target(key))] == [path]
        assert rule.role is Role.OTHER
