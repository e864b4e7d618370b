import json
import resource
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import convert
from benchmarks.convert import source_shapes
from convert.planning import plan
from convert.reader import open_source
from convert.safetensors_file import header_bytes
from convert.tables import table_for
from convert.values import check_finite, kept_dtype
from sixbit_jax import checkpoint
from sixbit_jax.checkpoint import CheckpointError
from sixbit_jax.formats import NVFP4Array
from tests.convert.checkpoints import SCHEDULER, golden, write_golden
from tests.golden import cases

BLOCK = "transformer_blocks.0."


def _forward(model, case):
    inputs = case.inputs()
    ofs = None if inputs.ofs is None else jnp.asarray(inputs.ofs)
    arrays = (inputs.latents, inputs.text, inputs.timestep)
    return np.asarray(model(*map(jnp.asarray, arrays), ofs))


def _relative(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _nothing_left(directory, *kept):
    assert sorted(p.name for p in directory.iterdir()) == sorted(kept)


@pytest.mark.parametrize(
    ("name", "shards"),
    [
        ("2b_f1_8x12_t10", 0),
        ("5b_f1_12x8_t7", 2),
        ("5b_i2v_f1_8x12_t10", 3),
        ("1_5_i2v_f3_8x12_t10", 0),
    ],
)
def test_a_converted_checkpoint_gives_the_output_of_diffusers(tmp_path, name, shards):
    case = cases.load(name)
    source = write_golden(tmp_path / "root" / "transformer", case, shards=shards)
    report = convert.convert(source.parent, tmp_path / "out")
    model, header = checkpoint.load(tmp_path / "out")
    assert _relative(_forward(model, case), case.output) <= 2e-5
    assert report.keys_read == len(case.shapes)
    assert report.num_parameters == sum(np.prod(s) for s in case.shapes.values())
    assert report.keys_ignored == ()
    assert header.config == case.config
    assert header.source["dtypes"] == {"float32": len(case.shapes)}
    _nothing_left(tmp_path, "root", "out")


@pytest.mark.parametrize(
    ("stored", "dtype", "expected"),
    [
        (np.float64, "keep", "float32"),
        (np.float16, "keep", "float16"),
        (ml_dtypes.bfloat16, "keep", "bfloat16"),
        (ml_dtypes.bfloat16, "float32", "float32"),
        (np.float32, "bfloat16", "bfloat16"),
        (np.float32, "float16", "float16"),
        (ml_dtypes.float8_e4m3fn, "keep", "bfloat16"),
        (ml_dtypes.float8_e5m2, "keep", "bfloat16"),
    ],
)
def test_every_value_is_the_cast_of_the_source(tmp_path, stored, dtype, expected):
    case = golden()
    source = write_golden(tmp_path / "src", case, dtype=stored)
    convert.convert(source, tmp_path / "out", dtype=dtype)
    key = BLOCK + "ff.net.2.weight"
    wanted = case.weights()[key].astype(stored).astype(jnp.dtype(expected))
    model, header = checkpoint.load(tmp_path / "out")
    assert {spec.dtype for spec, _ in header.specs()} == {expected}
    weight = model.transformer_blocks.ff.down.weight[...]
    np.testing.assert_array_equal(np.asarray(weight[0]), wanted)


def test_layers_of_different_dtypes_are_stored_in_the_wider_one(tmp_path):
    key = BLOCK + "norm1.norm.weight"

    def edit(weights):
        for name in weights:
            if name != key:
                weights[name] = weights[name].astype(ml_dtypes.bfloat16)

    source = write_golden(tmp_path / "src", golden(), edit=edit)
    convert.convert(source, tmp_path / "out")
    stack = checkpoint.read_header(tmp_path / "out").stacks["transformer_blocks"]
    assert stack.parameters["norm1.norm.weight"].dtype == "float32"
    assert stack.parameters["norm1.norm.bias"].dtype == "bfloat16"
    assert kept_dtype(np.dtype("f2"), np.dtype(ml_dtypes.bfloat16)) == "float32"


@pytest.mark.parametrize("rotation", [0, 128])
def test_nvfp4_quantizes_linears_and_folds_the_rotation_in(tmp_path, rotation):
    case = golden("5b_f3_6x10_t3")
    source = write_golden(tmp_path / "src", case)
    report = convert.convert(
        source, tmp_path / "out", weights="nvfp4", rotation=rotation
    )
    model, header = checkpoint.load(tmp_path / "out")
    block = model.transformer_blocks
    layers = case.config["num_layers"]
    weight = block.attn1.to_q.weight.get_value()
    assert isinstance(weight, NVFP4Array)
    assert weight.rotation == rotation
    assert weight.shape == (layers, 128, 128)
    source_weight = case.weights()["transformer_blocks.1.attn1.to_q.weight"]
    quantize = jax.jit(partial(NVFP4Array.quantize, rotation=rotation))
    expected = quantize(jnp.asarray(source_weight))
    np.testing.assert_array_equal(weight.codes[1], expected.codes)
    np.testing.assert_array_equal(weight.tensor_scale[1], expected.tensor_scale)
    assert block.norm1.linear.weight.get_value().rotation == 0
    assert isinstance(model.norm_out.linear.weight.get_value(), NVFP4Array)
    assert not isinstance(model.proj_out.weight.get_value(), NVFP4Array)
    assert report.keys_quantized == 8 * layers + 4
    assert header.quantization["rotation"] == rotation
    assert 0.001 < _relative(_forward(model, case), case.output) < 0.2


def test_a_5b_checkpoint_becomes_3_4_times_smaller_than_bf16(tmp_path):
    config = {
        "_class_name": "CogVideoXTransformer3DModel",
        "num_attention_heads": 48,
        "num_layers": 42,
        "use_rotary_positional_embeddings": True,
    }
    layout = {
        key: (np.dtype(ml_dtypes.bfloat16), shape)
        for key, shape in source_shapes(config, table_for(config)).items()
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    header = header_bytes(layout)
    with open(tmp_path / "m.safetensors", "wb") as file:
        file.write(header)
        # A hole of 11 GB: the plan needs headers only.
        file.truncate(len(header) + 2 * 5_570_283_072)
    planned, assigned = plan(
        open_source(tmp_path), dtype="keep", weights="nvfp4", rotation=128
    )
    assert len(assigned) == 1024
    assert planned.num_parameters == 5_570_283_072
    assert 2 * planned.num_parameters / planned.nbytes >= 3.4


def test_the_scheduler_of_the_root_travels(tmp_path):
    write_golden(tmp_path / "root" / "transformer", golden())
    (tmp_path / "root" / "model_index.json").write_text("{}")
    (tmp_path / "root" / "scheduler").mkdir()
    file = tmp_path / "root" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(SCHEDULER))
    convert.convert(tmp_path / "root", tmp_path / "out")
    assert checkpoint.read_header(tmp_path / "out").scheduler == SCHEDULER


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"snr_shift_scale": "3.0"}, "snr_shift_scale: expected a number"),
        ({"set_alpha_to_one": "false"}, "set_alpha_to_one: expected True or False"),
        ({"wings": 2}, "wings: not a field of a CogVideoX scheduler config"),
        ({"_class_name": []}, r"expected _class_name to be one of .*found \[\]"),
        ({"_class_name": None}, "found None"),
    ],
)
def test_a_scheduler_that_sampling_would_refuse_is_refused(tmp_path, change, message):
    write_golden(tmp_path / "src" / "transformer", golden())
    (tmp_path / "src" / "model_index.json").write_text("{}")
    (tmp_path / "src" / "scheduler").mkdir()
    file = tmp_path / "src" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(SCHEDULER | change))
    with pytest.raises(
        convert.ConversionError, match=f"scheduler_config.json: (.|\n)*{message}"
    ):
        convert.convert(tmp_path / "src", tmp_path / "out")
    _nothing_left(tmp_path, "src")


