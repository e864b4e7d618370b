import json
import resource

import ml_dtypes
import numpy as np
import pytest

import convert
from convert.reader import open_source
from sixbit_jax.checkpoint import CheckpointError
from tests.convert.checkpoints import SCHEDULER, golden, write_golden

KEY = "transformer_blocks.1.attn1.to_out.0.weight"


@pytest.fixture
def converted(tmp_path):
    source = write_golden(tmp_path / "src", golden(), dtype=ml_dtypes.bfloat16)
    (source / "scheduler").mkdir()
    text = json.dumps(SCHEDULER)
    (source / "scheduler" / "scheduler_config.json").write_text(text)
    convert.convert(source, tmp_path / "ours")
    return tmp_path / "ours"


@pytest.mark.parametrize("limit", [None, 400_000])
def test_the_way_back_restores_every_byte(tmp_path, converted, limit):
    options = {} if limit is None else {"max_shard_bytes": limit}
    convert.to_diffusers(converted, tmp_path / "back", **options)
    before, after = open_source(tmp_path / "src"), open_source(tmp_path / "back")
    assert before.tensors.keys() == after.tensors.keys()
    for key, tensor in before.tensors.items():
        assert after.tensors[key].read().tobytes() == tensor.read().tobytes()
    assert after.config == before.config
    assert after.scheduler == SCHEDULER
    if limit is None:
        names = ["diffusion_pytorch_model.safetensors"]
    else:
        count = len(after.files)
        assert count > 2
        names = [
            f"diffusion_pytorch_model-{i:05}-of-{count:05}.safetensors"
            for i in range(1, count + 1)
        ]
        assert max(file.stat().st_size for file in after.files) < limit + 10_000
    assert [file.name for file in after.files] == names


def test_a_conversion_of_the_way_back_is_the_same(tmp_path, converted):
    convert.to_diffusers(converted, tmp_path / "back")
    report = convert.convert(tmp_path / "back", tmp_path / "again")
    assert report.num_parameters == sum(np.prod(s) for s in golden().shapes.values())


def test_a_dtype_may_be_asked_for(tmp_path, converted):
    convert.to_diffusers(converted, tmp_path / "back", dtype="float32")
    tensors = open_source(tmp_path / "back").tensors
    assert {tensor.dtype.name for tensor in tensors.values()} == {"float32"}
    with pytest.raises(ValueError, match="dtype: expected one of"):
        convert.to_diffusers(converted, tmp_path / "other", dtype="int8")


def test_nvfp4_weights_come_back_in_the_original_basis(tmp_path):
    source = write_golden(tmp_path / "src", golden())
    convert.convert(source, tmp_path / "ours", weights="nvfp4", rotation=128)
    convert.to_diffusers(tmp_path / "ours", tmp_path / "back", dtype="float32")
    found = open_source(tmp_path / "back").tensors[KEY].read()
    expected = golden().weights()[KEY]
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 0.03 < error < 0.12


def test_an_existing_destination_is_refused(tmp_path, converted):
    with pytest.raises(CheckpointError, match="expected a new path"):
        convert.to_diffusers(converted, tmp_path / "src")
    assert open_source(tmp_path / "src").tensors.keys() == golden().shapes.keys()


def test_a_full_disk_leaves_nothing_behind(tmp_path, converted):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(CheckpointError, match="writing"):
            convert.to_diffusers(converted, tmp_path / "back")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours", "src"]
