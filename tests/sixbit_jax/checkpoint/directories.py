"""Checkpoint directories compared, and their headers changed."""

import json

import jax
import numpy as np
from flax import nnx

from sixbit_jax.checkpoint import header as header_module
from sixbit_jax.models.cogvideox.config import CogVideoXConfig

CONFIG = CogVideoXConfig(
    num_attention_heads=2,
    attention_head_dim=32,
    in_channels=2,
    out_channels=2,
    time_embed_dim=32,
    text_embed_dim=32,
    num_layers=3,
    sample_width=4,
    sample_height=4,
    sample_frames=1,
    max_text_seq_length=4,
    use_rotary_positional_embeddings=True,
)


def state_of(model):
    flat = jax.tree_util.tree_flatten_with_path(nnx.state(model))[0]
    return {jax.tree_util.keystr(path): leaf for path, leaf in flat}


def same(found, expected):
    found, expected = state_of(found), state_of(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def edit(directory, change, *, sealed=True):
    """Changes the header, with a checksum that fits it unless `sealed` is false."""
    file = directory / "sixbit.json"
    values = json.loads(file.read_text())
    change(values)
    if sealed:
        values["checksum"] = header_module.seal(values)
    file.write_text(json.dumps(values))


def as_an_earlier_version_wrote_it(directory):
    def without(values):
        del values["checksums"], values["checksum"]

    edit(directory, without, sealed=False)
