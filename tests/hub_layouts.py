"""Writes small folders laid out as the hub's repositories are."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet


def parquet(path: Path, **columns) -> Path:
    """Writes one parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def readme(folder: Path, files: dict[str, dict[str, str]]) -> None:
    """Writes the card's header that names configurations: `{config: {split: files}}`."""
    configs = [
        {"config_name": config, "data_files": [{"split": s, "path": p} for s, p in splits.items()]}
        for config, splits in files.items()
    ]
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")


def glotcc(folder: Path, documents: list[str], files: int = 3, code: str = "yor-Latn") -> str:
    """GlotCC without configurations: one parquet file after another. Returns the source."""
    size = -(-len(documents) // files)
    for i in range(files):
        part = documents[i * size : (i + 1) * size]
        parquet(folder / f"v1.0/{code}/{code}_{i}.parquet", content=part, categories=["x"] * len(part))
    return f"glotcc:{folder}"


def fineweb2(folder: Path, train: list[str], test: list[str], code: str = "yor_Latn") -> str:
    """FineWeb-2 with configurations, and the removed documents beside."""
    parquet(folder / f"data/{code}/train/000_00000.parquet", text=train, id=[str(i) for i in range(len(train))])
    parquet(folder / f"data/{code}/test/000_00000.parquet", text=test, id=[str(i) for i in range(len(test))])
    parquet(folder / f"data/{code}_removed/train/000_00000.parquet", text=["removed"], id=["x"])
    splits = {split: f"data/{code}/{split}/*.parquet" for split in ("train", "test")}
    readme(folder, {code: splits, f"{code}_removed": {"train": f"data/{code}_removed/train/*.parquet"}})
    return f"fineweb2:{folder}"


def wikipedia(folder: Path, documents: list[str], code: str = "20231101.yo") -> str:
    """Wikipedia with its four columns."""
    columns = {name: ["x"] * len(documents) for name in ("id", "url", "title")}
    parquet(folder / code / "train-00000-of-00001.parquet", **columns, text=documents)
    return f"wikipedia:{folder}"


def flores(folder: Path, sentences: dict[str, list[str]]) -> str:
    """FLORES-200: one column per language, the same sentences in both splits but for a mark."""
    for split in ("dev", "devtest"):
        columns = {code: [f"{text} {split}" for text in texts] for code, texts in sentences.items()}
        parquet(folder / f"data/{split}-00000-of-00001.parquet", **columns)
    readme(folder, {"default": {split: f"data/{split}-*" for split in ("dev", "devtest")}})
    return f"flores:{folder}"


def flores_plus(folder: Path, sentences: dict[str, list[str]]) -> str:
    """FLORES+: one file per language and split, rows in any order with an id each."""
    for split in ("dev", "devtest"):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for code, texts in sentences.items():
            rows = [json.dumps({"id": i, "text": f"{text} {split}"}) for i, text in enumerate(texts)]
            order = rows if code.startswith("e") else rows[::-1]
            (folder / split / f"{code}.jsonl").write_text("\n".join(order) + "\n")
    return f"flores_plus:{folder}"


def sib200(folder: Path, rows: list[tuple[str, str]], code: str = "yor_Latn") -> str:
    """SIB-200: a file of tab-separated values per split, named in the card by language. Returns the folder."""
    for split in ("train", "validation", "test"):
        path = folder / f"data/{code}/{split}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{i}\t{topic}\t{text}" for i, (topic, text) in enumerate(rows)]
        path.write_text("\n".join(["index_id\tcategory\ttext", *lines]) + "\n")
    splits = ("train", "validation", "test")
    readme(folder, {x: {split: f"data/{x}/{split}.tsv" for split in splits} for x in (code, "ace_Arab")})
    return str(folder)


def questions(folder: Path, configs: dict[str, dict[str, list[dict]]]) -> str:
    """A set of questions: a parquet file per configuration and split, named in the card. Returns the folder."""
    files: dict[str, dict[str, str]] = {}
    for config, splits in configs.items():
        for split, rows in splits.items():
            path = f"{config}/{split}-00000-of-00001.parquet"
            parquet(folder / path, **{column: [row[column] for row in rows] for column in rows[0]})
            files.setdefault(config, {})[split] = path
    readme(folder, files)
    return str(folder)


def declaration(folder: Path, texts: dict[str, list[list[str]]]) -> str:
    """The declaration: a page per language, with the paragraphs of the preamble and of articles 1 to 30."""
    folder.mkdir(parents=True, exist_ok=True)
    for code, articles in texts.items():
        preamble, *rest = ["".join(f"<p>{text}</p>" for text in paragraphs) for paragraphs in articles]
        body = "".join(f'<article data-number="{i}"><h2>x</h2>{text}</article>' for i, text in enumerate(rest, 1))
        (folder / f"{code}.html").write_text(f"<header>{preamble}</header>{body}")
    return str(folder)
