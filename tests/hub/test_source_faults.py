"""What goes wrong with downloads: what goes well in the end, and what each other end is called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fp8convert
from fp8convert.convert import prepare
from fp8convert.errors import DataError, FormatError, Fp8ConvertError, ResumableError, TargetError
from fp8convert.hub import download
from fp8convert.inspection import inspect

from .faults import Fault
from .models import contents, make_chain, shards_of
from .server import Hub

pytestmark = pytest.mark.usefixtures("hasty")

REPO = "org/model"
AT = f"hf://{REPO}"
SHARD = "model-00003-of-00006.safetensors"
BODY = f"cdn/.*{SHARD}"  # requests of its bytes
WEIGHTS = {"skip": 2}  # after those of its header


def downloads(hub: Hub, name: str = SHARD) -> int:
    """How often all of a shard was asked for."""
    return sum(
        r.host == "cdn" and r.path.endswith(name) and not r.range and r.method == "GET"
        for r in hub.log
    )


ONCE: dict[str, Callable[[], Fault]] = {
    "cut": lambda: Fault(BODY, cut=5000, times=1),
    "cut at once": lambda: Fault(BODY, cut=0, times=1, **WEIGHTS),
    "dropped": lambda: Fault(BODY, drop=True, times=1, **WEIGHTS),
    "500": lambda: Fault(BODY, status=500, times=1, **WEIGHTS),
    "503": lambda: Fault(BODY, status=503, times=1, **WEIGHTS),
    "429": lambda: Fault(BODY, status=429, retry_after=0, times=1, **WEIGHTS),
    "HEAD 503": lambda: Fault(f"/resolve/.*{SHARD}", method="HEAD", status=503, times=1),
    "HEAD 500": lambda: Fault(SHARD, method="HEAD", status=500, times=1),
    "HEAD dropped": lambda: Fault(SHARD, method="HEAD", drop=True, times=1),
    "HEAD tells another size": lambda: Fault(SHARD, size=7, times=1),
    "HEAD tells another sum": lambda: Fault(SHARD, etag="0" * 64, times=1),
    "HEAD always tells another sum": lambda: Fault(SHARD, etag="0" * 64),
    "a header is cut": lambda: Fault(BODY, cut=10, times=1),
    "a header is cut in its middle": lambda: Fault(BODY, cut=1000, times=1),
    "a header is not to be had": lambda: Fault(SHARD, status=503, times=1),
    "the listing": lambda: Fault("/tree/", status=500, times=1),
    "the commit": lambda: Fault("/revision/", status=502, times=1),
    "the commit, dropped": lambda: Fault("/revision/", drop=True, times=1),
    "a small file": lambda: Fault("config.json", cut=5, times=1),
    "too many at first": lambda: Fault("/api/", status=429, retry_after=0, times=1),
    "a flipped byte": lambda: Fault(BODY, flip=20_000, times=1),
}


@pytest.mark.parametrize("fault", ONCE)
def test_what_goes_well_another_time(
    fault: str, chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path
) -> None:
    hub.add(REPO, chain)
    made = hub.faults.add(ONCE[fault]())
    fp8convert.to_bf16(AT, tmp_path / "dst")
    assert made.struck >= 1
    assert contents(tmp_path / "dst") == expected


ALWAYS: dict[str, tuple[Callable[[], Fault], str]] = {
    "cut": (lambda: Fault(BODY, cut=5000), "cannot be reached, or ended it"),
    "dropped": (lambda: Fault(BODY, drop=True, **WEIGHTS), "cannot be reached, or ended it"),
    "500": (lambda: Fault(BODY, status=500, **WEIGHTS), "the hub answers 500"),
    "503": (lambda: Fault(BODY, status=503, **WEIGHTS), "the hub answers 503"),
    "429": (lambda: Fault(BODY, status=429, retry_after=0, **WEIGHTS), "the hub answers 429"),
    "HEAD 500": (lambda: Fault(SHARD, method="HEAD", status=500), "the hub answers 500"),
    "HEAD 429": (lambda: Fault(SHARD, method="HEAD", status=429), "the hub answers 429"),
    "HEAD dropped": (lambda: Fault(SHARD, method="HEAD", drop=True), "cannot be reached"),
    "HEAD tells another size": (lambda: Fault(SHARD, size=7), "Consistency check failed"),
    "the listing": (lambda: Fault("/tree/", status=500), "the hub answers 500"),
    "the commit": (lambda: Fault("/revision/", drop=True), "cannot be reached"),
    "a header": (lambda: Fault(BODY, cut=10), "cannot be reached"),
    "a header, too many": (lambda: Fault(BODY, status=429, retry_after=0), "answers 429"),
}


@pytest.mark.parametrize("fault", ALWAYS)
def test_what_never_does_can_be_gone_on_with(
    fault: str, chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path
) -> None:
    hub.add(REPO, chain)
    make, words = ALWAYS[fault]
    hub.faults.add(make())
    with pytest.raises(ResumableError, match=words) as e:
        fp8convert.to_bf16(AT, tmp_path / "dst")
    assert e.value.exit_code == 75
    assert AT in str(e.value)
    assert not (tmp_path / "dst").exists()
    hub.faults.clear()
    fp8convert.to_bf16(AT, tmp_path / "dst")
    assert contents(tmp_path / "dst") == expected
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dst", "hub"]


def test_the_hub_goes_away_and_comes_back(
    chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path
) -> None:
    hub.add(REPO, chain)
    hub.on(BODY, lambda request: hub.down(), at=70_000)
    with pytest.raises(ResumableError, match="cannot be reached"):
        fp8convert.to_bf16(AT, tmp_path / "dst")
    with pytest.raises(ResumableError, match=f"{AT}@main: the hub cannot be reached"):
        fp8convert.to_bf16(AT, tmp_path / "dst")
    hub.up()
    fp8convert.to_bf16(AT, tmp_path / "dst")
    assert contents(tmp_path / "dst") == expected


class TestFlipped:
    OFFSET = 20_000

    def test_it_is_fetched_again(
        self, chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path
    ) -> None:
        hub.add(REPO, chain)
        fault = hub.faults.add(Fault(BODY, flip=self.OFFSET, times=1))
        fp8convert.to_bf16(AT, tmp_path / "dst")
        assert contents(tmp_path / "dst") == expected
        assert (fault.struck, downloads(hub)) == (1, 2)
        others = [name for name in shards_of(chain) if name != SHARD]
        assert {downloads(hub, name) for name in others} == {1}

    def test_twice_is_the_end(self, chain: Path, hub: Hub, tmp_path: Path) -> None:
        sums = hub.tree(REPO) if hub.add(REPO, chain) else {}
        fault = hub.faults.add(Fault(BODY, flip=self.OFFSET))
        with pytest.raises(DataError) as e:
            fp8convert.to_bf16(AT, tmp_path / "dst")
        assert e.value.exit_code == 1
        assert fault.struck == downloads(hub) == 2
        said = str(e.value)
        assert f"'{SHARD}' of {AT}@" in said
        assert f"expected {sums[SHARD].lfs}" in said
        assert not (tmp_path / "dst").exists()

    def test_a_tool_that_does_not_look_is_found_out(
        self, chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        def believes(
            self: download.Downloads, name: str, held: Any, arrived: Any
        ) -> tuple[Path, str]:
            with self._slot.temporary() as folder:
                return self._slot.put(self._download(name, folder, arrived), name), held.sum

        monkeypatch.setattr(download.Downloads, "_try", believes)
        hub.add(REPO, chain)
        hub.faults.add(Fault(BODY, flip=self.OFFSET))
        fp8convert.to_bf16(AT, tmp_path / "dst")
        assert contents(tmp_path / "dst") != expected

    def test_bytes_that_did_not_come_in_order(
        self, chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """The sum that is taken meanwhile is wrong then, and nothing rests on it."""
        real = download.Follower.end
        monkeypatch.setattr(download.Follower, "end", lambda self: real(self)[::-1])
        hub.add(REPO, chain)
        fp8convert.to_bf16(AT, tmp_path / "dst")
        assert contents(tmp_path / "dst") == expected
        assert {downloads(hub, name) for name in shards_of(chain)} == {1}


class TestMoved:
    """A branch that moves while it is read, or before it is gone on with."""

    def test_mid_run(
        self, chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path
    ) -> None:
        sha = hub.add(REPO, chain)
        other = make_chain(tmp_path / "other", seed=4)
        hub.on("model-00001-of", lambda request: hub.add(REPO, other), method="HEAD")
        found = fp8convert.to_bf16(AT, tmp_path / "dst")
        assert hub.tree(REPO)[SHARD].lfs != hub.tree(REPO, sha)[SHARD].lfs
        assert contents(tmp_path / "dst") == expected
        assert found.data["identity"]["origin"]["commit"] == sha

    def interrupted(self, hub: Hub, chain: Path, target: Path, revision: str = "") -> str:
        sha = hub.add(REPO, chain)
        fault = hub.faults.add(Fault(BODY, drop=True, **WEIGHTS))
        with pytest.raises(ResumableError):
            fp8convert.to_bf16(f"{AT}{revision}", target)
        assert fault.struck
        hub.faults.clear()
        return sha

    def test_it_goes_on_with_the_commit_it_began_with(
        self, chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path
    ) -> None:
        first = self.interrupted(hub, chain, tmp_path / "dst")
        second = hub.add(REPO, make_chain(tmp_path / "other", seed=4))
        job = prepare(AT, tmp_path / "dst")
        (said,) = job.catalogue.folder.remarks
        assert f"{AT}@main is at {second} now; this goes on with {first}" in said
        fp8convert.to_bf16(AT, tmp_path / "dst")
        assert contents(tmp_path / "dst") == expected

    def test_what_is_finished_is_not_what_is_there_now(
        self, chain: Path, hub: Hub, tmp_path: Path
    ) -> None:
        first = hub.add(REPO, chain)
        fp8convert.to_bf16(AT, tmp_path / "dst")
        second = hub.add(REPO, make_chain(tmp_path / "other", seed=4))
        with pytest.raises(TargetError) as e:
            fp8convert.to_bf16(AT, tmp_path / "dst")
        assert f"origin.commit: '{first}' then, '{second}' now" in str(e.value)
        assert str(e.value).endswith(f"give '{AT}@{first}'")
        assert fp8convert.to_bf16(f"{AT}@{first}", tmp_path / "dst").already_done

    @pytest.mark.parametrize("revision", ["@other", "@{first}"])
    def test_another_revision_is_asked_for(
        self, revision: str, chain: Path, hub: Hub, tmp_path: Path
    ) -> None:
        """Only what was asked for is gone on with: the same words, or the very commit."""
        first = self.interrupted(hub, chain, tmp_path / "dst")
        hub.branch(REPO, "other", first)
        second = hub.put(REPO, {"config.json": (chain / "config.json").read_bytes() + b"\n"},
                         branch="other")  # fmt: skip
        if revision == "@other":
            with pytest.raises(TargetError) as e:
                fp8convert.to_bf16(f"{AT}@other", tmp_path / "dst")
            assert f"origin.commit: '{first}' then, '{second}' now" in str(e.value)
        else:
            hub.put(REPO, {"config.json": b"{}"})
            fp8convert.to_bf16(f"{AT}@{first}", tmp_path / "dst")

    def test_another_target_begins_anew(self, chain: Path, hub: Hub, tmp_path: Path) -> None:
        self.interrupted(hub, chain, tmp_path / "dst")
        second = hub.add(REPO, make_chain(tmp_path / "other", seed=4))
        found = fp8convert.to_bf16(AT, tmp_path / "elsewhere")
        assert found.data["identity"]["origin"]["commit"] == second


def test_no_signed_link_in_what_is_said(chain: Path, hub: Hub, tmp_path: Path) -> None:
    """huggingface_hub calls a file by the end of the link that it came by."""
    hub.add(REPO, chain)
    hub.faults.add(Fault(SHARD, size=7))
    with pytest.raises(ResumableError, match="Consistency check failed") as e:
        fp8convert.to_bf16(AT, tmp_path / "dst")
    assert "X-Amz" not in str(e.value)


class TestRefused:
    """Exit code 1, and what to do."""

    def refused(self, words: str, at: str = AT) -> None:
        with pytest.raises(FormatError, match=words) as e:
            inspect(at)
        assert type(e.value) is FormatError
        assert AT.split("/model", 1)[0] in str(e.value)

    def test_no_such_repository(self, hub: Hub) -> None:
        self.refused("no such repository, or a private one: .*hf auth login.*HF_TOKEN", AT + "x")

    def test_private(self, chain: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.add(REPO, chain)
        hub.private(REPO, "hf_a")
        self.refused("no such repository, or a private one")
        monkeypatch.setenv("HF_TOKEN", "hf_b")
        self.refused("no such repository, or a private one")
        monkeypatch.setenv("HF_TOKEN", "hf_a")
        assert inspect(AT).weights == 6

    def test_a_token_that_is_none(
        self, chain: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.add(REPO, chain)
        monkeypatch.setenv("HF_TOKEN", "nothing")
        self.refused("does not accept the token: log in with `hf auth login`, or set HF_TOKEN")

    def test_a_token_that_no_header_can_have(
        self, chain: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.add(REPO, chain)
        monkeypatch.setenv("HF_TOKEN", "s\xe9cret")
        self.refused("the token is not ASCII: log in with `hf auth login`, or set HF_TOKEN")

    def test_gated(self, chain: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.add(REPO, chain)
        hub.gate(REPO, "hf_ok")
        self.refused("access is gated: accept its terms .* `hf auth login`, or set HF_TOKEN")
        monkeypatch.setenv("HF_TOKEN", "hf_other")
        self.refused("access is gated")
        monkeypatch.setenv("HF_TOKEN", "hf_ok")
        assert inspect(AT).weights == 6

    def test_forbidden(self, chain: Path, hub: Hub) -> None:
        hub.add(REPO, chain)
        hub.faults.add(Fault("/tree/", status=403, message="not you\x1b[31m hf_secret"))
        with pytest.raises(FormatError, match=r"forbids it \(403\): 'not you") as e:
            inspect(AT)
        assert "\x1b" not in str(e.value)
        assert "hf_secret" not in str(e.value)

    def test_what_is_no_hub(self, chain: Path, hub: Hub) -> None:
        hub.add(REPO, chain)
        hub.faults.add(Fault("", status=404, message="<html>"))
        self.refused(r"the hub answers 404: .*; is HF_ENDPOINT right\?")

    def test_a_shard_that_is_listed_and_gone(self, chain: Path, hub: Hub, tmp_path: Path) -> None:
        hub.add(REPO, chain)
        hub.faults.add(Fault(f"resolve/.*{SHARD}", method="HEAD", status=404,
                             code="EntryNotFound"))  # fmt: skip
        with pytest.raises(FormatError, match=f"'{SHARD}' of .*: no such file there"):
            fp8convert.to_bf16(AT, tmp_path / "dst")

    def test_access_lost_mid_run(self, chain: Path, hub: Hub, tmp_path: Path) -> None:
        hub.add(REPO, chain)
        hub.on(f"/resolve/.*{SHARD}", lambda request: hub.gate(REPO, "hf_ok"), method="HEAD")
        with pytest.raises(FormatError, match="access is gated"):
            fp8convert.to_bf16(AT, tmp_path / "dst")
        assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "nonsense://x", "http://[::1"])
def test_an_endpoint_that_nobody_answers_at(
    endpoint: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", endpoint)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    with pytest.raises(Fp8ConvertError) as e:
        inspect(AT)
    assert f"{AT}@main: " in str(e.value)
    assert e.value.exit_code == (75 if endpoint.endswith(":9") else 1)
