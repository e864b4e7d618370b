from sixbit_jax.report import html, tables


def test_byte_sizes_are_decimal():
    sizes = [0, 999, 19_329_632, 11_140_000_000, 3e12]
    assert [tables.byte_size(s) for s in sizes] == [
        "0 B",
        "999 B",
        "19.3 MB",
        "11.1 GB",
        "3 TB",
    ]


def test_a_piped_table_is_not_cut(capsys):
    name = "x" * 120
    tables.print_table(tables.table(["a", "b"], [[name, "1"]]))
    assert name in capsys.readouterr().out


def test_markdown_aligns_numbers_right():
    assert tables.markdown(["a", "b"], [["x", "1"]]) == (
        "| a | b |\n| --- | ---: |\n| x | 1 |\n"
    )


def test_a_page_escapes_text_and_embeds_pictures():
    page = html.Page("<title>")
    page.table(["", "a < b"], [["x & y", "1"]])
    page.picture(b"\x89PNG", "png", 'a "caption"')
    page.facts("Settings", {"versions": {"jax": "1.0"}})
    text = page.render()
    assert "<h1>&lt;title&gt;</h1>" in text
    assert "<th>a &lt; b</th>" in text
    assert "<td>x &amp; y</td>" in text
    assert "data:image/png;base64,iVBORw==" in text
    assert "<td>versions.jax</td><td>1.0</td>" in text
    assert "http:" not in text
    assert "https:" not in text
    assert "default-src 'none'" in text
