"""HunyuanVideo checkpoints to ours and back."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import convert
from convert.export import to_diffusers
from convert.hunyuan_video import TABLE
from convert.reader import open_source
from sixbit_jax import checkpoint
from sixbit_jax.checkpoint import parameter_shapes
from sixbit_jax.formats import NVFP4Array
from sixbit_jax.models.hunyuan_video.network import HunyuanVideoTransformer
from tests.convert.checkpoints import converted, write_golden
from tests.convert.lora_files import low_rank
from tests.golden import hunyuan_video_cases as cases

T2V = "t2v_f1_6x4_t3"
I2V = "token_replace_f2_4x12_t4"


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
    arrays = (given.latents, given.text, given.mask, given.pooled, given.timestep)
    guidance = None if given.guidance is None else jnp.asarray(given.guidance)
    output = np.asarray(model(*map(jnp.asarray, arrays), guidance))
    error = np.linalg.norm(output - case.output) / np.linalg.norm(case.output)
    return float(error)


@pytest.mark.parametrize("name", cases.names())
def test_the_table_names_exactly_the_keys_of_diffusers(name):
    case = cases.load(name)
    keys = _keys(case.config)
    assert {key: shape for key, (_, shape) in keys.items()} == case.shapes
    for key, (path, _) in keys.items():
        assert [t for r in TABLE.rules if (t := r.to_target(key))] == [path]


def test_key_counts_of_the_published_model():
    keys = _keys({})
    assert len(keys) == 1264
    paths = [path for path, _ in keys.values() if path.startswith(TABLE.stacks)]
    blocks = [
        HunyuanVideoTransformer.weight_role(re.sub(r"blocks\.\d+", "blocks", path))
        for path in paths
    ]
    modulations = 2 * 20 + 40
    assert blocks.count("small_batch") == modulations
    assert blocks.count("site") == 520 - modulations


@pytest.mark.parametrize(("name", "shards"), [(I2V, 3), (T2V, 0)])
def test_a_converted_checkpoint_gives_the_output_of_diffusers(tmp_path, name, shards):
    case = cases.load(name)
    source = write_golden(tmp_path / "src", case, shards=shards)
    report = convert.convert(source, tmp_path / "out")
    model, header = checkpoint.load(tmp_path / "out")
    assert _relative(model, case) <= 2e-5
    assert report.keys_read == len(case.shapes)
    assert report.keys_ignored == ()
    assert header.config == case.config
    assert set(header.stacks) == set(TABLE.stacks)


def test_nvfp4_rotates_the_linears_of_sites_only(tmp_path):
    case = cases.load(T2V)
    source = write_golden(tmp_path / "src", case)
    report = convert.convert(source, tmp_path / "out", weights="nvfp4")
    model, _ = checkpoint.load(tmp_path / "out")
    dual, single = model.transformer_blocks, model.single_transformer_blocks
    for linear, rotation in (
        (dual.attn.add_q_proj, 128),
        (dual.ff_context.down, 128),
        (single.proj_out, 128),
        (dual.norm1.linear, 0),
        (single.norm.linear, 0),
        (model.context_embedder.token_refiner.refiner_blocks[0].ff.up, 0),
        (model.time_text_embed.guidance_embedder.linear_1, 0),
    ):
        weight = linear.weight.get_value()
        assert isinstance(weight, NVFP4Array)
        assert weight.rotation == rotation
    assert not isinstance(model.proj_out.weight.get_value(), NVFP4Array)
    # 14 linears of a dual block, 6 of a single one, 7 of a refiner block; time, pooled
    # prompt, guidance, then time and mean of the refiner; its proj_in; norm_out.
    assert report.keys_quantized == 2 * 14 + 2 * 6 + 2 * 7 + 5 * 2 + 2
    assert 0.001 < _relative(model, case) < 0.3


def test_written_back_it_is_the_checkpoint_that_was_read(tmp_path):
    case = cases.load(I2V)
    source = write_golden(tmp_path / "src", case)
    convert.convert(source, tmp_path / "out")
    to_diffusers(tmp_path / "out", tmp_path / "back")
    back = open_source(tmp_path / "back").tensors
    assert back.keys() == case.shapes.keys()
    for key, value in case.weights().items():
        np.testing.assert_array_equal(back[key].read(), value)


def test_a_saved_model_is_loaded_again(tmp_path):
    case = cases.load(T2V)
    source = write_golden(tmp_path / "src", case)
    convert.convert(source, tmp_path / "out")
    model, _ = checkpoint.load(tmp_path / "out")
    header = checkpoint.save(model, tmp_path / "again")
    assert header.stacks.keys() == set(TABLE.stacks)
    copy, _ = checkpoint.load(tmp_path / "again")
    assert _relative(copy, case) <= 2e-5


def test_a_lora_of_diffusers_names_is_added(tmp_path):
    case = cases.load(T2V)
    source = write_golden(tmp_path / "src", case)
    keys = [
        "transformer_blocks.0.attn.add_k_proj.weight",
        "transformer_blocks.0.ff_context.net.0.proj.weight",
        "single_transformer_blocks.0.proj_out.weight",
    ]
    weights = case.weights()
    tensors, gains = low_rank(weights, keys, "diffusers")
    save_file(tensors, tmp_path / "lora.safetensors")
    lora = [tmp_path / "lora.safetensors"]
    report = convert.convert(source, tmp_path / "out", lora=lora)
    assert report.loras[0]["parameters_changed"] == len(keys)
    found = converted(tmp_path / "out")
    for key, value in found.items():
        wanted = weights[key] + gains.get(key, 0)
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6, err_msg=key)
