"""Tables of result pages come from records."""

import pytest

from docs.tools import figures
from docs.tools.figures import PAGE, TABLES, current, main, one, stale, table


def page_of(tables) -> str:
    return "# Page\n\n" + "\n\nText.\n\n".join(tables) + "\n\nEnd.\n"


@pytest.fixture(scope="module")
def whole():
    return page_of(make() for make in TABLES.values())


def test_a_record_is_found_by_its_fields():
    record = one("h200/sampling_sparse_5b_parts", program="bf16")
    assert record["step_ms"] == pytest.approx(1389.18, abs=0.01)


def test_a_record_must_be_one():
    with pytest.raises(ValueError, match=r"expected one record .* found 0"):
        one("h200/pipeline_5b", model="another")
    with pytest.raises(ValueError, match=r"expected one record .* found 6"):
        one("h200/sampling_sparse_5b_parts", program="int8, 8-bit attention, sparse")


def test_empty_cells_and_alignment():
    made = table(["", "b"], "lr", [["x", ""]])
    assert made == "| | b |\n| --- | ---: |\n| x | |"


def test_a_table_takes_the_place_of_the_one_with_its_header():
    old, new = (
        "| a | b |\n| --- | --- |\n| 1 | 2 |",
        "| a | b |\n| --- | --- |\n| 3 | 4 |",
    )
    assert current(page_of([old]), new) == page_of([new])
    with pytest.raises(ValueError, match=r"expected one table .* found 0"):
        current("# Page\n", new)


def test_a_page_of_made_tables_is_current(whole):
    assert stale(whole) == []


@pytest.mark.parametrize("name", TABLES)
def test_another_digit_in_a_table_is_found(name, whole):
    made = TABLES[name]()
    last = made.split("\n")[-1]
    index = max(place for place, sign in enumerate(last) if sign.isdigit())
    changed = last[:index] + str((int(last[index]) + 1) % 10) + last[index + 1 :]
    assert stale(whole.replace(last, changed)) == [name]


@pytest.mark.parametrize("name", TABLES)
def test_the_page_of_speed_has_the_table(name):
    current(PAGE.read_text(encoding="utf-8"), TABLES[name]())


def test_the_command_says_what_is_old_and_writes_it(whole, tmp_path, capsys):
    page, old = tmp_path / "page", whole.replace("nothing skipped | 0.07", "x | 0.08")
    page.write_text(old)
    assert main(["--page", str(page), "--check"]) == 1
    assert capsys.readouterr().out == "not current: prompt to pixels\n"
    assert page.read_text() == old
    assert main(["--page", str(page)]) == 0
    assert page.read_text() == whole
    assert figures.main(["--page", str(page), "--check"]) == 0


@pytest.mark.parametrize("name", TABLES)
def test_the_table_of_the_page_is_current(name):
    made = TABLES[name]()
    assert made in PAGE.read_text(encoding="utf-8"), (
        "run `python -m docs.tools.figures`"
    )
