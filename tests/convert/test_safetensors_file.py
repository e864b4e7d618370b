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