def test_a_scheduler_of_another_class_is_kept_by_name(tmp_path):
    write_golden(tmp_path / "root" / "transformer", golden())
    (tmp_path / "root" / "model_index.json").write_text("{}")
    (tmp_path / "root" / "scheduler").mkdir()
    file = tmp_path / "root" / "scheduler" / "scheduler_config.json"
    other = {"_class_name": "EulerDiscreteScheduler", "anything": 1}
    file.write_text(json.dumps(other))
    convert.convert(tmp_path / "root", tmp_path / "out")
    assert checkpoint.read_header(tmp_path / "out").scheduler == other


@pytest.mark.parametrize("found", [[], {}, 3, None, "UNet"])
def test_a_class_name_that_names_no_network_is_refused(tmp_path, found):
    _refused(
        tmp_path,
        "config.json _class_name: expected one of AutoencoderKLCogVideoX",
        config={"_class_name": found},
    )


def test_a_sidecar_table_is_ignored_and_reported(tmp_path):
    def edit(weights):
        weights["patch_embed.pos_embedding"] = np.zeros((1, 34, 128), np.float32)

    source = write_golden(tmp_path / "src", golden("2b_f1_8x12_t10"), edit=edit)
    report = convert.convert(source, tmp_path / "out")
    assert report.keys_ignored == ("patch_embed.pos_embedding",)
    assert "ignored by name: patch_embed.pos_embedding" in str(report)
    header = checkpoint.read_header(tmp_path / "out")
    assert header.source["keys_ignored"] == ["patch_embed.pos_embedding"]


def _refused(tmp_path, message, *, edit=None, config=None, error=None, **options):
    source = write_golden(tmp_path / "src", golden(), edit=edit)
    if config:
        values = golden().config | config
        (source / "config.json").write_text(json.dumps(values))
    with pytest.raises(error or convert.ConversionError, match=message) as caught:
        convert.convert(source, tmp_path / "out", **options)
    _nothing_left(tmp_path, "src")
    return str(caught.value)


