"""What the hf-dataset source offers, and its options."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, model_validator

from janus_plugins.core.facts import SourceFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import CONTRACT_VERSION, ComponentConfig, ComponentSpec
from janus_plugins.core.suggest import nearest

COLUMN = re.compile(r"\{([^{}]+)\}")
"""A reference to a column inside a text: `Describe {name}.`"""

TEXT_KEYS = ("question", "answer", "prompt", "text")


class HfDatasetConfig(ComponentConfig):
    """Name a dataset and say which of its columns become what.

    `columns` maps what a sample needs to a text with column names in braces, or to a constant:

    - understanding: `{image: "{image}", question: "Describe the image.", answer: "{caption}"}`
    - generation: `{prompt: "{caption}", image: "{image}"}`
    - text: `{text: "{text}"}` or `{question: "{q}", answer: "{a}"}`
    - conversations: `{conversations: "{conversations}", image: "{image}"}`: a list of
      `{from, value}` or `{role, content}`; `<image>` in a turn's text marks where an item stands
    - interleaved: `{text: "{text}", image: "{images}"}`, `<image>` marking the places again

    The key of the items' column is the modality's name.
    """

    path: str = Field(description="hub id, local folder or file, or a builder: parquet, json, csv, ...")
    name: str | None = Field(default=None, description="configuration of a hub dataset")
    split: str = Field(default="train", description="split as `datasets` spells it, e.g. train[:90%]")
    data_files: str | list[str] | dict[str, str | list[str]] | None = None
    revision: str | None = Field(default=None, description="hub commit, tag or branch")
    streaming: bool = Field(default=False, description="read in order instead of by index")
    modality: str = Field(default="image", description="what the items are")
    columns: dict[str, str] = Field(description="what a sample needs -> column names in braces, or text")
    root: str | None = Field(default=None, description="folder that item paths in a column are relative to")

    @model_validator(mode="after")
    def _mapped(self) -> HfDatasetConfig:
        allowed = (*TEXT_KEYS, "conversations", self.modality)
        unknown = sorted(set(self.columns) - set(allowed))
        if unknown:
            advice = f"; if the items are {unknown[0]!r}, add modality: {unknown[0]}"
            advice = f".{nearest(unknown[0], allowed)}" if nearest(unknown[0], allowed) else advice
            raise ValueError(f"columns: {unknown[0]!r} is not one of {', '.join(allowed)}{advice}")
        for key in {"conversations", self.modality} & set(self.columns):
            if not COLUMN.fullmatch(self.columns[key]):
                raise ValueError(f'columns.{key} must be one column in braces, such as "{{{key}}}"')
        self.task  # noqa: B018  (raises where no task fits)
        return self

    @property
    def task(self) -> str:
        """Answer which task the mapped columns make."""
        keys = frozenset(self.columns)
        item = frozenset({self.modality})
        shapes: dict[frozenset[str], str] = {
            frozenset({"text"}): "text",
            frozenset({"question", "answer"}): "text",
            item | {"answer"}: "understanding",
            item | {"question", "answer"}: "understanding",
            item | {"prompt"}: "generation",
            item | {"text"}: "interleaved",
            frozenset({"conversations"}): "text",
            item | {"conversations"}: "understanding",
        }
        if keys not in shapes:
            known = "; ".join(" + ".join(sorted(shape)) for shape in shapes)
            raise ValueError(f"columns {sorted(keys)} make no task; these do: {known}")
        return shapes[keys]

    def facts(self) -> SourceFacts:
        """Answer which tasks and which path the samples serve.

        Interleaved documents may also count as understanding: the papers' ratios have three columns.
        """
        paths: dict[str, Any] = {}
        if self.modality in self.columns:
            path = "generation" if self.task == "generation" else "understanding"
            paths[path] = frozenset({self.modality})
        tasks = {self.task, "understanding"} if self.task == "interleaved" else {self.task}
        return SourceFacts(tasks=frozenset(tasks), **paths)


HF_DATASET = ComponentSpec(
    kind=Kind.SOURCE,
    name="hf-dataset",
    config=HfDatasetConfig,
    factory="janus_plugins.sources.hf_dataset.source:build",
    contract=CONTRACT_VERSION,
    summary="a hub dataset, Parquet, JSON lines, CSV, Arrow or a folder of images; streaming or not",
    requires=("datasets",),
)
