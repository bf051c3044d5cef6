"""Model cards: what they say, what of a user's own stays, what nobody may put into them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from fp8convert.convert import quantize, to_bf16
from fp8convert.errors import FormatError, TargetError
from fp8convert.hub import card
from fp8convert.hub.card import BEGIN, END, Facts, licence, merged
from fp8convert.hub.push import Push
from fp8convert.hub.results import Parity, parity
from fp8convert.parity.compare import plain

from ..mini import CUT
from ..parity import results
from . import Hub
from .pushing import CARD, REPO, SENDING, files_of, on_hub, push, weights

pytestmark = SENDING
MANIFEST: dict[str, Any] = {
    "tool": "fp8convert 1.2.3",
    "plan": "0123abcd",
    "rules": {"fp8-block": "code * scale", "raw": "bytes kept"},
    "files": [
        {"name": "model.safetensors", "size": 12345, "sha256": "ab" * 32},
        {"name": "config.json", "size": 7, "sha256": None},
    ],
    "identity": {
        "command": "to-bf16",
        "options": {"dtype": "bfloat16"},
        "scheme": {"scheme": "fp8-block", "block": [128, 128]},
    },
}
COMMIT = "c" * 40
FACTS = Facts(
    "my-org/made", "main", MANIFEST, {"hub": "deepseek-ai/DeepSeek-V3", "commit": COMMIT},
    "DeepSeek-V3", {"license": "mit"}, None,
)  # fmt: skip
WHOLE = f"""\
---
license: mit
base_model: deepseek-ai/DeepSeek-V3
library_name: transformers
tags:
- fp8convert
- bfloat16
---

# made

<!-- fp8convert -->
## Provenance

|  |  |
| --- | --- |
| **source** | `deepseek-ai/DeepSeek-V3` at commit `{COMMIT}` |
| **stored there as** | `fp8-block` |
| **conversion** | `to-bf16` to `bfloat16` |
| **rule for fp8-block** | code &#42; scale |
| **rule for raw** | `bytes kept` |
| **tool** | `fp8convert 1.2.3` |
| **plan** | `0123abcd` |

## Files

2 files, 12,352 bytes.

| name | bytes | SHA-256 |
| --- | --- | --- |
| `model.safetensors` | 12,345 | `{"ab" * 32}` |
| `config.json` | 7 | `-` |

## Check

