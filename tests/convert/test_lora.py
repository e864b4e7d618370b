"""LoRA files are added to the weights of the network before anything else."""

import json

import numpy as np
import pytest

from convert import ConversionError, LoraChoice, convert, convert_pair
from convert.command import main
from convert.lora_names import Names, Part, part_of
from convert.planning import plan
from convert.reader import open_source
from sixbit_jax.checkpoint import load, read_header
from tests.convert.checkpoints import converted, golden, write_checkpoint
from tests.convert.lora_files import NAMINGS, low_rank, original, write
from tests.golden import wan_cases

WAN = "t2v_128_f2_8x6_t7_rows"
I2V = "i2v_21_f2_4x12_t512_rows"
BLOCK = "blocks.{}."
WAN_KEYS = [
    f"{BLOCK.format(layer)}{name}.weight"
    for layer in (0, 1)
    for name in ("attn1.to_q", "attn2.to_v", "attn1.to_out.0", "ffn.net.0.proj")
] + [
    "condition_embedder.time_proj.weight",
    "condition_embedder.text_embedder.linear_1.weight",
    "proj_out.weight",
    "patch_embedding.weight",
]
COG_KEYS = [
    "transformer_blocks.0.attn1.to_q.weight",
    "transformer_blocks.0.attn1.to_out.0.weight",
    "transformer_blocks.1.ff.net.0.proj.weight",
    "transformer_blocks.1.norm1.linear.weight",
    "proj_out.weight",
]


def check(directory, weights, gains, strength=1.0):
    found = converted(directory)
    assert gains.keys() <= found.keys()
    for key, value in found.items():
        expected = weights[key].astype(np.float64)
        if key in gains:
            expected = expected + strength * gains[key]
            assert np.abs(strength * gains[key]).max() > 1e-3
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_gives_the_sum_for_wan(tmp_path, naming):
    case = wan_cases.load(WAN)
    weights = case.weights()
    source = write_checkpoint(tmp_path / "m", case.config, weights)
    tensors, gains = low_rank(weights, WAN_KEYS, naming)
    file = write(tmp_path / "lora.safetensors", tensors)
    report = convert(source, tmp_path / "out", lora=[f"{file}:0.5"])
    check(tmp_path / "out", weights, gains, 0.5)
    assert "lora.safetensors at strength 0.5: 12 parameters changed" in str(report)
    (record,) = read_header(tmp_path / "out").source["loras"]
    assert record["keys_read"] == len(tensors)
    assert record["ranks"] == [2, 3, 4]
    assert record["strength"] == 0.5


@pytest.mark.parametrize("naming", [n for n, row in NAMINGS.items() if not row[5]])
def test_every_naming_gives_the_sum_for_cogvideox(tmp_path, naming):
    case = golden()
    weights = case.weights()
    source = write_checkpoint(tmp_path / "m", case.config, weights)
    tensors, gains = low_rank(weights, COG_KEYS, naming, dtype=np.float16)
    file = write(tmp_path / "lora.safetensors", tensors)
    convert(source, tmp_path / "out", lora=[file])
    check(tmp_path / "out", weights, gains)


def test_differences_are_added_to_weights_norms_biases_and_tables(tmp_path):
    case = wan_cases.load(I2V)
    weights = case.weights()
    keys = {
        "blocks.0.norm2.weight": "blocks.0.norm3.diff",
        "blocks.0.norm2.bias": "blocks.0.norm3.diff_b",
        "blocks.1.attn1.to_k.bias": "blocks.1.self_attn.k.diff_b",
        "blocks.1.attn1.norm_q.weight": "blocks.1.self_attn.norm_q.diff",
        "blocks.1.attn2.add_k_proj.weight": "blocks.1.cross_attn.k_img.diff",
        "blocks.1.scale_shift_table": "blocks.1.diff_m",
        "scale_shift_table": "head.modulation.diff",
        "patch_embedding.weight": "patch_embedding.diff",
        "condition_embedder.image_embedder.norm1.bias": "img_emb.proj.0.diff_b",
    }
    draw = np.random.default_rng(3)
    tensors, gains = low_rank(weights, ["blocks.0.attn1.to_q.weight"], "comfyui")
    for key, name in keys.items():
        change = draw.standard_normal(weights[key].shape).astype(np.float32)
        tensors[f"diffusion_model.{name}"] = change
        gains[key] = change.astype(np.float64)
    source = write_checkpoint(tmp_path / "m", case.config, weights)
    file = write(tmp_path / "lora.safetensors", tensors)
    convert(source, tmp_path / "out", lora=[LoraChoice(file, -0.25)])
    check(tmp_path / "out", weights, gains, -0.25)


