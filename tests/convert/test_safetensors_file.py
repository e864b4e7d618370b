import json
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy

from convert.errors import ConversionError
from convert.safetensors_file import (
    DTYPES,
    SafetensorsWriter,
    header_bytes,
    read_index,
    write_file,
)
from sixbit_jax.reading.messages import brief


def _values(dtype, shape=(3, 5)):
    bits = np.arange(int(np.prod(shape)) * dtype.itemsize, dtype=np.uint8) % 2
    return bits.view(dtype).reshape(shape)


def test_every_dtype_survives_a_round_trip(tmp_path):
    arrays = {name: _values(dtype) for name, dtype in DTYPES.items()}
    write_file(tmp_path / "all.safetensors", arrays)
    index = read_index(tmp_path / "all.safetensors")
    assert list(index) == list(arrays)
    for name, array in arrays.items():
        read = index[name].read()
        assert read.dtype == DTYPES[name]
        assert read.tobytes() == array.tobytes()
        assert index[name].is_float == (name[0] in "FB" and name != "BOOL")


def test_reads_what_the_safetensors_package_writes(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "matrix": rng.normal(size=(4, 7)).astype(np.float32),
        "scalar": np.array(2.5, np.float16),
        "empty": np.zeros((0, 3), np.float32),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors", {"format": "pt"})
    index = read_index(tmp_path / "x.safetensors")
    assert index.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(index[name].read(), array)


def test_the_safetensors_package_reads_what_we_write(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, "i8")}
    write_file(tmp_path / "x.safetensors", arrays, {"format": "pt"})
    read = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)


def test_reading_one_tensor_allocates_one_tensor(tmp_path):
    size = 1 << 20
    arrays = {f"t{i}": np.full(size, i, np.uint8) for i in range(8)}
    write_file(tmp_path / "x.safetensors", arrays)
    index = read_index(tmp_path / "x.safetensors")
    tracemalloc.start()
    for i in range(8):
        assert index[f"t{i}"].read()[0] == i
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.1 * size


def _damaged(tmp_path, data):
    file = tmp_path / "bad.safetensors"
    file.write_bytes(data)
    return file


def _with_header(entries, data=b""):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def _good():
    layout = {"a": (np.dtype("f4"), (2, 2)), "b": (np.dtype("f4"), (3,))}
    return header_bytes(layout) + bytes(28)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated"),
        (b"\x80\x02}q\x00X\x05\x00\x00\x00model", "not safetensors"),
        (_good()[:40], "truncated"),
        (
            _good()[:-1],
            r"expected 28 bytes of tensors, found 27: the file is truncated",
        ),
        (_good() + b"\0", "too long"),
        (_with_header([1, 2]), "expected a JSON object"),
        (_with_header({})[:-1] + b"x", "expected a JSON object"),
        (
            _with_header({"a": {"dtype": "F7", "shape": [1], "data_offsets": [0, 1]}}),
            "expected dtype",
        ),
        (_with_header({"a": {"dtype": "F32", "shape": [1]}}), "data_offsets"),
        (
            _with_header(
                {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)
            ),
            r"expected 8 bytes for F32 \[2\], found the range 0 to 4",
        ),
        (
            _with_header(
                {
                    "a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
                    "b": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]},
                },
                bytes(6),
            ),
            "b: expected to begin at byte 4, found 2",
        ),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, data, message):
    with pytest.raises(ConversionError, match=message) as error:
        read_index(_damaged(tmp_path, data))
    assert "bad.safetensors" in str(error.value)


def test_a_file_that_shrinks_after_indexing_is_noticed(tmp_path):
    file = _damaged(tmp_path, _good())
    index = read_index(file)
    file.write_bytes(_good()[:-8])
    with pytest.raises(ConversionError, match="found the end of the file"):
        index["b"].read()


def test_the_writer_refuses_another_order_and_an_early_end(tmp_path):
    layout = {"a": (np.dtype("f4"), (2,)), "b": (np.dtype("f4"), (1,))}
    writer = SafetensorsWriter(tmp_path / "x.safetensors", layout)
    with pytest.raises(ConversionError, match="expected a float32"):
        writer.write("b", np.zeros(1, np.float32))
    writer.abort()
    writer = SafetensorsWriter(tmp_path / "y.safetensors", layout)
    writer.write("a", np.zeros(2, np.float32))
    with pytest.raises(ConversionError, match="never written: b"):
        writer.close()


