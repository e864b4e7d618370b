import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from sixbit_jax.report import plots
from sixbit_jax.routes import Route
from tests.sixbit_jax.report.traces import SITES, make_trace


def colours_of(figure):
    image = Image.open(io.BytesIO(plots.png(figure, dpi=60))).convert("RGB")
    counted = image.getcolors(image.width * image.height)
    return {colour for count, colour in counted if count > 50}


def as_bytes(colour):
    return tuple(round(255 * part) for part in to_rgb(colour))


def test_route_cells_are_sites_by_steps_and_mark_skips():
    trace = make_trace(route=Route.NVFP4)
    cells = plots.route_cells(trace)
    assert cells.shape == (2, 3 * 4, 6)
    assert (cells[:, 4:8, 3] == len(Route)).all()
    cells[:, 4:8, 3] = Route.NVFP4
    assert (cells == Route.NVFP4).all()


def test_route_map_paints_the_routes_and_skips_that_occur_and_no_others():
    seen = colours_of(plots.route_map(make_trace(), SITES, title="a caption"))
    assert as_bytes(plots.ROUTE_COLOURS["INT8"]) in seen
    assert as_bytes(plots.SKIPPED_COLOUR) in seen
    assert as_bytes(plots.ROUTE_COLOURS["NVFP4"]) not in seen


def test_route_map_has_one_panel_per_guidance_branch():
    assert len(plots.route_map(make_trace(), SITES).axes) == 2
    single = plots.route_map(make_trace(branches=1), SITES)
    assert [axis.get_title(loc="left") for axis in single.axes] == ["all branches"]


def test_density_map_has_a_panel_per_branch_and_marks_skips():
    trace = make_trace()
    density = np.where(trace.skip, 0.0, 0.25).astype(np.float32)
    figure = plots.density_map(trace._replace(attention_density=density))
    assert [axis.get_title(loc="left") for axis in figure.axes[:2]] == [
        "conditional",
        "unconditional",
    ]
    cells = figure.axes[0].get_images()[0].get_array()
    assert cells.shape == (3, 6)
    np.testing.assert_array_equal(cells.mask, trace.skip[:, 0].T)
    assert (cells.compressed() == 0.25).all()
    assert as_bytes(plots.SKIPPED_COLOUR) in colours_of(figure)
    assert not plots.density_map(make_trace(skip_step=None)).legends


def test_signal_curves_have_no_point_where_a_block_was_skipped():
    figure = plots.signal_curves(make_trace(), SITES)
    lines = figure.axes[0].get_lines()
    assert lines[0].get_xdata().tolist() == [0, 1, 2, 3, 4, 5]
    assert lines[1].get_xdata().tolist() == [0, 1, 2, 4, 5]


def test_signal_curves_show_errors_only_if_they_were_recorded():
    trace = make_trace()
    titles = [a.get_title(loc="left") for a in plots.signal_curves(trace, SITES).axes]
    assert not any("NVFP4 error" in title for title in titles)
    recorded = trace._replace(error=np.full(trace.error.shape, 0.1, np.float32))
    axes = plots.signal_curves(recorded, SITES).axes
    titles = [axis.get_title(loc="left") for axis in axes]
    assert [t for t in titles if "NVFP4 error" in t] == [
        f"NVFP4 error of {site}" for site in SITES
    ]


def test_signal_curves_of_an_empty_trace_say_so():
    trace = make_trace()
    nothing = trace._replace(gamma=0 * trace.gamma, delta_change=0 * trace.gamma)
    with pytest.raises(ValueError, match="found only zeros"):
        plots.signal_curves(nothing, SITES)


def test_error_curves_draw_predictions_and_measurements_against_the_threshold():
    rng = np.random.default_rng(0)
    predicted, measured = rng.uniform(0.1, 0.3, (2, 6, 3, 4))
    figure = plots.error_curves(predicted, 0.2, measured, SITES)
    panels = figure.axes[:4]
    assert [axis.get_title(loc="left") for axis in panels] == list(SITES)
    lines = panels[2].get_lines()
    np.testing.assert_array_equal(lines[2].get_ydata(), predicted[:, 1, 2])
    np.testing.assert_array_equal(lines[3].get_ydata(), measured[:, 1, 2])
    assert lines[-1].get_ydata() == [0.2, 0.2]
    levels = dict(zip(SITES, (0.1, 0.2, 0.3, 0.4), strict=True))
    figure = plots.error_curves(predicted, levels, measured, SITES)
    assert [axis.get_lines()[-1].get_ydata()[0] for axis in figure.axes[:4]] == [
        *levels.values()
    ]


def test_frame_curves_label_every_line():
    figure = plots.frame_curves([np.arange(4.0)] * 2, ["one", "two"], ylabel="PSNR")
    labels = [line.get_label() for line in figure.axes[0].get_lines()]
    assert labels == ["one", "two"]


@pytest.mark.parametrize(
    "text", ["costs $5", "$a_b$ and $", "$\\frac{$ broken", "a\\$b"]
)
def test_dollars_in_a_caption_are_dollars(text):
    trace = make_trace()
    figures = [
        plots.route_map(trace, SITES, title=text),
        plots.signal_curves(trace, SITES, title=text),
        plots.frame_curves(
            [np.arange(3.0), np.arange(3.0)], [text, "b"], ylabel=text, title=text
        ),
    ]
    for figure in figures:
        assert plots.png(figure).startswith(b"\x89PNG")
    title = figures[2].axes[0].title
    shown, is_math = title._preprocess_math(figures[2].axes[0].get_title(loc="left"))
    assert (shown, is_math) == (text, False)
