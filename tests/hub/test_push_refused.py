"""Uploads that are refused before any work: no access, the weights of others, odd options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fp8convert.convert import to_bf16
from fp8convert.errors import FormatError, Fp8ConvertError, TargetError, UsageError
from fp8convert.hub.push import Push

from ..crash import state_of
from ..mini import CUT
from . import Hub
from .pushing import (
    CARD,
    REPO,
    SENDING,
    TOKEN,
    check_visible,
    commits,
    files_of,
    on_hub,
    push,
    sent,
)

pytestmark = [SENDING, pytest.mark.usefixtures("calmed")]


def refused(
    hub: Hub, kind: type[Fp8ConvertError], match: str, source: Path, target: Path, **to: Any
) -> None:
    """Before anything is written here, and without a change there."""
    before = {
        branch: hub.tree(to.get("repo", REPO), branch)
        for branch in (hub.branches(REPO) if hub.has(REPO) else ())
    }
    with pytest.raises(kind, match=match):
        push(source, target, **to)
    assert not target.exists()
    assert not state_of(target).exists()
    assert (sent(hub), commits(hub)) == ([], 0)
    for branch, tree in before.items():
        assert hub.tree(REPO, branch) == tree


# --- Access


def test_without_a_token(
    hub: Hub, mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    asks = "the hub asks for a token: log in with `hf auth login`, or set HF_TOKEN"
    refused(hub, FormatError, asks, mini, fast_path / "d")
    assert not hub.has(REPO)


@pytest.mark.parametrize("there", [False, True])
def test_with_a_token_that_is_none(
    hub: Hub, mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    if there:
        hub.put(REPO, {"x.md": b"x"})
    monkeypatch.setenv("HF_TOKEN", "secret-but-wrong")
    with pytest.raises(FormatError, match="does not accept the token") as e:
        push(mini, fast_path / "dst")
    assert "secret-but-wrong" not in str(e.value)
    refused(hub, FormatError, "does not accept the token", mini, fast_path / "dst")


@pytest.mark.parametrize("there", [False, True])
def test_with_a_token_that_may_only_read(
    hub: Hub, mini: Path, fast_path: Path, there: bool
) -> None:
    if there:
        hub.put(REPO, {"x.md": b"x"})
    hub.read_only.add(TOKEN)
    refused(hub, FormatError, r"the hub forbids it \(403\).*another token", mini, fast_path / "dst")


def test_access_that_ends_meanwhile(hub: Hub, mini: Path, fast_path: Path) -> None:
    hub.on("/s3/", lambda request: hub.read_only.add(TOKEN), method="PUT")
    with pytest.raises(FormatError, match=r"forbids it \(403\)"):
        push(mini, fast_path / "dst")
    assert commits(hub) == 0
    hub.read_only.clear()
    push(mini, fast_path / "dst")
    assert on_hub(hub) == files_of(fast_path / "dst")


def test_offline(hub: Hub, mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    from huggingface_hub import close_session

    close_session()
    why = "making it: HF_HUB_OFFLINE forbids .*: unset it"
    refused(hub, FormatError, why, mini, fast_path / "dst")
    close_session()


def test_private(hub: Hub, mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(mini, fast_path / "dst", private=True)
    assert hub.is_private(REPO)
    for private in (True, False):  # as it is
        again = push(mini, fast_path / "dst", private=private).pushed
        assert again
        assert again.already
    assert hub.is_private(REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(FormatError, match="no such repository, or a private one"):
        push(mini, fast_path / "dst")


def test_a_public_repository_is_not_taken_for_a_private_one(
    hub: Hub, mini: Path, fast_path: Path
) -> None:
    hub.put(REPO, {"x.md": b"x"})
    refused(hub, TargetError, "there, and public.*settings", mini, fast_path / "dst", private=True)


def test_the_token_is_kept_nowhere(
    hub: Hub, mini: Path, fast_path: Path, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    caplog.set_level("DEBUG")
    push(mini, fast_path / "dst", drop=True)
    for path, data in {**files_of(fast_path / "dst"), CARD: hub.read(REPO, CARD)}.items():
        assert TOKEN.encode() not in data, path
    hub.read_only.add(TOKEN)
    with pytest.raises(FormatError):
        push(mini, fast_path / "other")
    captured = capfd.readouterr()
    assert TOKEN not in captured.out + captured.err + caplog.text


# --- What is there already


@pytest.mark.parametrize(
    "name", ["model.safetensors", "sub/x.safetensors", "pytorch_model.bin", "M.GGUF",
             "w.npz", "model.safetensors.index.json"],
)  # fmt: skip
def test_weights_of_others(hub: Hub, mini: Path, fast_path: Path, name: str) -> None:
    hub.put(REPO, {name: b"x"})
    refused(hub, TargetError, f"holds '{name}', not of this plan", mini, fast_path / "dst")


def test_what_is_no_weights_stays(hub: Hub, mini: Path, fast_path: Path) -> None:
    mine = {"x.md": b"x", "images/a.png": b"png", "config.json": b"{}", ".gitignore": b"*.log\n"}
    hub.put(REPO, mine)
    push(mini, fast_path / "dst")
    made = files_of(fast_path / "dst")
    assert on_hub(hub) == {**mine, **made}  # config.json is ours now; the history has theirs
    assert hub.read(REPO, "config.json", hub.commits(REPO)[1].sha) == b"{}"


def test_the_same_of_another_plan(hub: Hub, mini: Path, fast_path: Path) -> None:
    push(mini, fast_path / "first", {"dtype": "float16"})
    hub.traffic.clear()
    refused(
        hub, TargetError, r"(?s)made by another plan.*dtype: 'float16' then, 'bfloat16' now.*"
        "another --revision", mini, fast_path / "dst",
    )  # fmt: skip
    push(mini, fast_path / "dst", revision="bf16")
    assert on_hub(hub) == files_of(fast_path / "first")
    assert on_hub(hub, "bf16") == files_of(fast_path / "dst")
    check_visible(hub)
    check_visible(hub, "bf16")


@pytest.mark.parametrize("damaged", [b"", b"{", b"{}", b'{"identity": 7}'])
def test_a_manifest_that_is_none(hub: Hub, mini: Path, fast_path: Path, damaged: bytes) -> None:
    hub.put(REPO, {"manifest.json": damaged})
    refused(hub, TargetError, "exists and is not empty", mini, fast_path / "dst")


def test_a_manifest_that_was_changed(hub: Hub, mini: Path, fast_path: Path) -> None:
    push(mini, fast_path / "dst")
    data = hub.read(REPO, "manifest.json")
    hub.put(REPO, {"manifest.json": data.replace(b'"warnings": []', b'"warnings": [1]')})
    with pytest.raises(TargetError, match="it was changed after it was written"):
        push(mini, fast_path / "dst")
    hub.put(REPO, {"manifest.json": data})
    push(mini, fast_path / "dst")


def test_what_was_changed_or_removed_there_comes_back(
    hub: Hub, mini: Path, fast_path: Path
) -> None:
    push(mini, fast_path / "dst")
    held = files_of(fast_path / "dst")
    first, second, *_ = sorted(n for n in held if n.endswith(".safetensors"))
    hub.put(REPO, {first: b"x", "config.json": b"{}"}, delete=[second, "LICENSE"])
    hub.traffic.clear()
    pushed = push(mini, fast_path / "dst").pushed
    assert pushed
    assert not pushed.already
    assert on_hub(hub) == held
    assert sent(hub) == []


def test_a_card_that_is_no_text(hub: Hub, mini: Path, fast_path: Path) -> None:
    hub.put(REPO, {CARD: b"\xff"})
    refused(hub, FormatError, "README.md of org/made@main is not UTF-8", mini, fast_path / "dst")


def test_a_card_that_is_a_book(hub: Hub, mini: Path, fast_path: Path) -> None:
    hub.put(REPO, {CARD: b"x" * ((1 << 20) + 1)})
    refused(hub, FormatError, "larger than 1,048,576 bytes", mini, fast_path / "dst")


# --- Branches


def test_a_branch_begins_where_the_repository_does(hub: Hub, mini: Path, fast_path: Path) -> None:
    """Or it would hold what main does."""
    hub.put(REPO, {".gitattributes": b"*.safetensors filter=lfs\n"})
    hub.put(REPO, {"model.safetensors": b"x"})
    made = push(mini, fast_path / "dst", revision="a/b").pushed
    assert made
    assert made.url == f"{hub.endpoint}/{REPO}/tree/a/b"
    assert on_hub(hub, "a/b") == files_of(fast_path / "dst")
    assert on_hub(hub) == {"model.safetensors": b"x"}
    check_visible(hub, "a/b")
    assert "--revision a/b" in hub.read(REPO, CARD, "a/b").decode()


def test_a_repository_that_begins_with_weights(hub: Hub, mini: Path, fast_path: Path) -> None:
    """As after all history was squashed: there is no branch without them."""
    hub.put(REPO, {"model.safetensors": b"x"})
    with pytest.raises(TargetError, match=r"@new holds 'model.safetensors'.*another repository"):
        push(mini, fast_path / "dst", revision="new")
    assert not state_of(fast_path / "dst").exists()


def test_a_branch_that_is_there_is_taken(hub: Hub, mini: Path, fast_path: Path) -> None:
    hub.put(REPO, {"x.md": b"x"})
    hub.branch(REPO, "mine", "main")
    push(mini, fast_path / "dst", revision="mine")
    assert on_hub(hub, "mine") == {"x.md": b"x", **files_of(fast_path / "dst")}
    assert on_hub(hub) == {"x.md": b"x"}


def test_a_tag_is_no_branch(hub: Hub, mini: Path, fast_path: Path) -> None:
    hub.put(REPO, {"x.md": b"x"})
    hub.tag(REPO, "v1", "main")
    refused(hub, UsageError, "'v1' is a tag", mini, fast_path / "dst", revision="v1")


@pytest.mark.parametrize(
    "repo", ["", "name", "a/b/c", "org/", "/name", "org/na me", "org/x.git", "org/a--b", "o..g/x",
             "org/x@main", "hf://org/x", "org/\x1bx", "ORG/" + "n" * 97],
)  # fmt: skip
def test_what_is_no_repository(repo: str) -> None:
    with pytest.raises(UsageError, match="expected ORG/NAME"):
        Push(repo)


@pytest.mark.parametrize(
    "revision", ["", "a b", "/x", "x/", "a..b", "x.lock", "\x1b", "0" * 40, "refs\\x", "a//b"]
)
def test_what_is_no_branch(revision: str) -> None:
    with pytest.raises(UsageError, match="expected the name of a branch"):
        Push(REPO, revision=revision)


def test_a_target_that_is_refused_makes_no_repository(
    hub: Hub, mini: Path, fast_path: Path
) -> None:
    (fast_path / "dst").mkdir()
    (fast_path / "dst/x").write_bytes(b"x")
    with pytest.raises(TargetError, match="not empty"):
        push(mini, fast_path / "dst")
    assert hub.log == []


def test_nothing_is_asked_without_a_push(hub: Hub, mini: Path, fast_path: Path) -> None:
    to_bf16(mini, fast_path / "dst", max_shard_size=CUT)
    assert hub.log == []
    assert json.loads((fast_path / "dst/manifest.json").read_bytes())["files"]