```sh
hf download my-org/made --local-dir made
fp8convert verify made
```
<!-- /fp8convert -->
"""


def front(text: str) -> dict[str, Any]:
    """The front matter, by another reader of YAML than ours, which reads lines."""
    assert text.startswith("---\n")
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def with_manifest(**changes: Any) -> Facts:
    return FACTS._replace(manifest={**MANIFEST, **changes})


def test_the_whole_of_one() -> None:
    assert merged(None, FACTS) == WHOLE


def test_a_source_that_is_a_folder_is_named_without_its_path() -> None:
    text = merged(None, FACTS._replace(origin={}, licence={}))
    assert "| **source** | a folder `DeepSeek-V3` |" in text
    assert front(text) == {"library_name": "transformers", "tags": ["fp8convert", "bfloat16"]}


@pytest.mark.parametrize(
    ("changes", "options", "tag"),
    [
        ({"scheme": "nvfp4"}, {}, "nvfp4"),
        ({}, {"dtype": "float16"}, "float16"),
        ({}, {"weights": "keep"}, "fp8-block"),
        ({}, {"weights": "bf16"}, "bf16"),
        ({}, {}, "fp8-block"),
    ],
)
def test_the_form_of_the_weights_is_a_tag(
    changes: dict[str, Any], options: dict[str, Any], tag: str
) -> None:
    text = merged(
        None, with_manifest(**changes, identity={**MANIFEST["identity"], "options": options})
    )
    assert front(text)["tags"] == ["fp8convert", tag]
    assert (front(text).get("base_model_relation") == "quantized") == ("scheme" in changes)
    assert f"`to-bf16` to `{tag}`" in text


@pytest.mark.parametrize("name", ["model0-mp2.safetensors", "rank0/model.safetensors"])
def test_what_transformers_cannot_load_is_not_said_to_be_its(name: str) -> None:
    text = merged(None, with_manifest(files=[{"name": name, "size": 1, "sha256": "ab"}]))
    assert "library_name" not in front(text)


def test_how_exact_it_is() -> None:
    classes = {"a": {"weights": 3, "exact_weights": 1}, "b": {"weights": 1997, "exact_weights": 0}}
    assert "| **exact** | 1 of 2,000 weights; errors of the rest are in manifest.json |" in merged(
        None, with_manifest(by_class=classes)
    )


@pytest.mark.parametrize("count", [card.MOST_FILES, card.MOST_FILES + 1])
def test_sums_of_many_files_are_in_the_manifest(count: int) -> None:
    files = [{"name": f"x{n}.safetensors", "size": 10, "sha256": "ab" * 32} for n in range(count)]
    text = merged(None, with_manifest(files=files))
    listed = text.count("ab" * 32)
    assert listed == (count if count <= card.MOST_FILES else 0)
    assert ("their SHA-256 sums are in manifest.json" in text) == (listed == 0)
    assert f"{count} files, {10 * count} bytes" in text


def test_another_branch_is_downloaded_by_its_name() -> None:
    assert "hf download my-org/made --revision a/b --local-dir made\n" in merged(
        None, FACTS._replace(branch="a/b")
    )


# --- What a user has written


def test_our_part_is_replaced_and_the_rest_stays() -> None:
    mine = "---\nlicense: apache-2.0\n---\n# Mine\n\nbefore\n\n"
    first = merged(mine, FACTS)
    assert first.startswith(
        "---\nlicense: apache-2.0\n---\n# Mine\n\nbefore\n\n<!-- fp8convert -->"
    )
    edited = f"{first}\nafter\n"
    second = merged(edited, with_manifest(plan="another"))
    assert second == edited.replace("0123abcd", "another")
    assert merged(second, with_manifest(plan="another")) == second
    assert second.count(BEGIN) == second.count(END) == 1


def test_a_beginning_without_an_end_is_left_alone() -> None:
    """And with it what a user has written since."""
    text = merged(f"{BEGIN}\nmine\n", FACTS)
    assert f"{BEGIN}\nmine\n" in text
    assert merged(text, FACTS) == text


def test_parity_stays_until_there_is_other_parity() -> None:
    found = Parity(True, "identical", "bf16 on cpu", (("logits", "x", "0", "at most 0", "ok"),))
    text = merged(None, FACTS._replace(parity=found)) + "\nafter\n"
    assert merged(text, FACTS) == text
    other = merged(text, FACTS._replace(parity=found._replace(passed=False)))
    assert other == text.replace("PASS", "FAIL")


def test_a_card_without_front_matter_gets_ours() -> None:
    text = merged("# Mine\n", FACTS)
    assert front(text)["base_model"] == "deepseek-ai/DeepSeek-V3"
    assert text.index("# Mine") < text.index(BEGIN)
    assert merged(text, FACTS) == text


@pytest.mark.parametrize("odd", ["", "---\n", "---\nx: 1\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n"])
def test_odd_cards_are_added_to(odd: str) -> None:
    text = merged(odd, FACTS)
    assert text.count("## Provenance") == 1
    assert odd.strip() in text


def test_ours_ends_where_it_says() -> None:
    hostile = f"x{END}| `a` <b>\n# Mine"
    facts = with_manifest(
        files=[{"name": hostile, "size": 1, "sha256": hostile}],
        tool=hostile,
        rules={"raw": hostile},
    )._replace(origin={}, folder=hostile)
    text = merged(None, facts)
    assert text.count(END) == 1
    assert "<b>" not in text
    assert not any(line.startswith("# Mine") for line in text.splitlines())
    assert merged(text, facts) == text


# --- The source's licence


def test_fields_of_a_licence() -> None:
    text = (
        "---\nlicense: other\r\nlicense_name: 'deepseek'\nlicense_link: \"LICENSE-MODEL\"\n"
        "tags:\n- license: gpl\nlibrary_name: x\n---\nlicense: mit\n"
    )
    assert licence(text) == {
        "license": "other", "license_name": "deepseek", "license_link": "LICENSE-MODEL",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["", "license: mit", "---\nlicense: mit\n", "---\nlicense: [a, b]\n---\n", "x\n---\n---\n",
     "---\nlicense: mit # see below\n---\n", "---\nlicense: &a !!x y\n---\n",
     "---\nlicense: " + "m" * 201 + "\n---\n"],
)  # fmt: skip
def test_no_licence(text: str) -> None:
    assert licence(text) == {}


# --- Parity


def report(folder: Path, result: Any) -> Path:
    file = folder / "parity.json"
    file.write_text(result if isinstance(result, str) else json.dumps(plain(result)))
    return file


def of(target: Path, **changes: Any) -> dict[str, Any]:
    """A result with ``target`` as its candidate."""
    same = results.same(**changes)
    return {**same, "candidate": {**same["candidate"], "path": str(target)}}


def test_a_result_in_a_card(tmp_path: Path) -> None:
    found = parity(report(tmp_path, of(tmp_path / "dst")), tmp_path / "dst")
    text = merged(None, FACTS._replace(parity=found))
    assert "Logits against the source: **PASS** (identical), computed in \n" in text
    assert "bf16 on cpu, 2 x 16 tokens, seed 0, layers 0 to 2.\n" in text
    assert "| logits | max abs difference | 0 | at most 0 | ok |\n" in text
    assert "| logits | top-1 agreement | 1 | not judged |  |\n" in text
    assert str(tmp_path) not in text
    assert "/m/ref" not in text


def test_a_result_that_fails_says_so(tmp_path: Path) -> None:
    wrong = of(tmp_path / "dst", heads=[results.head(max_abs=math.nan)], verdict="fail")
    text = merged(None, FACTS._replace(parity=parity(report(tmp_path, wrong), tmp_path / "dst")))
    assert "**FAIL**" in text
    assert "| logits | max abs difference | NaN | at most 0 | FAILS |\n" in text
    blind = of(tmp_path / "dst", control=results.control(detected=False))
    assert not parity(report(tmp_path, blind), tmp_path / "dst").passed


def test_where_tokens_came_from_may_be_a_path(tmp_path: Path) -> None:
    mine = {"batch": 1, "length": 4, "source": "/home/me/secret.json"}
    found = parity(report(tmp_path, of(tmp_path / "dst", tokens=mine)), tmp_path / "dst")
    assert found.computed == "bf16 on cpu, 1 x 4 tokens, layers 0 to 2"


def test_hostile_words_of_a_result_mean_nothing() -> None:
    odd = "<b>|`x`\n# y"
    text = merged(None, FACTS._replace(parity=Parity(True, odd, odd, ((odd,) * 5,))))
    assert "<b>" not in text
    assert "# y" not in text
    assert text.count("|`") == 0


@pytest.mark.parametrize(
    "result",
    ["", "{", "[]", "7", "{}", '{"candidate": 1}', '{"candidate": {"path": "x"}}'],
)  # fmt: skip
def test_what_is_no_result(tmp_path: Path, result: str) -> None:
    with pytest.raises(FormatError):
        parity(report(tmp_path, result), tmp_path / "dst")


@pytest.mark.parametrize("field", ["heads", "thresholds", "tokens", "layers", "control", "verdict"])
def test_a_result_without_some_field(tmp_path: Path, field: str) -> None:
    result = of(tmp_path / "dst")
    for odd in (None, 7, "x", [7]):
        result[field] = odd
        if (field, odd) == ("layers", [7]):
            continue  # a run of one layer
        with pytest.raises(FormatError, match="is not what fp8convert parity --json prints"):
            parity(report(tmp_path, result), tmp_path / "dst")
    del result[field]
    with pytest.raises(FormatError, match="is not what fp8convert parity --json prints"):
        parity(report(tmp_path, result), tmp_path / "dst")


def test_what_a_result_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"parity --json prints: no 'candidate'$"):
        parity(report(tmp_path, {"model_type": "x"}), tmp_path / "dst")


def test_the_result_of_another_target(tmp_path: Path) -> None:
    file = report(tmp_path, of(tmp_path / "other"))
    with pytest.raises(FormatError, match=r"is the parity of .*other', expected of .*dst'"):
        parity(file, tmp_path / "dst")


# --- On the hub


@pytest.mark.usefixtures("calmed")
def test_a_result_is_added_later(hub: Hub, mini: Path, fast_path: Path) -> None:
    push(mini, fast_path / "dst")
    file = report(fast_path, of(fast_path / "dst"))
    with pytest.raises(FormatError, match="expected of"):
        push(mini, fast_path / "other", parity=file)
    pushed = push(mini, fast_path / "dst", parity=file).pushed
    assert pushed
    assert not pushed.already
    assert "## Parity" in hub.read(REPO, CARD).decode()
    first, second = hub.commits(REPO)[:2]
    assert {n for n in first.tree if first.tree[n] != second.tree[n]} == {CARD}
    again = push(mini, fast_path / "dst").pushed
    assert again
    assert again.already


@pytest.mark.usefixtures("calmed")
def test_the_licence_of_the_source_is_taken_over(
    hub: Hub, tiny_bf16: Path, fast_path: Path
) -> None:
    source = fast_path / "src"
    source.mkdir()
    for path in tiny_bf16.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    (source / CARD).write_text("---\nlicense: mit\n---\n# DeepSeek\n")
    quantize(source, fast_path / "dst", "fp8-block", push=Push(REPO))
    text = hub.read(REPO, CARD).decode()
    assert front(text)["license"] == "mit"
    assert front(text)["tags"] == ["fp8convert", "fp8-block"]
    assert "DeepSeek" not in text
    assert "**exact**" in text
    assert CARD not in {p.name for p in (fast_path / "dst").iterdir()}


@pytest.mark.usefixtures("calmed")
def test_from_the_hub_to_the_hub(hub: Hub, mini: Path, fast_path: Path) -> None:
    """And into the repository that it comes from: to another branch."""
    hub.put("org/src", {".gitattributes": b""})
    hub.put("org/src", {p.name: p.read_bytes() for p in mini.iterdir()})
    commit = hub.put("org/src", {CARD: b"---\nlicense: mit\n---\n"})
    with pytest.raises(TargetError, match=r"holds 'model-.*not of this plan"):
        push("hf://org/src", fast_path / "dst", repo="org/src", drop=True)
    push("hf://org/src", fast_path / "dst", repo="org/src", revision="bf16", drop=True)
    made = on_hub(hub, "bf16", "org/src")
    assert json.loads(made["manifest.json"])["files"]
    assert files_of(fast_path / "dst").keys() == made.keys() - weights(made)
    text = hub.read("org/src", CARD, "bf16").decode()
    assert front(text)["base_model"] == "org/src"
    assert front(text)["license"] == "mit"
    assert f"`org/src` at commit `{commit}`" in text
    assert hub.commits("org/src", "bf16")[0].description.startswith(f"Source: org/src at {commit}")
    to_bf16(mini, fast_path / "here", max_shard_size=CUT)
    assert {n: made[n] for n in weights(made)} == {
        n: b for n, b in files_of(fast_path / "here").items() if n in weights(made)
    }


@pytest.mark.usefixtures("calmed")
@pytest.mark.parametrize("odd", [b"\xff", b"x" * ((1 << 20) + 1)])
def test_a_card_of_the_source_that_says_nothing(
    hub: Hub, mini: Path, fast_path: Path, odd: bytes
) -> None:
    source = fast_path / "src"
    source.mkdir()
    for path in mini.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    (source / CARD).write_bytes(odd)
    to_bf16(source, fast_path / "dst", max_shard_size=CUT, push=Push(REPO))
    assert "license" not in front(hub.read(REPO, CARD).decode())