def test_the_bias_of_up_is_scaled_as_the_product_is(tmp_path):
    case = wan_cases.load(WAN)
    weights, key = case.weights(), "blocks.0.ffn.net.2.weight"
    tensors, gains = low_rank(weights, [key], "comfyui")
    bias = np.linspace(-1, 1, weights[key].shape[0], dtype=np.float32)
    tensors["diffusion_model.blocks.0.ffn.2.lora_up.bias"] = bias
    gains[key.replace("weight", "bias")] = bias * 1.5 / 2
    source = write_checkpoint(tmp_path / "m", case.config, weights)
    convert(
        source,
        tmp_path / "out",
        lora=[write(tmp_path / "lora.safetensors", tensors)],
    )
    check(tmp_path / "out", weights, gains)


@pytest.mark.parametrize("where", ["beside", "header"])
@pytest.mark.parametrize("stabilized", [False, True])
def test_alpha_of_the_configuration(tmp_path, where, stabilized):
    case = wan_cases.load(WAN)
    weights, keys = case.weights(), WAN_KEYS[:3]
    tensors, gains = low_rank(weights, keys, "peft")
    fields = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 8,
        "alpha_pattern": {"blocks.0.attn2.to_v": 3.0},
        "use_rslora": stabilized,
    }
    for key, rank, alpha in zip(keys, (2, 3, 4), (8, 3, 8), strict=True):
        gains[key] = gains[key] * alpha / (rank**0.5 if stabilized else rank)
    if where == "beside":
        folder = tmp_path / "adapter"
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(fields))
        write(folder / "adapter_model.safetensors", tensors)
        file = folder
    else:
        text = json.dumps({f"transformer.{k}": v for k, v in fields.items()})
        file = tmp_path / "pytorch_lora_weights.safetensors"
        write(file, tensors, lora_adapter_metadata=text)
    source = write_checkpoint(tmp_path / "m", case.config, weights)
    convert(source, tmp_path / "out", lora=[file])
    check(tmp_path / "out", weights, gains)


def test_several_files_add_up_and_the_quantized_network_is_that_of_the_sum(tmp_path):
    case = wan_cases.load(WAN)
    weights = case.weights()
    summed = dict(weights)
    files = []
    for seed, (naming, strength) in enumerate([("kohya", 1.0), ("diffusers", 0.5)]):
        tensors, gains = low_rank(weights, WAN_KEYS, naming, seed=seed)
        files.append(f"{write(tmp_path / f'{naming}.safetensors', tensors)}:{strength}")
        for key, gain in gains.items():
            summed[key] = summed[key] + strength * gain
    summed = {key: value.astype(np.float32) for key, value in summed.items()}
    write_checkpoint(tmp_path / "m", case.config, weights)
    write_checkpoint(tmp_path / "sum", case.config, summed)
    options = {"weights": "uniform8", "rotation": 0}
    convert(tmp_path / "m", tmp_path / "one", lora=files, **options)
    convert(tmp_path / "sum", tmp_path / "two", **options)
    one, two = (load(tmp_path / name)[0] for name in ("one", "two"))
    stored = one.blocks.attn1.to_q.weight.get_value()
    expected = two.blocks.attn1.to_q.weight.get_value()
    np.testing.assert_allclose(stored.dequantize(), expected.dequantize(), atol=2e-3)
    assert [r["file"] for r in read_header(tmp_path / "one").source["loras"]] == [
        "kohya.safetensors",
        "diffusers.safetensors",
    ]


