import json
import re

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import convert
from convert.export import to_diffusers
from convert.planning import plan
from convert.reader import open_source
from convert.safetensors_file import header_bytes
from convert.wan import TABLE
from sixbit_jax import checkpoint
from sixbit_jax.checkpoint import parameter_shapes
from sixbit_jax.formats import NVFP4Array
from sixbit_jax.models.wan.network import WanTransformer
from tests.convert.checkpoints import write_golden
from tests.golden import wan_cases

I2V = "i2v_21_f2_4x12_t512_rows"
T2V = "t2v_f1_6x4_t3_rows"
BLOCK = "blocks.0."


def _keys(config) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Our path and the shape, by the checkpoint's key."""
    found = {}
    for path, shape in parameter_shapes(TABLE.model_class, config).items():
        stack, _, leaf = path.partition(".")
        if stack not in TABLE.stacks:
            found[TABLE.source_of(path)[0]] = (path, tuple(shape))
            continue
        for layer in range(shape[0]):
            full = f"{stack}.{layer}.{leaf}"
            found[TABLE.source_of(full)[0]] = (full, tuple(shape[1:]))
    return found


def _relative(model, case) -> float:
    given = case.inputs()
    arrays = [given.latents, given.text, given.timestep]
    image = None if given.image is None else jnp.asarray(given.image)
    output = np.asarray(model(*map(jnp.asarray, arrays), image=image))
    error = np.linalg.norm(output - case.output) / np.linalg.norm(case.output)
    return float(error)


@pytest.mark.parametrize("name", wan_cases.names())
def test_the_table_names_exactly_the_keys_of_diffusers(name):
    case = wan_cases.load(name)
    keys = _keys(case.config)
    assert {key: shape for key, (_, shape) in keys.items()} == case.shapes
    for key, (path, _) in keys.items():
        assert [t for r in TABLE.rules if (t := r.to_target(key))] == [path]


@pytest.mark.parametrize(
    ("values", "count", "sites"),
    [
        ({"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}, 825, 240),
        ({}, 1095, 320),
    ],
)
def test_key_counts_of_the_published_models(values, count, sites):
    keys = _keys(values)
    assert len(keys) == count
    paths = [re.sub(r"^blocks\.\d+", "blocks", path) for path, _ in keys.values()]
    roles = [WanTransformer.weight_role(path) for path in paths]
    assert roles.count("site") == sites
    # Keys and values of the text in every block; three of the embedders.
    assert roles.count("small_batch") == sites // 4 + 3


@pytest.mark.parametrize(("name", "shards"), [(I2V, 3), (T2V, 0)])
def test_a_converted_checkpoint_gives_the_output_of_diffusers(tmp_path, name, shards):
    case = wan_cases.load(name)
    source = write_golden(tmp_path / "src", case, shards=shards)
    report = convert.convert(source, tmp_path / "out")
    model, header = checkpoint.load(tmp_path / "out")
    assert _relative(model, case) <= 2e-5
    assert report.keys_read == len(case.shapes)
    assert report.keys_ignored == ()
    assert header.config == case.config


def test_nvfp4_rotates_the_linears_of_sites_only(tmp_path):
    case = wan_cases.load(T2V)
    source = write_golden(tmp_path / "src", case)
    report = convert.convert(source, tmp_path / "out", weights="nvfp4")
    model, _ = checkpoint.load(tmp_path / "out")
    rotations = {
        "to_q": model.blocks.attn2.to_q.weight.get_value().rotation,
        "to_k": model.blocks.attn2.to_k.weight.get_value().rotation,
        "down": model.blocks.ffn.down.weight.get_value().rotation,
    }
    assert rotations == {"to_q": 128, "to_k": 0, "down": 128}
    embedder = model.condition_embedder
    assert isinstance(embedder.time_proj.weight.get_value(), NVFP4Array)
    first = embedder.time_embedder.linear_1.weight.get_value()
    assert not isinstance(first, NVFP4Array)
    assert report.keys_quantized == 10 * case.config["num_layers"] + 3
    assert 0.001 < _relative(model, case) < 0.2


def test_written_back_it_is_the_checkpoint_that_was_read(tmp_path):
    case = wan_cases.load(I2V)
    source = write_golden(tmp_path / "src", case)
    convert.convert(source, tmp_path / "out")
    to_diffusers(tmp_path / "out", tmp_path / "back")
    back = open_source(tmp_path / "back").tensors
    assert back.keys() == case.shapes.keys()
    for key, value in case.weights().items():
        np.testing.assert_array_equal(back[key].read(), value)


def test_a_saved_model_is_loaded_again(tmp_path):
    case = wan_cases.load(T2V)
    source = write_golden(tmp_path / "src", case)
    convert.convert(source, tmp_path / "out")
    model, _ = checkpoint.load(tmp_path / "out")
    header = checkpoint.save(model, tmp_path / "again")
    assert header.stacks.keys() == {"blocks"}
    copy, _ = checkpoint.load(tmp_path / "again")
    np.testing.assert_array_equal(
        copy.blocks.ffn.up.weight[...], model.blocks.ffn.up.weight[...]
    )


def test_problems_of_the_keys_are_one_error_and_the_unused_norm_is_none(tmp_path):
    def edit(weights):
        del weights[BLOCK + "attn2.add_k_proj.bias"]
        weights["scale_shift_table"] = np.zeros((1, 3, 128), np.float32)
        weights[BLOCK + "attn2.norm_added_q.weight"] = np.ones(128, np.float32)
        weights["lora"] = np.zeros(2, np.float32)

    source = write_golden(tmp_path / "src", wan_cases.load(I2V), edit=edit)
    with pytest.raises(convert.ConversionError) as error:
        convert.convert(source, tmp_path / "out")
    for part in (
        "missing (1)",
        BLOCK + "attn2.add_k_proj.bias",
        "unexpected (1)",
        "lora",
        "scale_shift_table: expected [1, 2, 128], found [1, 3, 128]",
    ):
        assert part in str(error.value)
    assert "norm_added_q" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_a_14b_checkpoint_becomes_3_times_smaller_than_bf16(tmp_path):
    config = {"_class_name": TABLE.model_class}
    layout = {
        key: (np.dtype(ml_dtypes.bfloat16), shape)
        for key, (_, shape) in _keys(config).items()
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    header = header_bytes(layout)
    with open(tmp_path / "m.safetensors", "wb") as file:
        file.write(header)
        # A hole of 29 GB: the plan needs headers only.
        file.truncate(len(header) + 2 * 14_288_491_584)
    planned, assigned = plan(
        open_source(tmp_path), dtype="keep", weights="nvfp4", rotation=128
    )
    assert len(assigned) == 1095
    assert planned.num_parameters == 14_288_491_584
    assert 2 * planned.num_parameters / planned.nbytes >= 3.4
