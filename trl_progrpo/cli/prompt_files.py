# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Files of prompts by the builders of `datasets`, with what they hold: texts stay the texts that stand there."""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.json
from datasets.builder import Key
from datasets.packaged_modules.csv.csv import CsvConfig
from datasets.packaged_modules.json.json import Json, JsonConfig
from datasets.packaged_modules.text.text import TextConfig


TEXT_COLUMNS = ("text",)
"""Columns that built-in rewards read as texts, whatever they look like; that of the prompts is one too."""

# Without leading zeros: 007 is a name, and of more than 18 digits none is sure to be kept.
_WHOLE = r"\s*-?(?:0|[1-9]\d{0,17})\s*"
_NUMBER = rf"{_WHOLE}|\s*-?(?:(?:0|[1-9]\d{{0,17}})?\.\d+|(?:0|[1-9]\d{{0,17}})\.?)(?:[eE][+-]?\d+)?\s*"
_TRUTH = r"True|TRUE|true|False|FALSE|false"
# As `datasets` has it for its first look.
_CHUNK = 10 << 20
_TEXT_FILES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".ndjson")
_MIXED = re.compile(r"Column\((.+?)\) changed from (\w+) to (\w+)")


def load_files(
    name: str,
    config: str | None,
    split: str,
    prompt_column: str,
    streaming: bool,
    data_dir: str | None,
    data_files: Any,
) -> datasets.Dataset | datasets.IterableDataset:
    """
    Return what [`~datasets.load_dataset`] does, with the content of files as it is.

    Byte-order marks are dropped. In a CSV file only an empty cell is a missing value; the columns of the prompts and
    [`TEXT_COLUMNS`] are texts, and others too unless every value is a plain number, or every one `True` or `False`. In JSON
    lines a column has the type that all its rows allow, dates are the texts that they are, and a column of texts and other
    values is one of texts. A local file is known by its content, and read anew if it has changed.

    Args:
        name, config, split, streaming, data_dir, data_files: as in [`~datasets.load_dataset`].
        prompt_column (`str`): where the prompts are.

    Raises:
        ValueError: as [`~datasets.load_dataset`]; if a file is not in UTF-8, or a row of a CSV file has more values than
            there are columns.
    """
    builder = datasets.load_dataset_builder(name, config, data_dir=data_dir, data_files=data_files)
    files = [str(file) for part in (builder.config.data_files or {}).values() for file in part]
    is_local = bool(files) and all(Path(file).is_file() for file in files)
    options: dict[str, Any] = {}
    if isinstance(builder.config, (TextConfig, CsvConfig)) and builder.config.encoding in (None, "utf-8"):
        options["encoding"] = "utf-8-sig"
    if isinstance(builder.config, CsvConfig):
        options |= {"keep_default_na": False, "na_values": [""]}
        if builder.config.sep == "," and all(Path(file).suffix.lower() == ".tsv" for file in files):
            options["sep"] = "\t"
    # And not packed.
    is_plain = is_local and all(Path(file).suffix.lower() in _TEXT_FILES for file in files)
    if is_plain and "utf-8" in options.get("encoding", getattr(builder.config, "encoding", "")):
        _check_encoding(files, to_the_end=not (streaming and isinstance(builder.config, TextConfig)))
    if is_local:
        # `datasets` itself looks at the date alone. What a description says goes into the name of its cache.
        options["description"] = _digest(files)
    if isinstance(builder.config, CsvConfig) and builder.config.features is None:
        texts = {prompt_column, *TEXT_COLUMNS}
        if is_plain:
            options["features"] = _csv_features(files, options.get("sep", builder.config.sep), texts)
        else:
            # What is packed or far away is not read twice.
            options["converters"] = dict.fromkeys(sorted(texts), str)
    features = _json_features(files) if is_plain and isinstance(builder.config, JsonConfig) else None
    if features is not None:
        builder = _JsonTexts(data_files=builder.config.data_files, features=features, hash=options["description"])
    elif options:
        builder = datasets.load_dataset_builder(name, config, data_dir=data_dir, data_files=data_files, **options)
    if streaming:
        return builder.as_streaming_dataset(split=split)
    builder.download_and_prepare()
    return builder.as_dataset(split=split)


