"""Links that leave docs/ lead to copies on the site."""

from types import SimpleNamespace

import pytest

from docs.tools.outside_links import on_page_markdown, outside

RECORD = "../benchmarks/results/h200/latent_vae.json"


@pytest.mark.parametrize(
    ("page", "link", "path"),
    [
        ("small-pipeline.md", RECORD, RECORD[3:]),
        ("deeper/usage.md", f"../{RECORD}", RECORD[3:]),
        ("deeper/usage.md", "../usage.md", None),
        ("usage.md", "../../elsewhere", None),
    ],
)
def test_a_link_that_leaves_the_pages_is_known(page, link, path):
    assert outside(page, link) == path


def test_links_are_rewritten_where_the_file_exists():
    text = f"[a]({RECORD}) [b](usage.md) [c](../no/such.json)"
    page = SimpleNamespace(file=SimpleNamespace(src_uri="small-pipeline.md"))
    changed = on_page_markdown(text, page=page)
    copy = "repository/benchmarks/results/h200/latent_vae.json"
    assert changed == f"[a]({copy}) [b](usage.md) [c](../no/such.json)"
