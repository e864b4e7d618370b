"""Files of the real writers of packed NVFP4: `tests/golden/make_packed.py`."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from convert import convert
from convert.errors import ConversionError
from convert.reader import open_source
from convert.safetensors_file import read_index, read_metadata, write_file
from sixbit_jax.checkpoint import load

FOLDER = Path(__file__).parents[1] / "golden" / "packed"
NAME = "diffusion_pytorch_model.safetensors"
# Case, the dialect that is found in it, and what the caller must say.
CASES = {
    "torchao-wan": ("torchao", "auto"),
    "torchao-cogvideox-one-level": ("torchao", "auto"),
    "modelopt-cogvideox": ("modelopt", "auto"),
    "modelopt-cogvideox-swizzled": ("modelopt-swizzled", "auto"),
    "modelopt-wan-swizzled-padded": ("modelopt-swizzled", "auto"),
    "modelopt-wan-whole-swizzled": ("modelopt-swizzled", "modelopt-swizzled"),
    "compressed-tensors-wan": ("compressed-tensors", "auto"),
}


def _read(file):
    return {name: info.read() for name, info in read_index(file).items()}


def _copy(case, target, *, edit=None, metadata=None):
    """A case with other tensors or notes."""
    target.mkdir()
    shutil.copy(FOLDER / case / "config.json", target)
    tensors = _read(FOLDER / case / NAME)
    if edit is not None:
        tensors = edit(tensors)
    notes = read_metadata(FOLDER / case / NAME) if metadata is None else metadata
    write_file(target / NAME, tensors, notes)
    return target


@pytest.mark.parametrize("case", CASES)
def test_the_network_computes_what_diffusers_does_with_the_writers_weights(
    tmp_path, case
):
    dialect, said = CASES[case]
    report = convert(FOLDER / case, tmp_path / "ours", dialect=said)
    assert report.packed is not None
    assert report.packed["dialect"] == dialect
    assert report.source_dtypes["nvfp4"] > 15
    model, _ = load(tmp_path / "ours")
    given = _read(FOLDER / f"{case}.io.safetensors")
    found = model(*(jnp.asarray(given[name]) for name in "xet"))
    error = np.linalg.norm(found - given["y"]) / np.linalg.norm(given["y"])
    # 1e-6 to 4e-6 measured; the tensor scale is rounded to 17 bits.
    assert error < 2e-5


def test_every_packed_case_is_tested():
    assert {path.name for path in FOLDER.iterdir() if path.is_dir()} == set(CASES)


def test_weights_that_are_not_kept_packed_stay_float32(tmp_path):
    convert(FOLDER / "modelopt-wan-swizzled-padded", tmp_path / "ours")
    model, header = load(tmp_path / "ours")
    name = "condition_embedder.time_embedder.linear_1.weight"
    assert header.parameters[name].dtype == "float32"
    source = open_source(FOLDER / "modelopt-wan-swizzled-padded")
    # A product of E2M1, E4M3 and float32 does not fit 8 bits.
    exact = source.tensors[name].read()
    assert np.abs(exact - exact.astype(jnp.bfloat16).astype(np.float32)).max() > 0
    assert model.condition_embedder.time_embedder.linear_1.weight[...].dtype == (
        jnp.float32
    )


def test_where_nothing_tells_tiles_the_caller_must(tmp_path):
    case = FOLDER / "modelopt-wan-whole-swizzled"
    with pytest.raises(
        ConversionError, match="--dialect modelopt or --dialect modelopt-swizzled"
    ):
        open_source(case)
    # A plain export of the same sizes has no notes, and is flat.
    plain = _copy(case.name, tmp_path / "plain", metadata={"format": "pt"})
    assert open_source(plain).packed.dialect == "modelopt"


def test_single_files_of_modelopt_describe_themselves(tmp_path):
    case = _copy("modelopt-cogvideox-swizzled", tmp_path / "case")
    config = json.loads((case / "config.json").read_text())
    del config["quantization_config"]
    (case / "config.json").write_text(json.dumps(config))
    assert open_source(case).packed.dialect == "modelopt-swizzled"


def test_torchao_is_read_without_its_notes_and_with_flat_scales(tmp_path):
    def flat(tensors):
        # By torchao's own formula, apart from the reader's.
        made = dict(tensors)
        for key, codes in tensors.items():
            if not key.endswith("_weight_qdata"):
                continue
            rows, columns = codes.shape[0], codes.shape[1] // 8
            name = key.replace("_qdata", "_scale")
            made[name] = np.empty((rows, columns), tensors[name].dtype)
            raw, wide = tensors[name].reshape(-1), -(-columns // 4)
            for r in range(rows):
                for c in range(columns):
                    tile = r // 128 * wide + c // 4
                    place = r % 32 * 16 + r % 128 // 32 * 4 + c % 4
                    made[name][r, c] = raw[tile * 512 + place]
        return made

    case = _copy("torchao-wan", tmp_path / "case", edit=flat, metadata={})
    found, expected = open_source(case), open_source(FOLDER / "torchao-wan")
    assert found.packed.facts is not None
    assert "flat block scales" in found.packed.facts["layout"]
    for name, info in expected.tensors.items():
        np.testing.assert_array_equal(found.tensors[name].read(), info.read())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("Float8Tensor", "expected NVFP4 .NVFP4Tensor., found Float8Tensor"),
        ("codes", "found int8 codes"),
        ("scales", "found float32 scales"),
    ],
)
def test_other_formats_of_torchao_are_refused_by_name(tmp_path, kind, message):
    def edit(tensors):
        return {
            name: value.astype(np.int8)
            if kind == "codes" and name.endswith("_qdata")
            else value.astype(np.float32)
            if kind == "scales" and name.endswith("_weight_scale")
            else value
            for name, value in tensors.items()
        }

    notes = {"a.weight": json.dumps({"_type": "Float8Tensor", "_data": {}})}
    case = _copy(
        "torchao-wan",
        tmp_path / "case",
        edit=edit,
        metadata=notes if kind == "Float8Tensor" else {},
    )
    with pytest.raises(ConversionError, match=message):
        open_source(case)


def test_other_formats_of_compressed_tensors_are_refused_by_name(tmp_path):
    def edit(tensors):
        return {
            name: value.view(np.int32) if name.endswith("_packed") else value
            for name, value in tensors.items()
        }

    case = _copy("compressed-tensors-wan", tmp_path / "case", edit=edit)
    with pytest.raises(ConversionError, match=r"nvfp4-pack-quantized .* found int32"):
        open_source(case)


@pytest.mark.parametrize("case", ["torchao-wan", "compressed-tensors-wan"])
def test_a_dialect_of_another_writer_is_refused(case):
    with pytest.raises(
        ConversionError, match=f"the files say that they are {CASES[case][0]}"
    ):
        open_source(FOLDER / case, dialect="modelopt")
    with pytest.raises(ConversionError, match="dialect torchao: the files say that"):
        open_source(FOLDER / "modelopt-cogvideox", dialect="torchao")


def test_padding_that_is_not_zero_is_refused(tmp_path):
    def edit(tensors):
        made = {name: value.copy() for name, value in tensors.items()}
        made["blocks.0.attn1.to_q.weight"][:, -1] = 3
        return made

    case = _copy("modelopt-wan-swizzled-padded", tmp_path / "case", edit=edit)
    with pytest.raises(ConversionError, match="expected padding of zeros"):
        convert(case, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_report_says_what_nothing_confirms(tmp_path):
    """Noise has no structure: nibbles and block scales stay a matter of belief."""
    case = _copy("modelopt-cogvideox", tmp_path / "case")
    config = json.loads((case / "config.json").read_text())
    del config["quantization_config"]
    (case / "config.json").write_text(json.dumps(config))
    report = convert(case, tmp_path / "ours", dialect="bfl")
    assert report.packed is not None
    assert report.packed["unconfirmed"] == ["nibbles"]
    text = str(report)
    assert "read as bfl, named by the caller" in text
    assert "they do not tell: nibbles (a wrong dialect would look the same" in text


@pytest.mark.parametrize(
    ("part", "value"),
    [("weight_scale_2", 3e37), ("weight_scale_2", np.inf), ("weight_scale_2", np.nan)],
)
def test_packed_weights_that_float32_does_not_hold_are_refused(tmp_path, part, value):
    name = f"transformer_blocks.1.ff.net.2.{part}"

    def edit(tensors):
        return tensors | {name: np.array(value, np.float32)}

    case = _copy("modelopt-cogvideox", tmp_path / "case", edit=edit)
    with pytest.raises(ConversionError, match=r"ff\.net\.2\.weight.*expected"):
        convert(case, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_reciprocal_scale_whose_inverse_is_infinite_is_refused(tmp_path):
    name = "blocks.1.ffn.net.2.weight_global_scale"

    def edit(tensors):
        return tensors | {name: np.array([1e-44], np.float32)}

    case = _copy("compressed-tensors-wan", tmp_path / "case", edit=edit)
    with pytest.raises(ConversionError, match=r"ffn\.net\.2\.weight.*expected finite"):
        convert(case, tmp_path / "ours")
