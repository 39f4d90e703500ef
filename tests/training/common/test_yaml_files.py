import pytest

from training.common.yaml_files import find_file, names_in, read_mapping
from video_distilled_encoder import InputError


def test_a_file_is_found_by_name_or_by_path(tmp_path):
    (tmp_path / "b.yaml").write_text("x: 1")
    (tmp_path / "a.yaml").write_text("")
    assert names_in(tmp_path) == ["a", "b"]
    assert find_file("b", tmp_path, "recipe") == find_file(str(tmp_path / "b.yaml"), tmp_path, "recipe")
    assert read_mapping(tmp_path / "b.yaml", "recipe") == {"x": 1}
    with pytest.raises(InputError, match=r"there is no recipe 'c'; give a YAML file or one of: a, b"):
        find_file("c", tmp_path, "recipe")


@pytest.mark.parametrize("content", [b"", b"- 1", b"x: [", b"\xff\xfe\x00"])
def test_what_is_no_mapping_is_refused_in_a_sentence(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.yaml (cannot be read as|is not) a recipe") as error:
        read_mapping(path, "recipe")
    assert "\n" not in str(error.value)
