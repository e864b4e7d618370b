"""Pickles that harm Python's unpickler, and what is made of them here."""

import pickle
import time
import tracemalloc
import zipfile

import pytest

from convert.errors import ConversionError
from convert.torch_file import read_index
from convert.torch_pickle import Call, Damaged, Dict, Machine

PROTOCOL = b"\x80\x02"
LIMIT_SECONDS = 4.0
LIMIT_BYTES = 300 * 2**20


def _file(tmp_path, code, data=bytes(12)):
    file = tmp_path / "a.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", PROTOCOL + code)
        archive.writestr("archive/data/0", data)
    return file


def _refused(tmp_path, code, message):
    """Within seconds, and without much memory."""
    file = _file(tmp_path, code)
    began = time.perf_counter()
    with pytest.raises(ConversionError, match=message) as caught:
        read_index(file)
    assert time.perf_counter() - began < LIMIT_SECONDS
    assert len(str(caught.value)) < 1000


def _word(text):
    return b"X" + len(text).to_bytes(4, "little") + text


def test_nested_tuples_as_a_key_are_not_hashed(tmp_path):
    """60 bytes: every level names the one below twice, hashing takes 2^30 steps."""
    nested = b")" + b"".join(
        b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(30)
    )
    _refused(tmp_path, b"}" + nested + b"K\x01s.", "as the key of a dict")


def test_a_chain_of_a_million_tuples_does_not_end_the_process(tmp_path):
    _refused(tmp_path, b")" + b"\x85" * 1_000_000 + b".", "nested deeper than 64")
    _refused(tmp_path, b"}N" + b")" + b"\x85" * 1_000_000 + b"s.", "nested deeper")


