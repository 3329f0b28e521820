"""Names of options, and those of a checkpoint under a run file's."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import AliasChoices, BaseModel, Field, ValidationError, field_validator

from janus_plugins.core.options import laid_over, spellings, unlike
from janus_plugins.core.plan import plain_options
from janus_plugins.core.problems import option_worded
from janus_plugins.core.specs import ComponentConfig


class Crop(BaseModel, extra="forbid"):
    left: int = Field(default=1, alias="from")
    right: int = 2


class Options(ComponentConfig):
    ratio: float = Field(default=1.0, alias="lambda")
    size: int = Field(default=8, validation_alias=AliasChoices("side", "edge"))
    out: int = Field(default=1, serialization_alias="written")
    crop: Crop = Crop()
    names: tuple[str, ...] = ("a",)

    @field_validator("names")
    @classmethod
    def _marked(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"<{name}>" for name in names)


class ByName(Options, validate_by_name=True):
    pass


class Later(Options):
    newly: int = 3
    out: int = Field(default=7, serialization_alias="written")


def test_what_a_field_is_called() -> None:
    assert spellings(Options, "ratio") == ("lambda",)
    assert spellings(ByName, "ratio") == ("lambda", "ratio")
    assert spellings(Options, "size") == ("side", "edge")
    assert spellings(Options, "out") == ("out",)


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        (Options, {"ratio": 2.0}, "it calls this option 'lambda'"),
        (Options, {"size": 4}, "it calls this option 'side' or 'edge'"),
        (Options, {"lambada": 2.0}, "it has no such option. Did you mean 'lambda'?"),
        (ByName, {"lambda": 1.0, "ratio": 2.0}, "the same option as 'lambda'; give one of them"),
        (Options, {"side": 1, "edge": 2}, "the same option as 'side'; give one of them"),
        (Options, {"crop": {"rihgt": 2}}, "it has no such option. Did you mean 'right'?"),
        (Options, {"crop": {"left": 2}}, "it calls this option 'from'"),
        (Options, {"names": ["a"], "siez": 1}, "it has no such option. Did you mean 'side'?"),
    ],
)
def test_a_key_that_no_option_reads(
    config: type[ComponentConfig], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        config.model_validate(options)
    assert [option_worded(each, "it", config) for each in refused.value.errors()] == [said]


GIVEN: list[dict[str, Any]] = [
    {},
    {"lambda": 2.0, "edge": 4, "crop": {"from": 5}},
    {"out": 9, "names": ["b"], "crop": {"right": 0, "from": 2}},
]


@pytest.mark.parametrize("given", GIVEN)
def test_another_default_leaves_every_other_option_as_it_was(given: dict[str, Any]) -> None:
    """They keep the names that they are given by, and no validator sees what it has made."""
    then = Options.model_validate(given)
    today = Later.model_validate(given)
    laid = laid_over(plain_options(then), plain_options(today), given, today)
    assert set(laid) == {*given, "out"}
    again = Later.model_validate(laid, by_alias=True, by_name=True)
    assert plain_options(again) == {**plain_options(then), "newly": 3}


def test_defaults_of_options_with_aliases_come_back() -> None:
    class Other(Options):
        ratio: float = Field(default=5.0, alias="lambda")
        size: int = Field(default=9, validation_alias=AliasChoices("side", "edge"))
        crop: Crop = Crop.model_validate({"from": 3, "right": 9})

    then, today = Options(), Other()
    laid = laid_over(plain_options(then), plain_options(today), {}, today)
    again = Other.model_validate(laid, by_alias=True, by_name=True)
    assert plain_options(again) == plain_options(then)


def test_what_is_another_today_is_told() -> None:
    then = {"a": 1, "b": {"c": 2, "d": 3}, "e": [1], "gone": 0}
    today = {"a": 1, "b": {"c": 4, "new": 5}, "e": [2], "new": 6}
    assert list(unlike(then, today)) == [
        ("b.c: 2", "makes 4"),
        ("b.d: 3", "does not have"),
        ("e: [1]", "makes [2]"),
        ("gone: 0", "does not have"),
    ]
