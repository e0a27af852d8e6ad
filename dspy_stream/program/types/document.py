"""Document and Citations: sources that an answer may quote, and what it quoted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from dspy_stream.program.types.base import Blocks, Type

__all__ = ["Citations", "Document"]


class Document(Type):
    """A text that an answer may cite, with a title.

    A model that is known to cite natively is sent it as a ``document`` block of its own; any other
    reads it as text. For a PDF, ``data`` is its base64.

    >>> Document("The Earth orbits the Sun.", title="Astronomy").format()[0]["source"]["data"]
    'The Earth orbits the Sun.'
    """

    model_config = ConfigDict(frozen=True, defer_build=True, extra="forbid")

    data: str
    title: str | None = None
    media_type: Literal["text/plain", "application/pdf"] = "text/plain"
    context: str | None = None

    def __init__(self, data: Any = None, /, **fields: Any) -> None:
        super().__init__(**(fields if data is None else {**fields, "data": data}))

    @classmethod
    def description(cls) -> str:
        """What it is, in words."""
        return "a document"

    def format(self) -> Blocks:
        """One ``document`` block with citations, as models that cite natively take it."""
        source = {"type": "text" if self.media_type == "text/plain" else "base64"}
        source |= {"media_type": self.media_type, "data": self.data}
        block: dict[str, Any] = {"type": "document", "source": source, "citations": {"enabled": True}}
        more = {"title": self.title, "context": self.context}
        return [block | {name: value for name, value in more.items() if value is not None}]

    @classmethod
    def _coerce(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"data": value}
        if isinstance(value, Mapping) and value.get("type") == "document":
            return cls._of_block(value)
        return value

    @classmethod
    def _of_block(cls, block: Mapping[str, Any]) -> Any:
        source = block.get("source")
        held = {name: block[name] for name in ("title", "context") if name in block}
        return {**held, **{k: v for k, v in dict(source or {}).items() if k in ("media_type", "data")}}

    def __repr__(self) -> str:
        return f"Document({f'{self.title!r}, ' if self.title else ''}{len(self.data)} characters)"

    __str__ = __repr__


class Citation(BaseModel):
    """One passage that an answer quotes: the quoted text, and where it stands.

    Indexes count documents from zero, in the order they were given, and characters of the document,
    the end excluded; they are None where the provider did not say.
    """

    model_config = ConfigDict(
        frozen=True, defer_build=True, extra="ignore",
        json_schema_extra=lambda schema: schema.pop("description", None),  # it is not for models
    )  # fmt: skip

    cited_text: str
    document_index: int | None = None
    document_title: str | None = None
    start_char_index: int | None = None
    end_char_index: int | None = None
    supported_text: str | None = None
    type: str = "char_location"

    @model_validator(mode="before")
    @classmethod
    def _from_data(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"cited_text": value}
        if isinstance(value, Mapping) and "cited_text" not in value and "text" in value:
            return {**value, "cited_text": value["text"]}
        return value

    def format(self) -> dict[str, Any]:
        """What is known of it."""
        return self.model_dump(exclude_none=True)


_Citation: TypeAlias = Citation


class Citations(Type):
    """What an answer quotes: a sequence of ``Citation``.

    From a model that is known to cite natively it is read from what comes beside the answer's text;
    any other is asked for it as JSON.

    >>> made = Citations.from_dict_list([{"cited_text": "orbits the Sun", "document_index": 0}])
    >>> len(made), made[0].cited_text
    (1, 'orbits the Sun')
    """

    model_config = ConfigDict(frozen=True, defer_build=True, extra="forbid")

    Citation: ClassVar[type[BaseModel]] = Citation

    citations: list[_Citation] = Field(default_factory=list)

    @classmethod
    def from_dict_list(cls, citations_dicts: Iterable[Mapping[str, Any]]) -> Self:
        """Citations as a provider sent them."""
        return cls(citations=[_Citation.model_validate(each) for each in citations_dicts])

    @classmethod
    def description(cls) -> str:
        """What it is, in words."""
        return "the passages you rely on, quoted word for word, with the number of their document from 0"

    def format(self) -> str:
        """The citations as JSON."""
        return self.model_dump_json(exclude_none=True)

    @classmethod
    def _coerce(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return {"citations": list(value)}
        if isinstance(value, Mapping) and "citations" not in value and value.keys() & {"cited_text", "text"}:
            return {"citations": [value]}
        return value

    def __iter__(self) -> Iterator[_Citation]:  # type: ignore[override]
        return iter(self.citations)

    def __len__(self) -> int:
        return len(self.citations)

    def __getitem__(self, place: int) -> _Citation:
        return self.citations[place]
