"""Where tokens come from: a file, a prompt, a seed; and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from fp8convert.errors import FormatError, Fp8ConvertError, UsageError
from fp8convert.parity import tokens
from fp8convert.parity.tokens import Wanted


def write(folder: Path, found: Any) -> str:
    path = folder / "ids.json"
    path.write_text(found if isinstance(found, str) else json.dumps(found))
    return str(path)


@pytest.mark.parametrize(
    ("found", "ids"),
    [([1, 2, 0], [[1, 2, 0]]), ([[1, 2], [3, 95]], [[1, 2], [3, 95]]), ([[7]], [[7]])],
)
def test_a_file_has_one_list_or_several(found: Any, ids: Any, tmp_path: Path) -> None:
    made = Wanted(file=write(tmp_path, found)).tokens("", 96)
    assert made.ids.tolist() == ids
    assert made.ids.dtype == torch.int64
    assert made.to_dict() == {
        "batch": len(ids),
        "length": len(ids[0]),
        "source": f"file '{tmp_path}/ids.json'",
    }


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("{}", "holds '{}', expected a list of token ids"),
        ("[]", r"holds '\[\]', expected a list"),
        ("[1, 2", "not valid JSON at byte 5"),
        ([1, True], "position 1 is 'True', expected a token id"),
        ([1.0], "position 0 is '1.0', expected a token id"),
        ([2**63], "position 0 is '9223372036854775808', expected a token id"),
        (["a"], "position 0 is 'a', expected a token id"),
        ([1, [2]], r"position 1 is '\[2\]', expected a token id"),
        ([[1], 2], "list 1 is '2', expected a list of token ids"),
        ([[1], []], r"list 1 is '\[\]', expected a list of token ids"),
        ([[1, 2], [1, 2], [1]], "list 2 has 1 ids, list 0 has 2: expected equally many"),
        ([1, 96], r"token 96 \(sequence 0, position 1\) is out of range: vocab_size is 96"),
        ([[1, 2], [-1, 2]], r"token -1 \(sequence 1, position 0\) is out of range"),
    ],
)
def test_other_files_are_refused(found: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(Fp8ConvertError, match=message):
        Wanted(file=write(tmp_path, found)).tokens("", 96)


def test_a_prompt_is_split_by_the_checkpoints_own_tokenizer(tiny_bf16: Path) -> None:
    made = Wanted(prompt="Hello, wörld").tokens(str(tiny_bf16), 1024)
    expected = Tokenizer.from_file(str(tiny_bf16 / "tokenizer.json")).encode("Hello, wörld").ids
    assert made.ids.tolist() == [expected]
    assert made.source == "prompt 'Hello, wörld'"


def test_of_ranks_in_folders_the_first_has_the_tokenizer(tiny_bf16: Path, tmp_path: Path) -> None:
    (tmp_path / "rank0").mkdir()
    shutil.copy(tiny_bf16 / "tokenizer.json", tmp_path / "rank0")
    assert tokens.from_prompt(str(tmp_path), "a").ids.shape[0] == 1


def test_without_a_tokenizer_a_prompt_is_refused(
    tiny_bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FormatError, match=r"has no tokenizer.json, which a prompt needs"):
        tokens.from_prompt(str(tmp_path), "a")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FormatError, match=r"tokenizer.json': the tokenizers library says"):
        tokens.from_prompt(str(tmp_path), "a")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r"pip install 'fp8convert\[prompt\]'"):
        tokens.from_prompt(str(tiny_bf16), "a")


def test_a_prompt_without_tokens_or_beyond_the_vocabulary_is_refused(
    tiny_bf16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"token [0-9]+ .* out of range: vocab_size is 1"):
        Wanted(prompt="abc").tokens(str(tiny_bf16), 1)

    class Empty:
        ids = ()

    quiet = dict.fromkeys(("no_padding", "no_truncation"), lambda self: None)
    monkeypatch.setattr(
        "tokenizers.Tokenizer.from_buffer",
        lambda data: type("T", (), {**quiet, "encode": lambda self, text: Empty})(),
    )
    with pytest.raises(UsageError, match="the prompt has no tokens"):
        tokens.from_prompt(str(tiny_bf16), "")


def test_a_seed_gives_the_same_ids_of_the_whole_vocabulary() -> None:
    made = Wanted(seed=3, length=400, batch=2).tokens("", 96)
    assert made.ids.shape == (2, 400)
    assert set(made.ids.flatten().tolist()) == set(range(96))
    assert torch.equal(made.ids, Wanted(seed=3, length=400, batch=2).tokens("", 96).ids)
    assert not torch.equal(made.ids, Wanted(seed=4, length=400, batch=2).tokens("", 96).ids)
    assert Wanted(seed=3, length=5).tokens("", 96).ids.shape == (1, 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "0 sources of tokens, expected one"),
        ({"file": "a", "seed": 1, "length": 2}, "2 sources of tokens, expected one"),
        ({"prompt": "a", "length": 2}, "length and batch are for tokens by a seed"),
        ({"file": "a", "batch": 2}, "length and batch are for tokens by a seed"),
        ({"seed": 1}, "tokens by a seed need a length"),
    ],
)
def test_one_source_is_given(given: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Wanted(**given)
