"""Zip files whose parts contradict each other or their bytes."""

import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest

from convert.errors import ConversionError
from convert.torch_file import read_index
from convert.zip_directory import read_directory
from tests.convert.test_torch_file import GOLDEN
from tests.convert.torch_files import write_state_dict

WEIGHTS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.arange(5, dtype=np.float16),
}


def _read(file):
    return {name: info.read() for name, info in read_index(file).items()}


def _equal(found, expected):
    return found.keys() == expected.keys() and all(
        found[name].shape == array.shape
        and found[name].dtype == array.dtype
        and found[name].tobytes() == array.tobytes()
        for name, array in expected.items()
    )


@pytest.mark.parametrize("writer", ["torch", "zipfile"])
def test_every_flipped_bit_is_noticed_or_changes_nothing(tmp_path, writer):
    """torch writes sizes behind the data, zipfile before it."""
    file = tmp_path / "a.pt"
    if writer == "torch":
        file.write_bytes((GOLDEN / "weights.pt").read_bytes())
    else:
        write_state_dict(file, WEIGHTS)
    expected, whole = _read(file), file.read_bytes()
    noticed = 0
    for position in range(0, len(whole), 5 if writer == "torch" else 1):
        changed = bytearray(whole)
        changed[position] ^= 1 << (position % 8)
        file.write_bytes(changed)
        try:
            found = _read(file)
        except ConversionError:
            noticed += 1
        else:
            assert _equal(found, expected), position
    assert noticed > (600 if writer == "torch" else 700)


def test_every_changed_data_bit_is_noticed(tmp_path):
    file = write_state_dict(tmp_path / "a.pt", WEIGHTS)
    whole = file.read_bytes()
    for name, info in read_index(file).items():
        for bit in range(info.nbytes * 8):
            changed = bytearray(whole)
            changed[info.offset + bit // 8] ^= 1 << (bit % 8)
            file.write_bytes(changed)
            with pytest.raises(ConversionError, match="CRC-32"):
                read_index(file)[name].read()


def test_views_of_a_storage_are_checked_against_all_of_it(tmp_path):
    file = tmp_path / "a.pt"
    whole = (GOLDEN / "weights.pt").read_bytes()
    file.write_bytes(whole)
    index = read_index(file)
    row = index["row"]
    changed = bytearray(whole)
    changed[row.entry.offset] ^= 1  # before the row
    file.write_bytes(changed)
    with pytest.raises(ConversionError, match="its bytes were changed"):
        row.read()


def test_a_checked_storage_is_not_checked_again_unless_the_file_changes(
    tmp_path, monkeypatch
):
    file = tmp_path / "a.pt"
    file.write_bytes((GOLDEN / "weights.pt").read_bytes())
    row = read_index(file)["row"]
    calls = []
    real = zlib.crc32
    monkeypatch.setattr(zlib, "crc32", lambda *a: calls.append(1) or real(*a))
    first = row.read()
    assert calls
    calls.clear()
    np.testing.assert_array_equal(row.read(), first)
    assert not calls
    file.touch()
    row.read()
    assert calls


def test_checking_takes_the_memory_of_the_tensor(tmp_path):
    size = 8 << 20
    file = write_state_dict(tmp_path / "a.pt", {"a": np.ones(size, np.uint8)})
    info = read_index(file)["a"]
    tracemalloc.start()
    assert info.read().sum() == size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3 * size


def test_a_file_without_checksums_is_said_to_have_none(tmp_path):
    """As torch.serialization.set_crc32_options(False) writes them: all zero."""
    file = write_state_dict(tmp_path / "a.pt", WEIGHTS)
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            whole = whole.replace(struct.pack("<I", info.CRC), bytes(4))
    file.write_bytes(whole)
    with pytest.raises(ConversionError, match=r"set_crc32_options\), save it again"):
        read_index(file)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_second_entry_of_the_same_name_is_refused(tmp_path):
    file = write_state_dict(tmp_path / "a.pt", WEIGHTS)
    for name in ("archive/data/0", "archive/data.pkl", "archive/byteorder"):
        changed = tmp_path / "b.pt"
        changed.write_bytes(file.read_bytes())
        with zipfile.ZipFile(changed, "a") as archive:
            archive.writestr(name, bytes(48))
        with pytest.raises(ConversionError, match=f"found two {name}"):
            read_index(changed)


def _edit(file, place, values):
    data = bytearray(file.read_bytes())
    data[place : place + len(values)] = values
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("at", "values", "message"),
    [
        (0, b"PK\x07\x08", "expected an entry"),
        (6, b"\x01\x00", "says"),  # encrypted
        (8, b"\x08\x00", "says"),  # deflated
        (10, b"\x01\x01", "says"),  # time
        (14, b"\0\0\0\1", "says"),  # CRC-32
        (18, b"\x01", "says"),  # sizes
        (22, b"\x01", "says"),
        (26, b"\x02", "no room|says|its name"),  # length of the name
        (28, b"\x04", "no room|says|next entry|its name"),  # of the extra field
        (30, b"b", "says"),
    ],
)
def test_local_headers_are_compared_with_the_directory(tmp_path, at, values, message):
    file = write_state_dict(tmp_path / "a.pt", WEIGHTS)
    with zipfile.ZipFile(file) as archive:
        offset = archive.getinfo("archive/data/0").header_offset
    _edit(file, offset + at, values)
    with pytest.raises(ConversionError, match=message):
        read_index(file)


@pytest.mark.parametrize("change", ["before", "between", "behind"])
def test_bytes_that_belong_to_no_entry_are_refused(tmp_path, change):
    file = tmp_path / "a.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        if change == "between":
            archive.fp.write(b"hidden")
            archive.start_dir = archive.fp.tell()
        archive.writestr("archive/version", "3")
    whole = file.read_bytes()
    if change != "between":
        parts = (b"#!", whole) if change == "before" else (whole, b"more")
        file.write_bytes(b"".join(parts))
    with pytest.raises(ConversionError, match="expected"):
        read_directory(file)


def test_a_directory_that_is_said_to_be_huge_is_not_read(tmp_path):
    file = tmp_path / "a.pt"
    end = struct.pack("<4s4HIIH", b"PK\x05\x06", 0, 0, 9, 9, 2**32 - 2, 0, 0)
    with open(file, "wb") as stream:
        stream.write(b"PK\x03\x04")
        stream.truncate(2**32 - 2)  # sparse
        stream.seek(0, 2)
        stream.write(end)
    tracemalloc.start()
    with pytest.raises(ConversionError, match="expected a directory of at most"):
        read_directory(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_every_truncation_is_noticed(tmp_path):
    file = tmp_path / "a.pt"
    whole = (GOLDEN / "weights.pt").read_bytes()
    for size in range(0, len(whole), 37):
        file.write_bytes(whole[:size])
        with pytest.raises(ConversionError, match="expected"):
            read_directory(file)
