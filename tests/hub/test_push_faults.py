"""Uploads that go wrong: by the network, by the hub, by others who commit to the branch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi

from fp8convert.convert import to_bf16
from fp8convert.errors import FormatError, ResumableError, TargetError
from fp8convert.hub import branch, delivery, known, uploads
from fp8convert.hub.errors import _network

from ..crash import state_of
from ..mini import CUT
from . import Fault, Hub
from .pushing import (
    CARD,
    REPO,
    SENDING,
    check_visible,
    commits,
    files_of,
    on_hub,
    push,
    sent,
    weights,
)

pytestmark = [SENDING, pytest.mark.usefixtures("calmed")]
FAULTS: dict[str, dict[str, Any]] = {
    "500": {"status": 500},
    "503": {"status": 503, "retry_after": 0},
    "429": {"status": 429, "retry_after": 0},
    "cut": {"cut": 1000},
    "closed": {"drop": True},
}
STEPS = {  # what is asked of the hub, and the words for it
    "create": ("POST", "/api/repos/create", "making it"),
    "refs": ("GET", "/refs$", "looking up its branches"),
    "batch": ("POST", "/objects/batch", "asking to write"),
    "head": ("GET", "/revision/main", ""),
    "list": ("GET", "/tree/", ""),
    "preupload": ("POST", "/preupload/", "sending 'model-"),
    "put": ("PUT", "/s3/", "sending 'model-"),
    "verify": ("POST", "/objects/verify", "sending 'model-"),
    "card": ("POST", "/validate-yaml", "committing"),
    "commit": ("POST", "/commit/", "committing"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_that_passes_is_sat_out(hub: Hub, mini: Path, fast_path: Path, kind: str) -> None:
    fault = hub.faults.add(Fault("/s3/", method="PUT", times=2, **FAULTS[kind]))
    push(mini, fast_path / "dst")
    assert fault.struck == 2
    assert on_hub(hub) == files_of(fast_path / "dst")
    check_visible(hub)


def test_a_store_that_wants_it_elsewhere(hub: Hub, mini: Path, fast_path: Path) -> None:
    """As stores do for a while: the client sends a file again that it has read to its end."""
    where = {"Location": f"{hub.endpoint}/elsewhere"}
    fault = hub.faults.add(Fault("/s3/", method="PUT", times=1, status=307, headers=where))
    push(mini, fast_path / "dst")
    assert fault.struck == 1
    assert on_hub(hub) == files_of(fast_path / "dst")
    check_visible(hub)


@pytest.mark.parametrize("step", STEPS)
def test_each_step_is_tried_again(hub: Hub, mini: Path, fast_path: Path, step: str) -> None:
    method, path, _ = STEPS[step]
    fault = hub.faults.add(Fault(path, method=method, times=1, drop=True))
    push(mini, fast_path / "dst")
    assert fault.struck == 1
    assert on_hub(hub) == files_of(fast_path / "dst")
    assert len(hub.commits(REPO)) == 2
    check_visible(hub)


@pytest.mark.parametrize("step", [s for s in STEPS if s != "verify"])  # asked again, it has it
def test_a_fault_that_stays_ends_it_and_the_next_run_goes_on(
    hub: Hub, mini: Path, fast_path: Path, step: str, written: list[str]
) -> None:
    method, path, words = STEPS[step]
    hub.faults.add(Fault(path, method=method, status=503))
    with pytest.raises(ResumableError, match=f"{REPO}@.*{words}.*503"):
        push(mini, fast_path / "dst")
    early = step in ("create", "refs", "batch", "head", "list")
    late = step in ("card", "commit")
    assert state_of(fast_path / "dst").exists() == (not early and not late)
    assert (fast_path / "dst").exists() == late
    check_visible(hub)
    before = len(sent(hub)) if step != "put" else 0
    finished = set(written) if late else set()
    hub.faults.clear()
    written.clear()
    push(mini, fast_path / "dst")
    assert on_hub(hub) == files_of(fast_path / "dst")
    assert not finished & set(written)
    if late:
        assert len(sent(hub)) == before == 3
    check_visible(hub)


def test_what_is_there_is_not_sent_again(
    hub: Hub, mini: Path, fast_path: Path, written: list[str]
) -> None:
    fault = hub.faults.add(Fault("/s3/", method="PUT", skip=2, status=503))
    with pytest.raises(ResumableError):
        push(mini, fast_path / "dst")
    assert fault.struck
    good = [r.received for r in hub.log if r.path.startswith("/s3/") and r.status == 200]
    assert len(good) == 2
    hub.faults.clear()
    hub.traffic.clear()
    push(mini, fast_path / "dst")
    held = files_of(fast_path / "dst")
    sizes = [len(held[name]) for name in weights(held)]
    assert sorted(sent(hub) + good) == sorted(sizes)
    assert on_hub(hub) == held


def test_a_hub_that_is_away_ends_it(
    hub: Hub, mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of several, huggingface_hub closes the connections under the others, and leaves a socket.
    monkeypatch.setattr(uploads, "THREADS", 1)
    hub.on("/objects/verify", lambda request: hub.down())
    with pytest.raises(ResumableError, match="cannot be reached"):
        push(mini, fast_path / "dst")
    hub.up()
    push(mini, fast_path / "dst")
    assert on_hub(hub) == files_of(fast_path / "dst")
    check_visible(hub)


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("name", ["model-00001-of-000003.safetensors", "config.json"])
def test_what_was_changed_since_is_not_sent(
    hub: Hub, mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, drop: bool
) -> None:
    """The hub need not look: weights are not sent to the end, and nothing is committed."""
    to_bf16(mini, fast_path / "dst", max_shard_size=CUT)
    change(fast_path / "dst" / name)
    with pytest.raises(FormatError, match=rf"{name}' was changed after it was written"):
        push(mini, fast_path / "dst", drop=drop)
    assert commits(hub) == 0
    assert (fast_path / "dst" / name).exists()


def test_what_arrives_changed_is_not_taken(
    hub: Hub, mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's own check, which stands behind ours."""
    to_bf16(mini, fast_path / "dst", max_shard_size=CUT)
    change(sorted((fast_path / "dst").glob("*.safetensors"))[0])
    monkeypatch.setattr(known, "check_sum", lambda *_: None)
    with pytest.raises(FormatError, match=r"sending 'model-00001.*answers 400"):
        push(mini, fast_path / "dst")
    assert commits(hub) == 0