def test_what_is_kept_keeps_its_dtype(tmp_path):
    case = wan_cases.load(WAN)
    weights = {k: v.astype(np.float16) for k, v in case.weights().items()}
    source = write_checkpoint(tmp_path / "m", case.config, weights)
    tensors, gains = low_rank(weights, WAN_KEYS[:1], "diffusers")
    file = write(tmp_path / "lora.safetensors", tensors)
    convert(source, tmp_path / "out", lora=[file])
    found = converted(tmp_path / "out")[WAN_KEYS[0]]
    assert found.dtype == np.float16
    expected = weights[WAN_KEYS[0]].astype(np.float64) + gains[WAN_KEYS[0]]
    # Rounded once: half a unit of the last place, and what a float32 sum is off.
    allowed = 0.5 * np.spacing(np.abs(found)).astype(np.float64) + 1e-8
    assert (np.abs(found - expected) <= allowed).all()


def test_high_and_low_of_a_pair(tmp_path, capsys):
    case = wan_cases.load(WAN)
    weights = case.weights()
    for folder in ("transformer", "transformer_2"):
        write_checkpoint(tmp_path / "root" / folder, case.config, weights)
    made = {}
    for name, seed in (("high", 0), ("low", 1), ("both", 2)):
        tensors, made[name] = low_rank(weights, WAN_KEYS[:2], "diffusers", seed=seed)
        write(tmp_path / f"{name}.safetensors", tensors)
    choices = [
        f"high={tmp_path / 'high.safetensors'}",
        f"low={tmp_path / 'low.safetensors'}:2",
        f"{tmp_path / 'both.safetensors'}",
    ]
    convert_pair(tmp_path / "root", tmp_path / "out", lora=choices)
    for folder, name, strength in (("high_noise", "high", 1), ("low_noise", "low", 2)):
        gains = {
            key: strength * made[name][key] + made["both"][key] for key in WAN_KEYS[:2]
        }
        check(tmp_path / "out" / folder, weights, gains)
    one = str(tmp_path / "root" / "transformer")
    assert main([one, str(tmp_path / "no"), "--lora", choices[0]]) == 1
    assert "expected high= and low= with a pair" in capsys.readouterr().err


@pytest.fixture
def wan(tmp_path):
    case = wan_cases.load(WAN)
    return write_checkpoint(tmp_path / "m", case.config, case.weights()), case.weights()


def refusal(tmp_path, source, tensors, **metadata):
    file = write(tmp_path / "lora.safetensors", tensors, **metadata)
    with pytest.raises(ConversionError) as caught:
        convert(source, tmp_path / "out", lora=[file])
    assert not (tmp_path / "out").exists()
    assert "damaged" not in str(caught.value)
    return str(caught.value)


def test_a_lora_of_another_network_lists_its_keys(tmp_path, wan):
    source, _ = wan
    tensors, _ = low_rank(golden().weights(), COG_KEYS, "diffusers")
    message = refusal(tmp_path, source, tensors)
    assert "expected a LoRA of WanTransformer3DModel, found 2 of 10 keys" in message
    assert "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight" in message
    assert "transformer.proj_out.lora_A.weight: expected [3, 256]" in message