def _check_encoding(files: Sequence[str], to_the_end: bool) -> None:
    """Some readers take whatever bytes there are, and fail when a text is looked at."""
    for file in files:
        name, decoder, lines = Path(file).name, codecs.getincrementaldecoder("utf-8")(), 1
        with open(file, "rb") as opened:
            while block := opened.read(_CHUNK if to_the_end else 4096):
                # Of texts, none but those in other encodings hold it.
                if b"\0" in block:
                    raise ValueError(f"{name} holds zero bytes in line {lines}, as UTF-16 does; save it as UTF-8")
                try:
                    decoder.decode(block)
                except UnicodeDecodeError as error:
                    lines += block[: error.start].count(b"\n")
                    byte = error.object[error.start]
                    raise ValueError(
                        f"'utf-8' codec can't decode byte {byte:#x} in line {lines} of {name}; save it as UTF-8"
                    ) from error
                lines += block.count(b"\n")
                if not to_the_end:
                    break


def _digest(files: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _csv_features(files: Sequence[str], separator: str, texts: set[str]) -> datasets.Features | None:
    """Types of the columns by all their values; `None` if that cannot be said: reading says why, then."""
    kinds: dict[str, dict[str, bool]] = {}
    surplus = False
    options = {"dtype": str, "keep_default_na": False, "na_values": [""], "encoding": "utf-8-sig", "chunksize": 10_000}
    try:
        for file in files:
            for page in pd.read_csv(file, sep=separator, **options):
                if not isinstance(page.index, pd.RangeIndex):
                    # pandas takes the first ones for names of the rows.
                    surplus = True
                    break
                for name in page.columns:
                    values = page[name].dropna()
                    kind = kinds.setdefault(
                        name, {"whole": True, "number": True, "truth": True, "full": True, "any": False}
                    )
                    kind["any"] |= len(values) > 0
                    kind["full"] &= len(values) == len(page)
                    for which, pattern in (("whole", _WHOLE), ("number", _NUMBER), ("truth", _TRUTH)):
                        kind[which] = kind[which] and bool(values.str.fullmatch(pattern).all())
    # pandas raises it for whatever is wrong with a file.
    except ValueError:
        return None
    if surplus:
        raise ValueError(
            f"rows of {Path(file).name} have more values than there are columns; put values that have a comma in double quotes"
        )

    def value(name: str, kind: Mapping[str, bool]) -> datasets.Value:
        if name in texts or not kind["any"]:
            return datasets.Value("string")
        if kind["number"]:
            # Of pandas' whole numbers none may be missing.
            return datasets.Value("int64" if kind["whole"] and kind["full"] else "float64")
        return datasets.Value("bool" if kind["truth"] and kind["full"] else "string")

    return datasets.Features({name: value(name, kind) for name, kind in kinds.items()}) or None


def _json_features(files: Sequence[str]) -> datasets.Features | None:
    """
    Types of the columns of files that `datasets` would read otherwise than they are, or not at all: it takes types from the
    first ten megabytes, texts that look like dates for dates, and texts beside other values for JSON. `None` for all others.
    """
    if any(_has_mark(file) for file in files[1:]):
        # Only that of the first one is dropped.
        return _row_features(files)
    first = schema = None
    try:
        for file in files:
            for batch in _batches(file):
                table = pyarrow.json.read_json(io.BytesIO(batch), pyarrow.json.ReadOptions(block_size=len(batch) + 1))
                first = first or table.schema
                schema = pa.unify_schemas([schema or first, table.schema], promote_options="permissive")
        if schema is None or (schema.equals(first) and not any(_has_dates(field.type) for field in schema)):
            return None
    except pa.ArrowTypeError:
        # Types of two batches that no third holds.
        pass
    except (pa.ArrowException, ValueError) as error:
        mixed = _MIXED.search(str(error))
        if mixed is None or mixed[1].count("/") > 1 or "string" not in mixed.groups():
            return None
    return _row_features(files)


def _batches(file: str) -> Iterator[bytes]:
    """Pieces of whole lines; of a list of objects, an object a line."""
    with open(file, "rb") as opened:
        opened.seek(len(codecs.BOM_UTF8) if _has_mark(file) else 0)
        while batch := opened.read(_CHUNK):
            if batch.startswith(b"["):
                batch += opened.read()
                yield "\n".join(json.dumps(row) for row in json.loads(batch) if isinstance(row, dict)).encode()
            else:
                yield batch + opened.readline()


def _has_mark(file: str) -> bool:
    with open(file, "rb") as opened:
        return opened.read(3) == codecs.BOM_UTF8


def _has_dates(kind: pa.DataType) -> bool:
    return pa.types.is_timestamp(kind) or any(_has_dates(kind.field(i).type) for i in range(kind.num_fields))


def _rows(file: str) -> Iterator[dict[str, Any]]:
    with open(file, encoding="utf-8-sig") as opened:
        start = opened.read(1)
        opened.seek(0)
        rows = json.load(opened) if start == "[" else (json.loads(line) for line in opened if line.strip())
        for row in rows:
            yield row if isinstance(row, dict) else {"text": row}


def _row_features(files: Sequence[str]) -> datasets.Features | None:
    kinds: dict[str, set[type]] = {}
    nested: dict[str, pa.DataType] = {}
    try:
        for file in files:
            for row in _rows(file):
                for name, value in row.items():
                    found = kinds.setdefault(name, set())
                    if value is None:
                        continue
                    found.add(type(value))
                    if isinstance(value, (list, dict)):
                        nested[name] = _promoted(nested.get(name, pa.null()), value)
    except ValueError:
        return None
    features = {}
    for name, found in kinds.items():
        if not found or str in found:
            features[name] = datasets.Value("string")
        elif found <= {int, float}:
            features[name] = datasets.Value("float64" if float in found else "int64")
        elif found == {bool}:
            features[name] = datasets.Value("bool")
        elif len(found) == 1 and nested.get(name) is not None:
            features[name] = datasets.Features.from_arrow_schema(pa.schema({name: nested[name]}))[name]
        else:
            features[name] = datasets.Json()
    return datasets.Features(features)


def _promoted(kind: pa.DataType | None, value: Any) -> pa.DataType | None:
    """The type of `value` and of all that had `kind`; `None` if there is none."""
    if kind is None:
        return None
    try:
        fields = [pa.schema({"value": kind}), pa.schema({"value": pa.scalar(value).type})]
        return pa.unify_schemas(fields, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None


class _JsonTexts(Json):
    """JSON lines read by Python, which leaves texts alone."""

    def _generate_tables(self, base_files, files_iterables, original_files, allow_full_read=True):
        names = list(self.info.features)
        texts = {name for name, feature in self.info.features.items() if feature == datasets.Value("string")}
        for shard, files in enumerate(files_iterables):
            index, page = 0, []
            for file in files:
                for row in _rows(file):
                    page.append({name: _as_text(row.get(name)) if name in texts else row.get(name) for name in names})
                    if len(page) == 10_000:
                        yield Key(shard, index), self._table(page)
                        index, page = index + 1, []
            if page:
                yield Key(shard, index), self._table(page)

    def _table(self, page: list[dict[str, Any]]) -> pa.Table:
        encoded = [self.info.features.encode_example(row) for row in page]
        return pa.Table.from_pylist(encoded, schema=self.info.features.arrow_schema)


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
