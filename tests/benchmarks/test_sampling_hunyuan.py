"""The benchmark of HunyuanVideo: sizes, and what a run of two steps says."""

import dataclasses

import pytest

from benchmarks.sampling import hunyuan_video
from sixbit_jax.benchmark import parts, subject
from sixbit_jax.benchmark.plans import BASELINE
from sixbit_jax.models.hunyuan_video.config import HunyuanVideoConfig

CONFIG = HunyuanVideoConfig(
    num_attention_heads=2,
    attention_head_dim=64,
    in_channels=4,
    out_channels=4,
    num_layers=1,
    num_single_layers=1,
    num_refiner_layers=1,
    text_embed_dim=32,
    pooled_projection_dim=16,
    rope_axes_dim=(16, 24, 24),
)
TINY = subject.Subject("tiny", CONFIG, (3, 8, 12))


def test_sizes_are_those_of_the_published_model():
    found = subject.subject("hunyuan-video", frames=None, height=None, width=None)
    assert found.tokens == 119_056
    assert (found.blocks, found.ffn_dim, found.words) == (60, 12_288, 256)
    plain, packed = (
        subject.weight_bytes(
            subject.random_model(found.config, quantized=q, abstract=True)
        )
        for q in (False, True)
    )
    assert plain == 2 * 12_821_012_544
    assert plain / packed > 3.4
    linear, attention = subject.forward_flops(found)
    assert attention / (linear + attention) == pytest.approx(0.87, abs=0.01)
    smaller = found._replace(size=hunyuan_video.SIZES["544x960"])
    assert smaller.tokens == 67_320 + 256
    with pytest.raises(NotImplementedError, match="CogVideoX or Wan"):
        parts.compile_parts(found)


def test_fewer_blocks_and_the_command_line_come_back_whole(tmp_path):
    out = str(tmp_path / "x.json")
    args = hunyuan_video.parse(["--size", "544x960", "--layers", "2", "--out", out])
    assert hunyuan_video.parse(hunyuan_video.words(args)) == args
    assert hunyuan_video.subject_of(args).blocks == 4
    assert hunyuan_video.subject_of(args, 1).blocks == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", [BASELINE, hunyuan_video.INT8, hunyuan_video.SPARSE])
def test_two_steps_say_what_computed_and_skipped_ones_take(name):
    program = hunyuan_video.TwoSteps(TINY, name)
    program.work.compile()
    program.work.build()
    found = list(hunyuan_video.measure(program, 0.0, {"note": "x"}))
    assert found[0]["finite"]
    assert found[0]["guidance"] == "none"
    assert found[0]["skip_fraction"] == 0
    if name == BASELINE:
        assert len(found) == 1
        assert found[0]["cache_bytes"] == 0
        return
    first, third = found
    tokens = 256 + 3 * 4 * 6
    # A slot for the blocks of either kind.
    assert first["cache_bytes"] == 2 * tokens * 128 * 2
    runs = first["runs_s"]
    assert [len(runs[plan]) for plan in ("skipped", "computed")] == [2, 1]
    # Of the figures, (2 F + S) / 3 from 2 F and F + S.
    step = (runs["computed"][-1] / 2 + runs["skipped"][-1]) / 3
    assert third["step_ms"] == pytest.approx(1e3 * step)
    assert third["skip_fraction"] == pytest.approx(1 / 3)
    skipped = program.work.compiled(
        program.work.params, program.work.inputs_for(program.policies(0.0)["skipped"])
    )
    assert skipped.trace.skip[:, 0].tolist() == [[False] * 2, [True] * 2]
    # Sparse or not: text is always attended to, and lies in every block of keys of a
    # video of 72 tokens. The next test has a longer one.
    assert first["density"] == 1


@pytest.mark.slow
def test_a_threshold_of_few_blocks_computes_half_of_the_keys():
    small = TINY._replace(
        size=(5, 32, 48), config=dataclasses.replace(CONFIG, num_layers=2)
    )
    program = hunyuan_video.TwoSteps(small, hunyuan_video.SPARSE)
    program.work.compile()
    tau, facts = hunyuan_video.find_tau(program)
    assert facts["sparse_tau"] == tau
    assert facts["density_of_few_blocks"] == pytest.approx(0.5, abs=0.04)
