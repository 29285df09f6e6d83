from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from riemann_unlearn._yaml import dump_yaml, read_yaml
from riemann_unlearn.config import SEED_LIMIT, EvaluateConfig, RunConfig, TrainConfig
from riemann_unlearn.models import list_models
from riemann_unlearn.options import Config, option, parse_setting

TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("method: [tilt]", "method must be a text, got ['tilt']"),
        ("method: {tilt: 1}", "method must be a text, got {'tilt': 1}"),
        ("model: null", "model must be a text, got nothing"),
        ("model:", "model must be a text, got nothing"),
        ("data: 2", "data must be a text, got 2; write 2 in quotes"),
        ("seed: true", f"seed must be a whole number from 0 to {SEED_LIMIT}, got True"),
        ("seed: -1", f"seed must be a whole number from 0 to {SEED_LIMIT}, got -1"),
        ("seed: 9223372036854775808", "got 9223372036854775808"),
        ("seed: 2.5", "got 2.5"),
        ("seed: '3'", "got '3'; write it without quotes"),
        ("seed: 2026-01-01", "got '2026-01-01'"),
        ("seed: 1:30", "got '1:30'"),
        ("seed: [[[[1]]]]", "got [[[[1]]]]"),
        ("forget_batch: 0", "forget_batch must be a whole number, at least 1 (or left out), got 0"),
        ("saliency: 0", "saliency must be a number above 0, at most 1, got 0"),
        ("saliency: 1.5", "saliency must be a number above 0, at most 1, got 1.5"),
        ("saliency: .nan", "got nan"),
        ("saliency: .inf", "got inf"),
        ("saliency: 1e999", "got inf"),
        ("saliency: half", "saliency must be a number above 0, at most 1, got 'half'"),
        ("saliency: " + 400 * "9", "saliency must be a number"),
        ("forget: []", "forget must be a list of one or more texts, got []"),
        ("forget: {a: b}", "forget must be a list of one or more texts, got {'a': 'b'}"),
        ("forget: [7]", "got [7]; write 7 in quotes"),
        ("forget: [true]", "got [True]"),
        ("forget: [null]", "got [None]"),
        ("settings: [1]", "settings must be a mapping of names to values, got [1]"),
        ("settings: {1: 2}", "settings must be a mapping of names to values, got {1: 2}"),
        ("sede: 1", "unknown key 'sede'; did you mean 'seed'? Known: forget, model, "),
        ("1: 1", "unknown key 1; Known: "),
        ("", "must hold options by name, such as 'forget: [food-fruit]', got nothing"),
        ("[1, 2]", "must hold options by name, such as 'forget: [food-fruit]', got [1, 2]"),
        ("seed: 1\nseed: 2", "the key 'seed' is there twice"),
        ("settings: {alpha: 1, alpha: 2}", "the key 'alpha' is there twice"),
        ("forget: [", "is not valid YAML"),
        ("a: 1\n--- \nb: 1", "is not valid YAML"),
        ("{[1]: 2}", "is not valid YAML"),
        ("forget: !!python/object/apply:os.system [ls]", "is not valid YAML"),
        (5000 * "[", "cannot be read"),
        ("seed: " + 5000 * "9", "cannot be read"),
        ("seed: 1", "forget is missing; add it, as in 'forget: [food-fruit]'"),
    ],
)
def test_what_a_file_cannot_say_is_one_sentence(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        RunConfig.read_yaml(path)
    assert str(raised.value).startswith(str(path))
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < len(str(path)) + 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('epochs: "2"', "epochs must be a whole number, at least 1, got '2'; write it without quotes"),
        ("epoch: 3", "unknown key 'epoch'; did you mean 'epochs'?"),
        ("precision: int8", "precision must be one of float32, bfloat16, float16, got 'int8'"),
        ("learning_rate: 0", "learning_rate must be a number above 0, got 0"),
        ("weight_decay: -0.1", "weight_decay must be a number, at least 0, got -0.1"),
    ],
)
def test_what_a_training_cannot_be_told(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainConfig.read_yaml(tmp_path / "c.yaml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read none\.yaml: No such file"):
        RunConfig.read_yaml("none.yaml")
    with pytest.raises(ValueError, match=r"cannot read .*: Is a directory"):
        RunConfig.read_yaml(tmp_path)
    (tmp_path / "c.yaml").write_bytes(b"forget: \xff")
    with pytest.raises(ValueError, match="is not valid YAML"):
        RunConfig.read_yaml(tmp_path / "c.yaml")


def test_numbers_and_words_are_read_as_they_look(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(
        b"\xef\xbb\xbfforget: [no, on, 2026-01-01, '7', '1_000']\nseed: 010\nsaliency: 5e-1\n"
        b"settings: {learning_rate: 4e-4, a: 1E3, b: +.5, c: 1., d: -2, e: true, f: ~}\n"
    )
    config = RunConfig.read_yaml(path)
    assert config.forget == ("no", "on", "2026-01-01", "7", "1_000")
    assert (config.seed, config.saliency) == (10, 0.5)
    assert config.settings == {
        "learning_rate": 4e-4,
        "a": 1000.0,
        "b": 0.5,
        "c": 1.0,
        "d": -2,
        "e": True,
        "f": None,
    }
    assert read_yaml(path)["saliency"] == 0.5


def test_numbers_of_older_yaml_that_look_like_no_other_are_read(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("[1_000, -0x1F, 0b11, 0o17, 1_0.5, 0_1e-2, 1:30, 0x, _1, 09]")
    assert read_yaml(path) == [1000, -31, 3, 15, 10.5, 0.01, "1:30", "0x", "_1", 9]


def test_a_file_may_refer_to_itself(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("forget: &fruit [red apple]\nsettings: {<<: {alpha: 1}, alpha: 2}\n")
    assert RunConfig.read_yaml(tmp_path / "c.yaml").settings == {"alpha": 2}


def test_overrides_replace_what_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("seed: 3\nmethod: hac\n")
    config = RunConfig.read_yaml(tmp_path / "c.yaml", forget=["owl"], seed=4)
    assert config == RunConfig(forget=["owl"], method="hac", seed=4)


@given(
    st.lists(TEXTS, min_size=1, max_size=3),
    TEXTS,
    st.dictionaries(TEXTS, st.floats(allow_nan=False) | st.integers() | st.booleans() | TEXTS, max_size=3),
    st.integers(0, SEED_LIMIT),
    st.floats(0, 1, exclude_min=True),
)
def test_a_configuration_is_read_back_as_it_was_written(
    forget: list[str], model: str, settings: dict[str, Any], seed: int, saliency: float
) -> None:
    config = RunConfig(forget, model=model, settings=settings, seed=seed, saliency=saliency)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.yaml"
        path.write_text(dump_yaml(config.to_mapping()), encoding="utf-8")
        assert RunConfig.read_yaml(path) == config


@given(st.lists(TEXTS, min_size=1, max_size=3))
def test_what_is_written_is_the_same_to_readers_of_older_yaml(forget: list[str]) -> None:
    assert yaml.safe_load(dump_yaml({"forget": forget})) == {"forget": forget}


def test_python_values_that_mean_the_same_are_taken() -> None:
    config = RunConfig("owl", model=Path("m"), seed=np.int64(3), saliency=np.float32(0.5))  # type: ignore[arg-type]
    assert config == RunConfig(["owl"], model="m", seed=3, saliency=0.5)
    assert type(config.seed) is int
    assert config.to_mapping()["forget"] == ["owl"]
    assert RunConfig(Path("a/b")).forget == ("a/b",)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed must be"):
        RunConfig("owl", seed=np.float64(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="saliency must be"):
        RunConfig("owl", saliency=10**400)


def test_every_option_has_words_and_a_default_that_is_allowed() -> None:
    for config in (RunConfig, TrainConfig, EvaluateConfig):
        for entry in fields(config):
            assert entry.metadata["help"]
            assert not entry.metadata["help"].endswith(".")
            assert config.expected(entry.name)
    assert RunConfig("owl").device == TrainConfig().device == EvaluateConfig().device == "cpu"


def test_the_bundled_models_settings_are_read() -> None:
    for info in list_models():
        assert TrainConfig.read_yaml(info.path / "train.yaml").data == "emoji"


@dataclass(frozen=True)
class Mine(Config):
    """An option of every kind, declared and nothing more."""

    example: ClassVar[str] = "quiet: true"
    quiet: bool = option(False, "say nothing")
    names: Sequence[str] = option(("a",), "which")
    most: float | None = option(None, "how much", high=2)


def test_a_field_is_all_that_an_option_takes() -> None:
    assert Mine.from_mapping({"quiet": True, "names": ["b"], "most": 1}) == Mine(True, ("b",), 1.0)
    assert Mine.parse("most", "1.5") == 1.5
    assert Mine.parse("quiet", True) is True
    with pytest.raises(ValueError, match="quiet must be true or false, got 1"):
        Mine(quiet=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"--most must be a number, at most 2 \(or left out\), got 'x'"):
        Mine.parse("most", "x")


@pytest.mark.parametrize("text", ["alpha", "alpha=", "alpha=high", "=", "alpha=1=2"])
def test_a_setting_is_a_name_and_a_number(text: str) -> None:
    with pytest.raises(ValueError, match="--set takes NAME=NUMBER"):
        parse_setting(text)
    assert parse_setting("steps=20") == ("steps", 20)
    assert isinstance(parse_setting("steps=20")[1], int)
