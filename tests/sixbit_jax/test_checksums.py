import pytest

from sixbit_jax import checksums


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a").write_bytes(bytes(range(256)) * 9000)  # more than one chunk
    (tmp_path / "deep" / "b").write_bytes(b"b")
    return tmp_path


def test_a_checksum_is_that_of_the_contents(folder):
    data = (folder / "a").read_bytes()
    assert checksums.of_file(folder / "a") == checksums.of_bytes(data)
    assert len(checksums.of_bytes(b"")) == 32


def test_the_checksum_of_a_directory_depends_on_bits_and_names(folder):
    first = checksums.of_directory(folder)
    assert checksums.of_directory(folder) == first
    (folder / "deep" / "b").write_bytes(b"c")
    second = checksums.of_directory(folder)
    (folder / "deep" / "b").rename(folder / "deep" / "c")
    third = checksums.of_directory(folder)
    # The same bytes, divided otherwise.
    (folder / "deep" / "c").write_bytes(b"")
    (folder / "deep" / "d").write_bytes(b"c")
    assert len({first, second, third, checksums.of_directory(folder)}) == 4


def test_missing_and_changed_files_are_listed(folder):
    checksums.write_manifest(folder, "thing")
    assert checksums.damaged(folder, kind="thing") == []
    (folder / "a").unlink()
    (folder / "deep" / "b").write_bytes(b"c")
    first, second = checksums.damaged(folder, kind="thing")
    assert first == "a: missing"
    assert second.startswith("deep/b: expected the checksum ")


def test_added_files_are_foreign_and_not_damage(folder):
    checksums.write_manifest(folder, "thing")
    (folder / "new").write_bytes(b"")
    assert checksums.damaged(folder, kind="thing") == []
    assert checksums.foreign(folder, kind="thing") == ["new"]


def test_a_list_is_refused_if_any_of_its_bits_changed(folder):
    checksums.write_manifest(folder, "thing")
    file = folder / checksums.MANIFEST
    original = file.read_bytes()
    expected = checksums.read_manifest(folder, kind="thing")
    for bit in range(0, 8 * len(original), 5):
        data = bytearray(original)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        try:
            found = checksums.read_manifest(folder, kind="thing")
        except ValueError:
            continue
        assert found == expected  # white space between the values