def test_all_problems_are_in_one_message(tmp_path, wan):
    source, weights = wan
    tensors, _ = low_rank(weights, WAN_KEYS[:4], "comfyui")
    names = [original(key).removesuffix(".weight") for key in WAN_KEYS[:4]]
    first, second, third, fourth = (f"diffusion_model.{name}" for name in names)
    del tensors[f"{first}.lora_up.weight"]
    tensors[f"{second}.lora_down.weight"] = np.zeros((3, 5), np.float32)
    tensors[f"{third}.lora_up.weight"] = np.full((256, 4), np.nan, np.float32)
    tensors[f"{fourth}.diff_b"] = np.zeros(3, np.float32)
    tensors["diffusion_model.blocks.7.self_attn.q.lora_down.weight"] = np.zeros((2, 8))
    tensors["blocks.0.wonder"] = np.zeros(2, np.float32)
    message = refusal(tmp_path, source, tensors)
    for part in (
        f"{first}.lora_down.weight: expected its other half",
        f"{second}.lora_down.weight: expected [3, 256], found [3, 5]",
        f"{third}.lora_up.weight: expected finite values, found 1,024 NaN",
        f"{fourth}.diff_b: expected [",
        "blocks.7.self_attn.q.lora_down.weight",
        "that no LoRA has",
        "blocks.0.wonder",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        ("lora_magnitude_vector", "DoRA"),
        ("lora_magnitude_vector.default.weight", "DoRA"),
        ("dora_scale", "DoRA"),
        ("hada_w1_a", "LoHa"),
        ("lokr_w1", "LoKr"),
        ("lora_mid.weight", "Tucker"),
    ],
)
def test_other_adapters_are_refused_by_name(tmp_path, wan, suffix, kind):
    source, weights = wan
    tensors, _ = low_rank(weights, WAN_KEYS[:1], "diffusers")
    tensors[f"transformer.blocks.0.attn1.to_q.{suffix}"] = np.ones(128, np.float32)
    assert f"found {kind}" in refusal(tmp_path, source, tensors).replace(
        "LoCon with a Tucker", "Tucker"
    )


def test_dora_of_the_configuration_is_refused_by_name(tmp_path, wan):
    source, weights = wan
    tensors, _ = low_rank(weights, WAN_KEYS[:1], "diffusers")
    text = json.dumps({"transformer.use_dora": True})
    message = refusal(tmp_path, source, tensors, lora_adapter_metadata=text)
    assert "found DoRA" in message


def test_two_adapters_in_one_file_are_refused(tmp_path, wan):
    source, weights = wan
    tensors, _ = low_rank(weights, WAN_KEYS[:1], "peft")
    again, _ = low_rank(weights, WAN_KEYS[:1], "peft-adapter")
    message = refusal(tmp_path, source, tensors | again)
    assert "expected one adapter, found two" in message


@pytest.mark.parametrize("strength", ["nan", "inf", "1e9", "a lot"])
def test_a_strength_is_a_number(tmp_path, strength):
    file = write(tmp_path / "a.safetensors", {"x": np.zeros(1, np.float32)})
    with pytest.raises(ValueError, match="strength"):
        LoraChoice.parse(f"{file}:{strength}")


def test_names_with_a_colon_are_files_where_there_is_one(tmp_path):
    file = write(tmp_path / "a:2", {"x": np.zeros(1, np.float32)})
    assert LoraChoice.parse(f"{file}") == LoraChoice(file)
    assert LoraChoice.parse(f"{file}:0.5") == LoraChoice(file, 0.5)
    assert LoraChoice.parse(f"high={file}:0.5") == LoraChoice(file, 0.5, "high")


def test_files_of_the_reports_are_fused(tmp_path):
    """Original names, differences and all, on a plan alone."""
    case = wan_cases.load(WAN)
    keys = {key: 0 for key in case.weights()}
    names = Names(keys)
    for key in keys:
        stem = key.removesuffix(".weight").removesuffix(".bias")
        part = "diff_b" if key.endswith("bias") else "diff"
        for name in (stem, original(key).rpartition(".")[0] or stem):
            if "table" in key:
                name = original(key) if name != stem else stem
            assert names.key_of(Part(name, part)) == key
            assert names.key_of(Part(name.replace(".", "_"), part)) == key
    assert part_of("transformer.blocks.0.attn1.processor.to_out_lora.up.weight") == (
        Part("blocks.0.attn1.to_out.0", "up")
    )


def test_the_plan_of_the_sources_without_a_lora_says_nothing_of_it(tmp_path, wan):
    source, _ = wan
    header, _ = plan(open_source(source), dtype="keep", weights="keep", rotation=0)
    assert "loras" not in header.source
