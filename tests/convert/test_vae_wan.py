"""The rule table of the Wan autoencoder."""

import math

import numpy as np
import pytest

from convert.vae_wan import TABLE
from sixbit_jax.vae.wan import AutoencoderKLWan
from sixbit_jax.vae.wan_config import WanVAEConfig
from tests.golden import vae_wan_cases as cases
from tests.sixbit_jax.vae.test_wan_config import WAN_22
from tests.sixbit_jax.vae.wan_models import abstract, flat

# One of every configuration.
NAMES = list({name.split("_f")[0]: name for name in cases.names()}.values())


def _keys(config) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Our path and the checkpoint's shape, by the checkpoint's key."""
    found = {}
    for path, leaf in flat(abstract(config)).items():
        key, rule = TABLE.source_of(path)
        shape = rule.transform.source_shape(tuple(leaf.get_value().shape))
        found[key] = (path, shape)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_table_names_exactly_the_keys_of_diffusers(name):
    case = cases.load(name)
    keys = _keys(WanVAEConfig.from_dict(case.config))
    assert {key: shape for key, (_, shape) in keys.items()} == case.shapes
    for key, (path, _) in keys.items():
        assert [t for r in TABLE.rules if (t := r.to_target(key))] == [path]
        assert [s for r in TABLE.rules if (s := r.to_source(path))] == [key]


@pytest.mark.parametrize(
    ("values", "count"), [({}, 126_892_531), (WAN_22, 704_688_668)]
)
def test_sizes_are_those_of_the_published_networks(values, count):
    keys = _keys(WanVAEConfig.from_dict(values))
    assert sum(math.prod(shape) for _, shape in keys.values()) == count


@pytest.mark.parametrize("name", NAMES)
def test_values_come_back_as_they_were(name):
    case = cases.load(name)
    for key, value in case.weights().items():
        (rule,) = (r for r in TABLE.rules if r.to_target(key))
        assert AutoencoderKLWan.weight_role(rule.to_target(key)) is None
        ours = rule.transform.forward(value)
        np.testing.assert_array_equal(rule.transform.backward(ours), value)
