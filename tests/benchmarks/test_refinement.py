"""The benchmark of weight refinement."""

from benchmarks import refinement
from sixbit_jax.models.hunyuan_video.config import HunyuanVideoConfig


def test_the_linears_are_those_of_the_published_network():
    found = refinement.linears(HunyuanVideoConfig())
    assert sum(found.values()) == 520
    # Two modulation linears of each dual block, one of each single block.
    assert found[18_432, 3072, "small_batch"] == 40
    assert found[9216, 3072, "small_batch"] == 40
    assert found[3072, 15_360, "site"] == 40
    assert sum(h * w * n for (h, w, _), n in found.items()) == 12_457_082_880


def test_a_part_of_the_rows_is_scaled_and_refinement_is_better():
    config = HunyuanVideoConfig(
        num_attention_heads=1, num_layers=1, num_single_layers=2, mlp_ratio=2.0
    )
    names = ("uniform4, minmax", "uniform4, grid refinement")
    plain, refined = (
        refinement.measure(config, name, rows=16, repeats=1) for name in names
    )
    assert plain["linears"] == 14 + 2 * 6
    for record in (plain, refined):
        expected = sum(
            s["seconds"] * s["count"] * s["rows"] / 16 for s in record["shapes"]
        )
        assert abs(record["seconds"] / expected - 1) < 1e-6
        assert "share of the rows" in record["scaled"]
    pairs = zip(plain["shapes"], refined["shapes"], strict=True)
    assert all(b["relative_mse"] < a["relative_mse"] for a, b in pairs)