@pytest.mark.parametrize("opener", [b"(", b"](", b"}(", b"}N", b"]", b"}K\x00"])
def test_nothing_else_is_nested_or_stacked_without_end(tmp_path, opener):
    code = opener * (1_000_000 // len(opener))
    _refused(tmp_path, code + b".", r"nested deeper|values on its stack|opcodes")


def test_a_chain_of_containers_put_together_from_its_end_is_refused(tmp_path):
    """Each level alone is shallow: lists are made first and then put in each other."""
    lists = b"".join(b"]r" + n.to_bytes(4, "little") for n in range(2000))
    chain = b"".join(
        b"j" + n.to_bytes(4, "little") + b"j" + (n + 1).to_bytes(4, "little") + b"a0"
        for n in range(1999)
    )
    _refused(tmp_path, lists + chain + b".", "opcode b'0'|is in no other")
    # The same from the other end, where every list is in another when it changes.
    code = b"]q\x00]q\x01" + b"h\x00h\x01a" + b"h\x01h\x00a."
    _refused(tmp_path, code, "a change of")


def test_a_container_cannot_hold_itself(tmp_path):
    _refused(tmp_path, b"]q\x00h\x00a.", "a change of|stack")
    _refused(tmp_path, b"}q\x00K\x01h\x00s.", "a change of|stack")


@pytest.mark.parametrize(
    "code",
    [
        b"\x96" + (2**40).to_bytes(8, "little") + b".",  # BYTEARRAY8
        b"\x8e" + (2**40).to_bytes(8, "little") + b".",  # BINBYTES8
        b"\x8d" + (2**40).to_bytes(8, "little") + b".",  # BINUNICODE8
        b"X\xff\xff\xff\xff.",  # BINUNICODE
        b"B\xff\xff\xff\x7f.",  # BINBYTES
        b"T\xff\xff\xff\x7f.",  # BINSTRING
        b"\x8b\xff\xff\xff\x7f.",  # LONG4
        b"\x95" + (2**40).to_bytes(8, "little") + b".",  # FRAME
        b"\x8a\xff.",  # LONG1
    ],
)
def test_sizes_are_those_of_the_file_and_nothing_is_allocated_for_them(tmp_path, code):
    file = _file(tmp_path, code)
    tracemalloc.start()
    with pytest.raises(ConversionError, match=r"truncated|does not write"):
        read_index(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_memo_of_any_number_takes_one_place(tmp_path):
    _refused(tmp_path, b"}r\xff\xff\xff\xff.", "no tensor|found no")


@pytest.mark.parametrize("opcode", [b")0", b"}r\1\0\0\0", b"Nq\0", b"K\1"])
def test_megabytes_of_opcodes_end_soon(tmp_path, opcode):
    _refused(tmp_path, opcode * (15 * 2**20 // len(opcode)) + b".", "opcode|values on")


def test_a_pickle_of_sixty_megabytes_is_not_read(tmp_path):
    _refused(tmp_path, b"N" * 60_000_000, "found one of 60,000,002 bytes")


def test_what_a_million_opcodes_hold_is_bounded(tmp_path):
    code = b"".join(b"}r" + n.to_bytes(4, "little") for n in range(90_000))
    file = _file(tmp_path, code * 5 + b".")
    tracemalloc.start()
    with pytest.raises(ConversionError, match="values on its stack"):
        read_index(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < LIMIT_BYTES


WRITTEN = set(b"()t\x85\x86\x87}]N\x88\x89JKM\x8aGXcRbsuaeQqrhj.")


@pytest.mark.parametrize("opcode", sorted(set(range(256)) - WRITTEN))
def test_every_opcode_that_torch_does_not_write_is_refused(opcode):
    with pytest.raises(Damaged, match=r"torch\.save does not write"):
        Machine(PROTOCOL + bytes([opcode]) + bytes(16), {}, lambda _: None).run()


@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_other_protocols_say_how_to_go_on(protocol):
    with pytest.raises(Damaged, match=r"expected protocol 2.*saved again"):
        Machine(pickle.dumps({"a": 1}, protocol), {}, lambda _: None).run()


def test_what_python_pickles_with_protocol_two_is_read():
    content = {"a": 1, "b": -7, "c": 2.5, "d": None, "e": True, "f": False, "g": 2**70}
    content |= {"h": (1, 2, 3, 4), "i": {"j": ()}, 3: "text", "k": 70_000, "l": 300}
    code = pickle.dumps(content, 2)
    assert Machine(code, {}, lambda _: None).run() == content


def test_bytes_behind_the_end_and_values_left_over_are_refused():
    for code in (b"N.N", b"NN.", b"(N.", b".", b"N"):
        with pytest.raises(Damaged):
            Machine(PROTOCOL + code, {}, lambda _: None).run()


def test_a_name_twice_in_a_dict_is_refused(tmp_path):
    pair = _word(b"a") + b"N"
    _refused(tmp_path, b"}(" + pair + pair + b"u.", "the key 'a' twice")


def test_constructors_get_as_many_arguments_as_they_take():
    names = {"collections.OrderedDict": Call(Dict, 0, 0)}
    code = PROTOCOL + b"ccollections\nOrderedDict\n"
    assert Machine(code + b")R.", names, lambda _: None).run() == {}
    for arguments in (b"K\x01\x85R.", b"NR.", b"]R."):
        with pytest.raises(Damaged, match="a call"):
            Machine(code + arguments, names, lambda _: None).run()


def test_long_names_and_values_are_cut_in_the_message(tmp_path):
    _refused(tmp_path, b"}" + _word(b"k" * 10**6) + b"N" + b"ss.", "a|stack")
    _refused(tmp_path, b"c" + b"m" * 10**6 + b"\nf\n.", "a name without an end")
    _refused(tmp_path, _word(b"w" * 10**6) + b"Q.", r"1,000,000 characters")


def _tensor_code(shape, strides, first=b"K\x00", elements=b"K\x03"):
    storage = (
        b"(" + _word(b"storage") + b"ctorch\nFloatStorage\n" + _word(b"0")
        + _word(b"cpu") + elements + b"tQ"
    )  # fmt: skip
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + first + shape + strides
    return b"}" + _word(b"a") + tensor + b"\x89NtRs."


def test_a_tensor_cannot_be_larger_than_its_file(tmp_path):
    """Strides of 0 repeat a value without storing it."""
    huge = b"\x8a\x06" + (2**40).to_bytes(6, "little") + b"\x85"
    _refused(tmp_path, _tensor_code(huge, b"K\x00\x85"), "in a file of")
    file = _file(tmp_path, _tensor_code(b"K\x09\x85", b"K\x00\x85"))
    assert read_index(file)["a"].read().shape == (9,)


@pytest.mark.parametrize(
    ("shape", "strides", "first", "elements"),
    [
        (b"\x88\x85", b"K\x01\x85", b"K\x00", b"K\x03"),  # True as a size
        (b"G" + bytes(8) + b"\x85", b"K\x01\x85", b"K\x00", b"K\x03"),
        (b"K\x01\x85", b"K\x01\x85", b"\x89", b"K\x03"),
        (b"K\x01\x85", b"K\x01\x85", b"N", b"K\x03"),
        (b"J\xff\xff\xff\xff\x85", b"K\x01\x85", b"K\x00", b"K\x03"),
        (b"K\x01\x85", b"K\x01\x85", b"K\x00", b"\x88"),
        (b"K\x01\x85", b"K\x01\x85", b"K\x00", b"K\x04"),
        (b"\x8a\xff" + b"\x7f" * 255 + b"\x85", b"K\x01\x85", b"K\x00", b"K\x03"),
        (b"(" + b"K\x01" * 65 + b"t", b"(" + b"K\x01" * 65 + b"t", b"K\x00", b"K\x03"),
        (b"K\x01", b"K\x01", b"K\x00", b"K\x03"),
        (b"K\x01\x85", b"]", b"K\x00", b"K\x03"),
    ],
)
def test_sizes_of_tensors_are_whole_numbers(tmp_path, shape, strides, first, elements):
    code = _tensor_code(shape, strides, first, elements)
    _refused(tmp_path, code, "a tensor|storage")
