"""What a model's outputs depend on, as a digest: weights, configurations, tokenizer, chat template, code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlaif.errors import UserError
from rlaif.io import digest, read_json, sha256_file, write_json
from rlaif.models.files.headers import INDEX
from rlaif.models.files.source import pinned

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


# Further tokenizers' files, by what their names have in common, and templates beside the default one.
_MORE_FILES = (
    "*.model",
    "*.tiktoken",
    "vocab*",
    "merges*",
    "bpe*",
    "tekken.json",
    "additional_chat_templates/*.jinja",
)


def text_files(folder: Path) -> list[Path]:
    """The files of a model folder that decide how text becomes tokens and where a response ends."""
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    more = sorted(file for pattern in _MORE_FILES for file in folder.glob(pattern) if file.is_file())
    return list(dict.fromkeys([*files, *more]))


def _code_files(folder: Path) -> list[Path]:
    """The Python code of a model folder whose configuration says that it is the model's or the tokenizer's."""
    stated = [folder / "config.json", folder / "tokenizer_config.json"]
    used = any(file.is_file() and '"auto_map"' in file.read_text(encoding="utf-8") for file in stated)
    return sorted(folder.rglob("*.py")) if used else []


def hashed(path: Path, cache_dir: Path) -> str:
    """sha256 of a large file, cached by its path, size and times.

    These include the inode's change time: unlike the modification time, no copying tool sets it back, so that other
    weights of the same size and age are noticed.
    """
    stat = path.stat()
    marks = [str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    note = cache_dir / "hashes" / f"{digest(marks, 24)}.json"
    if not note.exists():
        write_json(note, {"sha256": sha256_file(path)})
    return str(read_json(note)["sha256"])


def describe_pretrained(
    key: str, name: str, revision: str | None, cache_dir: Path, *, trust_remote_code: bool = False
) -> dict[str, Any]:
    """The weights, text files and code that the directory or hub id `name` stands for.

    Raises UserError, which names `key`, if there are none. A hub id's commit stands for its files.
    """
    directory = Path(name)
    if not directory.is_dir():
        return {"source": "hub", "name": name, "weights": pinned(key, name, revision) or "main"}
    config, weights = directory / "config.json", sorted(directory.glob("*.safetensors"))
    if not config.is_file() or not weights:
        raise UserError(f"{key}={name}: this directory lacks config.json or *.safetensors")
    index = [directory / INDEX] if (directory / INDEX).is_file() else []
    code = _code_files(directory) if trust_remote_code else []
    return {
        "source": "local",
        "name": directory.resolve().name,
        "weights": digest([hashed(f, cache_dir) for f in (*weights, config, *index)], 16),
        "text": digest([[f.name, sha256_file(f)] for f in text_files(directory)], 16),
        **(
            {"code": digest([[str(f.relative_to(directory)), sha256_file(f)] for f in code], 16)}
            if code
            else {}
        ),
    }
