"""The sampling benchmark on Wan: sizes of the published models, and a tiny run."""

import jax
import pytest

from sixbit_jax.benchmark import parts as sampling_parts
from sixbit_jax.benchmark import subject as sampling_model
from sixbit_jax.benchmark.programs import compile_program
from tests.sixbit_jax.models.small_wan import small_config


@pytest.fixture(scope="module")
def tiny() -> sampling_model.Subject:
    return sampling_model.Subject("tiny-wan", small_config(num_layers=2), (2, 4, 4))


@pytest.mark.parametrize(
    ("name", "parameters", "attention_share"),
    [("wan-1.3b", 1_418_996_800, 0.71), ("wan-14b", 14_288_491_584, 0.53)],
)
def test_sizes_are_those_of_the_published_models(name, parameters, attention_share):
    subject = sampling_model.subject(name, frames=None, height=None, width=None)
    assert subject.tokens == 32_760
    assert subject.latent_shape == (21, 16, 60, 104)
    assert sampling_model.text_embeddings(subject, 0).shape == (1, 512, 4096)
    plain, packed = (
        sampling_model.weight_bytes(
            sampling_model.random_model(subject.config, quantized=q, abstract=True)
        )
        for q in (False, True)
    )
    assert plain == 2 * parameters
    assert 3.3 < plain / packed < 3.6
    linear, attention = sampling_model.forward_flops(subject)
    assert attention / (linear + attention) == pytest.approx(attention_share, abs=0.02)


def test_parts_have_the_shapes_of_the_network(tiny):
    shapes = {
        (part.op, part.variant): jax.eval_shape(part.operands, jax.random.key(0))
        for part in sampling_parts.all_parts(tiny)
    }
    query, key, value = shapes["cross-attention", "int8"]
    assert query.shape == (1, tiny.tokens, 2, 64)
    assert key.shape == value.shape == (1, 512, 2, 64)
    assert shapes["down", "bf16"][0].shape == (1, tiny.tokens, 256)
    chosen = [
        part
        for part in sampling_parts.all_parts(tiny)
        if part.op in ("q, k norm and rotary", "quantize: norm, modulate")
    ]
    found = list(sampling_parts.compile_parts(tiny, chosen)())
    assert all("failure" not in record for record in found)
    assert {record["per_block"] for record in found} == {1, 3}


@pytest.mark.slow
def test_a_program_runs_its_plans(tiny):
    run = compile_program(tiny, "int8, 8-bit attention", steps=3, repeats=1, trace=None)
    found = list(run())
    assert [record["skip_fraction"] for record in found] == [0.0, 0.2, 0.33, 0.5]
    assert all(record["finite"] for record in found)
    # Two blocks, two branches, video tokens only, bf16.
    assert found[0]["cache_bytes"] == 2 * 2 * 8 * 128 * 2
