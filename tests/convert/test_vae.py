"""The rule tables of video autoencoders account for every key of diffusers."""

import pytest
from flax import nnx

from convert import vae_cogvideox, vae_hunyuan_video
from sixbit_jax.vae.cogvideox import AutoencoderKLCogVideoX
from sixbit_jax.vae.hunyuan_video import AutoencoderKLHunyuanVideo
from tests.golden import vae_cases

NETWORKS = {
    "vae_cogvideox": (AutoencoderKLCogVideoX, vae_cogvideox.TABLE),
    "vae_hunyuan_video": (AutoencoderKLHunyuanVideo, vae_hunyuan_video.TABLE),
}
CASES = [(folder, name) for folder in NETWORKS for name in vae_cases.names(folder)]


def paths(network, config) -> dict[str, tuple[int, ...]]:
    state = nnx.eval_shape(lambda: nnx.state(network(config, rngs=nnx.Rngs(0))))
    return {
        ".".join(map(str, path)): leaf.get_value().shape
        for path, leaf in nnx.to_flat_state(state)
    }


@pytest.mark.parametrize(("folder", "name"), CASES)
def test_the_table_names_exactly_the_keys_of_diffusers(folder, name):
    network, table = NETWORKS[folder]
    case = vae_cases.load(folder, name)
    shapes = paths(network, network.config_class.from_dict(case.config))
    keys = {table.source_of(path)[0]: shape for path, shape in shapes.items()}
    assert keys == case.shapes


@pytest.mark.parametrize("folder", NETWORKS)
def test_every_key_has_one_rule_and_none_is_quantized(folder):
    network, table = NETWORKS[folder]
    assert table.model_class == network.class_name
    for path in paths(network, network.config_class()):
        key, _ = table.source_of(path)
        assert [t for r in table.rules if (t := r.to_target(key))] == [path]
        assert network.weight_role(path) is None