def change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_an_answer_that_is_none_is_refused(
    hub: Hub, mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(*_: Any, **__: Any) -> Any:
        raise ValueError("Malformed response\x1b from server")

    monkeypatch.setattr("huggingface_hub.lfs.post_lfs_batch_info", odd)
    with pytest.raises(FormatError, match=r"asking to write to it: .*Malformed response\\x1b"):
        push(mini, fast_path / "dst")


def test_a_page_in_place_of_an_answer_about_the_card_may_pass(
    hub: Hub, mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface_hub takes it for JSON before it looks at the status."""
    real, asked = HfApi._validate_yaml, []

    def validate(self: HfApi, content: str, **options: Any) -> None:
        asked.append(content)
        if len(asked) == 1:
            json.loads("<html>")
        real(self, content, **options)

    monkeypatch.setattr(HfApi, "_validate_yaml", validate)
    push(mini, fast_path / "dst")
    assert len(asked) == 2
    assert on_hub(hub) == files_of(fast_path / "dst")


def test_a_card_that_the_hub_refuses_is_named(
    hub: Hub, mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = 'Invalid metadata in README.md.\n- "license" must be one of\x1b'
    monkeypatch.setattr(HfApi, "_validate_yaml", refusing(words))
    with pytest.raises(FormatError, match=r"refuses the model card: .*license.*one of\\x1b"):
        push(mini, fast_path / "dst")
    assert commits(hub) == 0


def refusing(words: str) -> Callable[..., None]:
    def validate(*_: Any, **__: Any) -> None:
        raise ValueError(words)

    return validate


def test_an_object_that_the_hub_will_not_have(
    hub: Hub, mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"oid": "0", "size": 1, "error": {"code": 422, "message": "no\x1b"}}
    monkeypatch.setattr("huggingface_hub.lfs.post_lfs_batch_info", lambda *_, **__: ([], [said]))
    with pytest.raises(FormatError, match=r"422.*no"):
        push(mini, fast_path / "dst")


def test_a_connection_that_another_thread_has_closed(
    hub: Hub, mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As huggingface_hub does it when it cannot connect: what others send ends by RuntimeError."""
    real = branch.Branch._send
    struck: list[str] = []

    def send(self: branch.Branch, name: str, *args: Any) -> bool:
        with branch._unwrapped():
            if not struck:
                struck.append(name)
                cause = RuntimeError("the client has been closed")
                raise RuntimeError("Error while uploading") from cause
        return real(self, name, *args)

    monkeypatch.setattr(branch.Branch, "_send", send)
    push(mini, fast_path / "dst")
    assert struck
    assert on_hub(hub) == files_of(fast_path / "dst")


def test_other_errors_of_an_upload_are_told_as_they_are() -> None:
    with pytest.raises(KeyError), branch._unwrapped():
        raise RuntimeError("Error while uploading") from KeyError("x")
    with pytest.raises(RuntimeError, match="by itself"), branch._unwrapped():
        raise RuntimeError("by itself")


# --- Others who commit to the branch


def test_a_commit_of_others_in_between_stays(hub: Hub, mini: Path, fast_path: Path) -> None:
    hub.on("/validate-yaml", lambda request: hub.put(REPO, {CARD: b"# Mine\n", "x.md": b"x"}))
    push(mini, fast_path / "dst")
    assert commits(hub) == 2
    assert hub.commits(REPO)[0].message.startswith("to-bf16")
    assert hub.read(REPO, "x.md") == b"x"
    card = hub.read(REPO, CARD).decode()
    assert "# Mine\n" in card
    assert "## Provenance" in card
    held = on_hub(hub)
    assert held.pop("x.md") == b"x"
    assert held == files_of(fast_path / "dst")


def test_weights_that_others_commit_in_between_are_kept_clear_of(
    hub: Hub, mini: Path, fast_path: Path
) -> None:
    hub.on("/validate-yaml", lambda request: hub.put(REPO, {"other.safetensors": b"x"}))
    with pytest.raises(TargetError, match=r"holds 'other.safetensors'.*another --revision"):
        push(mini, fast_path / "dst")
    assert set(hub.tree(REPO)) == {".gitattributes", "other.safetensors"}
    assert (fast_path / "dst").is_dir()  # made; not uploaded
    push(mini, fast_path / "dst", revision="mine")
    assert on_hub(hub, "mine") == files_of(fast_path / "dst")
    check_visible(hub, "mine")


def test_a_branch_that_never_rests(hub: Hub, mini: Path, fast_path: Path) -> None:
    count = iter(range(100))
    hub.on(
        "/validate-yaml",
        lambda request: hub.put(REPO, {"x.md": b"%d" % next(count)}),
        times=None,
    )
    with pytest.raises(ResumableError, match=r"others commit to it all the time\n.*is finished"):
        push(mini, fast_path / "dst")
    assert next(count) == delivery.ATTEMPTS


def test_a_commit_whose_answer_is_lost_is_not_made_twice(
    hub: Hub, mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import _commit_api

    real = _commit_api._send_commit
    made: list[Any] = []

    def send_commit(*args: Any, **options: Any) -> Any:
        made.append(real(*args, **options))
        if len(made) == 1:
            raise _network()("the answer is lost")
        return made[-1]

    monkeypatch.setattr(_commit_api, "_send_commit", send_commit)
    pushed = push(mini, fast_path / "dst").pushed
    assert pushed
    assert (pushed.commit, pushed.already) == (made[0].oid, False)
    assert len(hub.commits(REPO)) == 2


def test_errors_of_the_disk_are_of_the_disk(
    hub: Hub, mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlink(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(uploads, "os", SimpleNamespace(unlink=unlink))
    with pytest.raises(ResumableError, match=r"Permission denied \(.*model-.*permit it"):
        push(mini, fast_path / "dst", drop=True)
    assert commits(hub) == 0