def _entry(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": _entry(dtype="F8_E8M0")}, "unsupported dtype F8_E8M0.*not damaged"),
        ({"a": _entry(dtype="F4")}, "unsupported dtype F4"),
        ({"a": _entry(dtype=["F32"])}, "expected dtype to be one of"),
        ({"a": _entry(dtype=None)}, "expected dtype to be one of"),
        ({"a": _entry(shape=[2.0])}, r"shape of whole numbers from 0, found \[2.0\]"),
        ({"a": _entry(shape=[True, 2])}, r"whole numbers from 0, found \[True, 2\]"),
        ({"a": _entry(shape=["2"])}, "whole numbers from 0, found"),
        ({"a": _entry(shape=[-2])}, "whole numbers from 0"),
        ({"a": _entry(shape=[-1, -2])}, "whole numbers from 0"),
        ({"a": _entry(shape=2)}, "whole numbers from 0"),
        ({"a": _entry(shape={"0": 2})}, "whole numbers from 0"),
        ({"a": _entry(shape=[10**30])}, "whole numbers from 0"),
        ({"a": _entry(shape=[2**62] * 64)}, "expected a number of .* bits bytes"),
        ({"a": _entry(shape=[1] * 65)}, "whole numbers from 0"),
        ({"a": _entry(shape=[0, 2**62, 2**62], data_offsets=[0, 0])}, "expected 0 byt"),
        ({"a": _entry(data_offsets=[0, 8.0])}, "two whole numbers"),
        ({"a": _entry(data_offsets=[False, 8])}, "two whole numbers"),
        ({"a": _entry(data_offsets=[-8, 0])}, "two whole numbers"),
        ({"a": _entry(data_offsets=[0])}, "two whole numbers"),
        ({"a": _entry(data_offsets=[0, 8, 16])}, "two whole numbers"),
        ({"a": _entry(data_offsets="08")}, "two whole numbers"),
        ({"a": _entry(data_offsets=[8, 0])}, "found the range 8 to 0"),
        ({"a": _entry(more=1)}, "expected data_offsets, dtype, shape, found"),
        ({"a": [1, 2]}, "expected data_offsets, dtype, shape, found"),
        ({"a": None}, "expected data_offsets, dtype, shape, found None"),
        ({"a": _entry(), "b": _entry()}, "b: expected to begin at byte 8, found 0"),
        ({"a": _entry(data_offsets=[4, 12])}, "a: expected to begin at byte 0"),
        ({"a": _entry(), "__metadata__": {"x": 1}}, "__metadata__: expected texts"),
        ({"a": _entry(), "__metadata__": []}, "__metadata__: expected texts"),
    ],
)
def test_every_word_of_a_header_is_held_against_the_format(tmp_path, entries, message):
    with pytest.raises(ConversionError, match=message) as caught:
        read_index(_damaged(tmp_path, _with_header(entries, bytes(8))))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a":' + json.dumps(_entry()).encode() + b',"a":{}}', "name 'a' twice"),
        (b' {"a": 1}', "found b' {"),
        (b'{"a": NaN}', "the number NaN"),
        ('{"a": 1}'.encode("utf-16"), "another format, or damaged"),
        (b'{"a":' + b"[" * 10**5, "nested deeper"),
        (b'{"\\ud800": {}}', "surrogate"),
    ],
    ids=lambda value: brief(value, 30),
)
def test_a_header_that_is_no_plain_json_is_refused(tmp_path, text, message):
    data = len(text).to_bytes(8, "little") + text + bytes(8)
    with pytest.raises(ConversionError, match=message):
        read_index(_damaged(tmp_path, data))


def test_a_header_larger_than_25_mb_is_not_read(tmp_path):
    file = tmp_path / "x.safetensors"
    with open(file, "wb") as stream:
        stream.write((99_000_000).to_bytes(8, "little") + b"{")
        stream.truncate(10**8)
    tracemalloc.start()
    with pytest.raises(ConversionError, match="header of at most 25,000,000 bytes"):
        read_index(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_what_a_message_quotes_is_cut(tmp_path):
    """A header of 2 MB once gave a message of the same size, and more."""
    names = {f"{'n' * 500}{i}": _entry(dtype="x" * 500) for i in range(2000)}
    with pytest.raises(ConversionError, match=r"\.\.\. and 1,980 more") as caught:
        read_index(_damaged(tmp_path, _with_header(names, bytes(8))))
    assert len(str(caught.value)) < 20_000


def test_the_header_of_ten_thousand_tensors_is_read(tmp_path):
    layout = {f"blocks.{i}.w": (np.dtype("f4"), (1,)) for i in range(10_000)}
    file = _damaged(tmp_path, header_bytes(layout) + bytes(40_000))
    assert len(read_index(file)) == 10_000
