"""Tokens across two data directories, with real nodes: once is right, everything else has its error and its record."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hostile_nodes import join, town
from support import eventually

from mesh.errors import (
    DataDirectoryError,
    EnrolmentRefused,
    TokenError,
    TokenExpired,
    TokenMalformed,
    TokenUnknown,
    TokenUsed,
)
from transport.identity import audit
from transport.identity.invites import Token


def _records(data_dir: Path, name: str) -> list[dict[str, Any]]:
    """The audit log of a node, verified."""
    path = data_dir / "default" / name / "audit.log"
    report = audit.verify(path)
    assert report.intact, report.problems
    return [json.loads(line) for line in path.read_text().splitlines()]


async def _refused(data_dir: Path, token: str, name: str, error: type[TokenError]) -> None:
    """Joining fails with exactly this error, and the joiner's own audit log says so."""
    with pytest.raises(error) as caught:
        await join(data_dir, name, join_token=token)
    assert type(caught.value) is error
    assert caught.value.hint
    if (data_dir / "default" / name / "audit.log").exists():
        failed = (await asyncio.to_thread(_records, data_dir, name))[-1]
        assert (failed["event"], failed["fields"]["reason"]) == ("enrolment failed", error.__name__)


async def test_a_token_admits_one_node_once(tmp_path: Path) -> None:
    """It joins from another data directory, restarts without the token, and nobody else gets in with it."""
    async with town(tmp_path / "a") as there:
        token = await there.target.invite(ttl_s=600, uses=1)
        async with await join(tmp_path / "b", "joiner", join_token=token) as joiner:
            # Nothing but the token says where anybody is.
            await joiner.wait_for_members(3, timeout_s=15)
        async with await join(tmp_path / "b", "joiner", bootstrap=[there.address]) as again:
            await again.wait_for_members(3, timeout_s=15)
        await _refused(tmp_path / "c", token, "second", TokenUsed)

    issuer = await asyncio.to_thread(_records, tmp_path / "a", "target")
    events = [(record["event"], record["fields"].get("node") or record["fields"].get("reason")) for record in issuer]
    assert events == [
        ("token issued", None),
        ("token used", "joiner"),
        ("certificate issued", "joiner"),
        ("token refused", "TokenUsed"),
    ]
    joined = await asyncio.to_thread(_records, tmp_path / "b", "joiner")
    assert [record["event"] for record in joined] == ["enrolled"]


async def test_every_other_token_is_refused_by_its_own_name(tmp_path: Path) -> None:
    """Expired, tampered, forged, of another network: typed at the joiner, recorded at the issuer."""
    async with town(tmp_path / "a") as there:
        text = await there.target.invite(ttl_s=1, uses=1)
        short = Token.decode(text)
        await eventually(lambda: datetime.now(UTC) > short.expires_at + timedelta(seconds=0.1), what="it expired")
        await _refused(tmp_path / "b", text, "late", TokenExpired)

        good = await there.target.invite(ttl_s=600, uses=1)
        decoded = Token.decode(good)
        flipped = good[:-5] + ("A" if good[-5] != "A" else "B") + good[-4:]
        await _refused(tmp_path / "b", flipped, "tampered", TokenMalformed)
        await _refused(tmp_path / "b", "pm1.", "empty", TokenMalformed)
        other_secret = replace(decoded, secret=bytes(len(decoded.secret))).encode()
        await _refused(tmp_path / "b", other_secret, "forger", TokenUnknown)
        stretched = replace(short, expires_at=decoded.expires_at).encode()
        await _refused(tmp_path / "b", stretched, "stretcher", TokenExpired)

        with pytest.raises(EnrolmentRefused, match=r"taken|belongs"):
            await join(tmp_path / "b", "other", join_token=good)
        with pytest.raises(TokenError, match="network"):
            await join(tmp_path / "d", "foreign", join_token=good, network="elsewhere")
        async with await join(tmp_path / "e", "own"):
            pass
        with pytest.raises(DataDirectoryError, match="another network"):
            await join(tmp_path / "e", "own2", join_token=good)
        # After all of that, the good one is still good.
        async with await join(tmp_path / "f", "honest", join_token=good) as honest:
            await honest.wait_for_members(3, timeout_s=15)

    issuer = await asyncio.to_thread(_records, tmp_path / "a", "target")
    refusals = [record["fields"]["reason"] for record in issuer if record["event"] == "token refused"]
    assert {"TokenExpired", "EnrolmentRefused"} <= set(refusals)
