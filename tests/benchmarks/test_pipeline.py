"""The pipeline benchmark on a tiny network with pictures: made weights, all parts."""

import dataclasses
import json

import pytest

from benchmarks.pipeline import __main__ as command
from benchmarks.pipeline import made
from sixbit_jax.benchmark import records
from sixbit_jax.models.wan.config import WanConfig
from sixbit_jax.pipelines.settings import resolve
from sixbit_jax.text_encoders.clip_config import CLIPVisionConfig
from sixbit_jax.text_encoders.t5_config import T5Config
from sixbit_jax.vae.wan_config import WanVAEConfig

NETWORK = WanConfig(
    num_attention_heads=2,
    attention_head_dim=64,
    in_channels=36,
    text_dim=64,
    ffn_dim=128,
    num_layers=2,
    image_dim=128,
    added_kv_proj_dim=128,
)
CLIP = CLIPVisionConfig(
    hidden_size=128,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=28,
)
TEXT = T5Config(
    vocab_size=1000, d_model=64, d_kv=32, d_ff=128, num_layers=2, num_heads=2
)


def tiny():
    case = made.CASES["wan-14b-i2v"]
    others = {
        name: dataclasses.replace(part, config=config)
        for (name, part), config in zip(
            case.others.items(),
            (TEXT, WanVAEConfig(base_dim=4, num_res_blocks=1), CLIP),
            strict=True,
        )
    }
    return dataclasses.replace(case, network=NETWORK, others=others)


def small(description, config, **given):
    return resolve(
        description, config, **(given | {"height": 32, "width": 48, "frames": 5})
    )


@pytest.mark.slow
def test_a_video_of_made_weights_has_all_parts(tmp_path, monkeypatch):
    monkeypatch.setitem(made.CASES, "wan-14b-i2v", tiny())
    monkeypatch.setattr("sixbit_jax.pipelines.pipeline.resolve", small)
    out = tmp_path / "found.json"
    words = ["--model", "wan-14b-i2v", "--made", "--steps", "3", "--skips", "0", "0.5"]
    command.main([*words, "--out", str(out)])
    content = records.read(out)
    assert "--made" in content["command"]
    assert [r["skip_fraction"] for r in content["records"]] == [
        0.0,
        pytest.approx(1 / 3),
    ]
    for record in content["records"]:
        assert {"text", "picture", "sampling", "vae"} <= set(record["part_s"])
        assert record["steps"] == 3
        assert record["weights"] == "made on the device"
        parts = sum(record["part_s"].values())
        assert record["end_to_end_s"] == pytest.approx(parts)


def test_headers_of_real_size_make_a_pipeline(tmp_path):
    for name, case in made.CASES.items():
        made.write_pipeline(case, tmp_path / name, headers_only=True)
        pipe = made.MadePipeline(case, tmp_path / name)
        settings = pipe.settings()
        assert settings.num_steps == 50
        assert (command.pictures_of(pipe, settings) is not None) == case.picture
        header = json.loads((tmp_path / name / "sixbit_pipeline.json").read_text())
        assert set(header["components"]) == {"transformer", *case.others}
