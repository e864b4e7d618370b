"""JSON of others: one object of a bounded size, or one clear error."""

import json
import os
import socket
import time
import tracemalloc

import pytest

from sixbit_jax.reading.json_file import LARGEST_BYTES, read_json_object
from sixbit_jax.reading.messages import bounded, brief, named, several
from sixbit_jax.reading.regular_file import open_regular


def _short(value):
    return brief(value, 30)


def _write(tmp_path, data):
    file = tmp_path / "x.json"
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    return file


def test_an_object_is_read_as_json_reads_it(tmp_path):
    values = {"a": [1, 2.5, None, True], "ü": {"b": "\U0001f600"}, "c": -(10**20)}
    for text in (json.dumps(values), json.dumps(values, ensure_ascii=False)):
        assert read_json_object(_write(tmp_path, text)) == values


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "nothing: the file is empty"),
        (b"  \n", "nothing"),
        (b"{", "no JSON"),
        (b"{} {}", "no JSON"),
        (b"[1]", "a list"),
        (b"3", "a int"),
        (b"null", "a NoneType"),
        (b'{"a": NaN}', "the number NaN"),
        (b'{"a": -Infinity}', "the number -Infinity"),
        (b'{"a": 1e999}', "the number 1e999, which no float64 holds"),
        (b'{"a": ' + b"1" * 5000 + b"}", "a whole number of 5,000 digits"),
        (b'{"a": 1, "a": 2}', "the name 'a' twice in one object"),
        (b'{"x": {"b": 1, "b": 1}}', "the name 'b' twice"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        ('{"a": 1}'.encode("utf-16-le"), "UTF-16"),
        ('{"a": 1}'.encode("utf-32"), "UTF-16"),
        ('{"a": 1}'.encode("utf-8-sig"), "a UTF-8 byte order mark"),
        (b'{"a": "\xff"}', "bytes that are not UTF-8"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\uDFFF": 1}', "half of a surrogate pair"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested deeper than 64"),
        (b'{"a":' * 100_000, "nested deeper than 64"),
        (b'{"a": ' + b"[" * 900_000, "nested deeper than 64"),
        (b'{"a": [' + b"[]," * 700_000 + b"0]}", "values"),
        (b"PK\x03\x04\0\0", "zero bytes"),
    ],
    ids=_short,
)
def test_everything_else_is_one_clear_error(tmp_path, data, found):
    file = _write(tmp_path, data)
    began = time.perf_counter()
    with pytest.raises(ValueError, match="expected a JSON object, found") as caught:
        read_json_object(file)
    assert found in str(caught.value)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 500
    assert time.perf_counter() - began < 3


def test_a_pair_of_surrogates_is_a_letter(tmp_path):
    file = _write(tmp_path, b'{"a": "\\ud83d\\ude00"}')
    assert read_json_object(file) == {"a": "\U0001f600"}


def test_a_sparse_file_of_a_terabyte_is_refused_by_its_size(tmp_path):
    file = tmp_path / "x.json"
    with open(file, "wb") as stream:
        stream.truncate(2**40)
    tracemalloc.start()
    with pytest.raises(ValueError, match="at most 16,777,216 bytes, found 1,099,511"):
        read_json_object(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_the_largest_text_takes_bounded_memory(tmp_path):
    text = b'{"a": [' + b"{}," * 450_000 + b"0]}"
    file = _write(tmp_path, text + b" " * (LARGEST_BYTES - len(text)))
    tracemalloc.start()
    assert len(read_json_object(file)["a"]) == 450_001
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * 2**20


def _others(tmp_path):
    fifo, directory, listening = (tmp_path / n for n in ("fifo", "directory", "s"))
    os.mkfifo(fifo)
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(listening))
    link = tmp_path / "link"
    link.symlink_to(fifo)
    return {
        fifo: "a FIFO",
        link: "a FIFO",
        directory: "a directory",
        listening: "a socket",
        "/dev/zero": "a character device",
    }


def test_only_regular_files_are_opened(tmp_path):
    for path, kind in _others(tmp_path).items():
        with pytest.raises(ValueError, match=f"expected a regular file, found {kind}"):
            read_json_object(path)
    with pytest.raises(FileNotFoundError):
        read_json_object(tmp_path / "absent")
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "absent")
    with pytest.raises(FileNotFoundError):
        open_regular(dangling)
    file = _write(tmp_path, b'{"a": 1}')
    (tmp_path / "to").symlink_to(file)
    assert read_json_object(tmp_path / "to") == {"a": 1}


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**6,
        b"\0" * 10**6,
        list(range(10**6)),
        {str(n): n for n in range(10**5)},
        {"k" * 10**6: "v" * 10**6},
        10**5000,
        [["x" * 1000] * 1000] * 1000,
        "\n\x1b[31m\ud800" * 50,
        object(),
    ],
    ids=_short,
)
def test_values_in_messages_are_short_and_print_on_one_line(value):
    text = brief(value)
    assert len(text) < 400
    assert text.isprintable()
    text.encode()


def test_deep_values_in_messages_are_short():
    deep, shared = [], ()
    for _ in range(10_000):
        deep, shared = [deep], (shared, shared)
    assert len(brief(deep)) < 200
    assert len(brief(shared)) < 400
    assert brief({"a": [1, 2.5, None, "x"]}) == "{'a': [1, 2.5, None, 'x']}"


def test_lists_and_messages_say_how_much_is_left_out():
    assert several(["a", "b"], 2) == ["a", "b"]
    assert several(map(str, range(152)), 20)[-1] == "... and 132 more"
    assert len(several(map(str, range(152)), 20)) == 21
    assert bounded("one\ntwo ü") == "one\ntwo ü"
    assert bounded("a\x1b[2J\tb\ud800\n") == "a\\x1b[2J\\tb\\ud800\n"
    long = bounded("\n".join(["x" * 10**4] * 1000))
    assert len(long) < 60_000
    assert "(10,000 characters)" in long
    assert long.endswith("... and 940 more")


def test_names_are_quoted_only_where_they_have_to_be():
    assert named("blocks.0.attn.weight") == "blocks.0.attn.weight"
    assert named("a\nb") == "'a\\nb'"
    assert named("") == "''"
    assert len(named("n" * 1000)) < 200
