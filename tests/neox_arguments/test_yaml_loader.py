"""The format of configuration files."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megatron.errors import ConfigError
from megatron.neox_arguments.yaml_loader import find_config, load_config, parse_config, parse_scalar


def values(text):
    return parse_config(text, "a.yml").values


def test_flow_mapping_with_comments_and_trailing_commas():
    text = (
        '# model\n{\n  "num-layers": 2, # two\n  "optimizer": {"params": {"lr": 6.0e-4, "betas": [0.9, 0.95,],},},\n}\n'
    )
    assert values(text) == {"num-layers": 2, "optimizer": {"params": {"lr": 6e-4, "betas": [0.9, 0.95]}}}


def test_json_with_tabs_keeps_tabs_inside_strings():
    assert values('{\n\t"a": 1,\n\t"b": {\t"c": "x\\ty\tz # no"}\n}') == {"a": 1, "b": {"c": "x\ty\tz # no"}}


def test_block_style_and_lines():
    file = parse_config("# c\n\na: 1\nb:\n  c: 2\nd-e: x\n", "a.yml")
    assert file.values == {"a": 1, "b": {"c": 2}, "d-e": "x"}
    assert file.lines == {"a": 3, "b": 4, "d-e": 6}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("6E+3", 6000.0), ("-1.5e-3", -1.5e-3), (".5", 0.5), ("1.", 1.0), ("12", 12),
        ("-3", -3), ("1_000", 1000), ("010", 10), ("12:30", "12:30"), ("2024-01-02", "2024-01-02"),
        ("1e", "1e"), ("e5", "e5"), ("0.97e-4", 0.97e-4), ("true", True), ("False", False), ("null", None),
        ("969, 30, 1", "969, 30, 1"),
    ],
)  # fmt: skip
def test_scalars(text, value):
    for parsed in (values(f"k: {text}")["k"], parse_scalar(text)):
        assert parsed == value and type(parsed) is type(value)


integers = st.integers(-(2**63), 2**63 - 1)


@given(st.floats(allow_nan=False, allow_infinity=False) | integers)
def test_every_number_printed_by_python_is_read_exactly(number):
    parsed = values(f"k: {number!r}")["k"]
    assert parsed == number and type(parsed) is type(number)


# PyYAML writes the string 1e5 without quotes, because it does not read it as a number.
text_ = st.text().filter(lambda text: not re.fullmatch(r"[-+.\d_eE]+", text))


@given(
    st.dictionaries(
        st.text("abc_-", min_size=1),
        st.recursive(
            st.none() | st.booleans() | integers | st.floats(allow_nan=False) | text_,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz", min_size=1), inner, max_size=3),
            max_leaves=5,
        ),
        min_size=1,
    ).filter(lambda d: len({key.replace("-", "_") for key in d}) == len(d))
)
def test_round_trip_through_yaml(config):
    assert values(yaml.safe_dump(config)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.yml: the file is empty"),
        ("# only a comment\n", "a.yml: the file is empty"),
        ("- 1\n- 2\n", "a.yml:1: expected keys and values"),
        ("just text", "a.yml:1: expected keys and values"),
        ("a: 1\nb: {c: 2\nd: 3\n", "a.yml:3: cannot be parsed"),
        ("a: 1\n\tb: 2\n", "a.yml:2: cannot be parsed"),
        ("a: 1\n---\nb: 2\n", "a.yml:2: cannot be parsed"),
        ("a: !!python/object:os.system x\n", "a.yml:1: cannot be parsed"),
        ("a: 1\nb: 2\na: 3\n", "a.yml:3: key 'a' is given twice, first on line 1"),
        ("a-b: 1\na_b: 2\n", "a.yml:2: key 'a_b' is given twice, first on line 1 (as 'a-b')"),
        ("o:\n  p:\n    lr: 1\n    lr: 2\n", "a.yml:4: key 'o.p.lr' is given twice, first on line 3"),
        ('{"x": [{"y": 1, "y": 2}]}', "a.yml:1: key 'x.y' is given twice"),
        ("? [a, b]\n: 1\n", "a.yml:1: expected a plain name as a key"),
        ("a: &x {b: *x}\nc: *y\n", "a.yml:2: cannot be parsed"),
        ("a: \x07\n", "a.yml: cannot be parsed"),
    ],
)
def test_errors_in_a_file_name_file_and_line(text, message):
    with pytest.raises(ConfigError) as error:
        values(text)
    assert str(error.value).startswith(message)


def test_every_duplicate_is_listed():
    with pytest.raises(ConfigError) as error:
        values("a: 1\na: 2\nb: {c: 1, c: 2}\n")
    assert str(error.value).count("given twice") == 2


def test_files_are_found_with_and_without_suffix(tmp_path):
    (tmp_path / "base.yml").write_text("a: 1")
    (tmp_path / "2-7B.v2.yml").write_text("a: 1")
    assert find_config("base", str(tmp_path)) == tmp_path / "base.yml"
    assert find_config(str(tmp_path / "base.yml")) == tmp_path / "base.yml"
    assert find_config("2-7B.v2", str(tmp_path)) == tmp_path / "2-7B.v2.yml"
    with pytest.raises(ConfigError, match=r"nope: configuration file not found \(tried .*nope.yml"):
        find_config("nope", str(tmp_path))
    with pytest.raises(ConfigError, match="got a folder"):
        find_config(str(tmp_path))


def test_unreadable_files(tmp_path):
    (tmp_path / "binary.yml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match="binary.yml: expected a UTF-8 text file"):
        load_config(tmp_path / "binary.yml")
    with pytest.raises(ConfigError, match="gone.yml: configuration file not found"):
        load_config(tmp_path / "gone.yml")
    (tmp_path / "bom.yml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert load_config(tmp_path / "bom.yml").values == {"a": 1}