def test_missing_unexpected_and_misshaped_keys_are_one_error(tmp_path):
    def edit(weights):
        del weights["proj_out.bias"]
        del weights[BLOCK + "attn1.to_q.weight"]
        weights["lora.up.weight"] = np.zeros((2, 2), np.float32)
        weights[BLOCK + "ff.net.2.bias"] = np.zeros(3, np.float32)

    text = _refused(tmp_path, "do not fit", edit=edit)
    for part in (
        "missing (2)",
        "proj_out.bias",
        BLOCK + "attn1.to_q.weight",
        "unexpected (1)",
        "lora.up.weight",
        f"{BLOCK}ff.net.2.bias: expected [128], found [3]",
    ):
        assert part in text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("weights", ["keep", "nvfp4"])
def test_nan_and_inf_weights_are_refused(tmp_path, value, weights):
    def edit(tensors):
        tensors["transformer_blocks.1.ff.net.2.weight"][3, 5] = value

    text = _refused(tmp_path, "1 NaN or Inf", edit=edit, weights=weights)
    assert "transformer_blocks.1.ff.net.2.weight" in text
    assert "the first at [3, 5]" in text


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_finite_check_counts_exactly(dtype):
    array = np.ones((4, 5), dtype)
    check_finite(array, "x")
    array[1, 2], array[3, 0] = np.inf, np.nan
    with pytest.raises(convert.ConversionError, match=r"2 NaN or Inf of 20.*\[1, 2\]"):
        check_finite(array, "x")


def test_overflow_in_a_cast_is_refused(tmp_path):
    def edit(weights):
        weights["norm_final.weight"][7] = 1e6

    _refused(tmp_path, "after the cast from float32", edit=edit, dtype="float16")


def test_an_unknown_class_is_refused(tmp_path):
    config = {"_class_name": "UNet2DConditionModel"}
    text = _refused(tmp_path, "expected one of", config=config)
    assert "CogVideoXTransformer3DModel" in text
    assert "'UNet2DConditionModel'" in text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation_fn": "swiglu"}, "activation_fn.*'swiglu'"),
        ({"num_layers": 0}, "num_layers: expected a whole number from 1"),
        ({"surprise": 1}, "surprise: not a field"),
    ],
)
def test_unsupported_config_values_are_refused(tmp_path, config, message):
    assert "config.json" in _refused(tmp_path, message, config=config)


def test_integer_weights_are_refused(tmp_path):
    def edit(weights):
        weights["proj_out.bias"] = weights["proj_out.bias"].astype(np.int8)

    _refused(tmp_path, "not floating point", edit=edit)


@pytest.mark.parametrize(
    "options", [{"dtype": "f8"}, {"weights": "q4"}, {"rotation": 7}]
)
def test_unknown_options_are_refused(tmp_path, options):
    name = next(iter(options))
    _refused(tmp_path, f"{name}: expected one of", error=ValueError, **options)


def test_an_existing_destination_stays_as_it_is(tmp_path):
    source = write_golden(tmp_path / "src", golden())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(CheckpointError, match="expected a new path"):
        convert.convert(source, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "precious"
    _nothing_left(tmp_path, "src", "out")


def test_a_destination_without_a_parent_is_refused(tmp_path):
    source = write_golden(tmp_path / "src", golden())
    with pytest.raises(CheckpointError, match="existing parent directory"):
        convert.convert(source, tmp_path / "no" / "out")
    _nothing_left(tmp_path, "src")


@pytest.fixture
def files_of_64k():
    """The operating system refuses to make any file larger than 64 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing_behind(tmp_path, request):
    source = write_golden(tmp_path / "src", golden())
    request.getfixturevalue("files_of_64k")
    with pytest.raises(CheckpointError, match="writing transformer_blocks"):
        convert.convert(source, tmp_path / "out")
    _nothing_left(tmp_path, "src")


def test_a_disk_that_is_too_small_is_noticed_before_writing(tmp_path, monkeypatch):
    class Usage:
        free = 1000

    source = write_golden(tmp_path / "src", golden())
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    with pytest.raises(CheckpointError, match=r"bytes of free space, found 1,000"):
        convert.convert(source, tmp_path / "out")
    _nothing_left(tmp_path, "src")


def test_a_shard_that_is_truncated_during_conversion_leaves_nothing(
    tmp_path, monkeypatch
):
    source = write_golden(tmp_path / "src", golden(), shards=2)
    last = sorted(source.glob("*.safetensors"))[-1]
    write = checkpoint.CheckpointWriter.write

    def truncate_then_write(self, item, values):
        last.write_bytes(last.read_bytes()[:-1000])
        write(self, item, values)

    monkeypatch.setattr(checkpoint.CheckpointWriter, "write", truncate_then_write)
    with pytest.raises(convert.ConversionError, match="found the end of the file"):
        convert.convert(source, tmp_path / "out")
    _nothing_left(tmp_path, "src")
