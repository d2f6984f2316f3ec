"""The open invites on disk: counted exactly, whoever asks at once."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from identities import make_credentials

from transport.errors import DataDirectoryError, IdentityError, TokenExpired, TokenUnknown, TokenUsed
from transport.identity.invite_store import INVITES_MAX, Invite, InviteStore
from transport.identity.invites import GRACE, build_invite_authority, new_token
from transport.types import Address

NOW = datetime.now(UTC).replace(microsecond=0)
LIFE = timedelta(hours=1)  # other processes judge it by their own clock: longer than a slow run of all tests


def make_invite(tmp_path: Path, *, uses: int = 1) -> tuple[InviteStore, Invite]:
    """A store with one invite."""
    own = make_credentials(tmp_path)
    token = new_token(own.network, own.authority_certificate, [Address("h", 1)], now=NOW, ttl=LIFE)
    invite = Invite(token.invite_id, build_invite_authority(token, now=NOW), token.expires_at, uses)
    store = InviteStore(tmp_path / "default")
    store.add(invite, now=NOW)
    return store, invite


def test_an_invite_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    """Another process reads the same; the secret is nowhere in the file."""
    _, invite = make_invite(tmp_path)
    assert InviteStore(tmp_path / "default").open_invites(now=NOW) == [invite]
    assert InviteStore(tmp_path / "default").find(invite.invite_id, now=NOW) == invite
    path = tmp_path / "default" / "ca" / "invites.json"
    assert "secret" not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


def test_uses_are_counted(tmp_path: Path) -> None:
    """The same request again is free; one more than allowed is refused."""
    store, invite = make_invite(tmp_path, uses=2)
    assert store.take(invite.invite_id, "a", now=NOW)
    assert not store.take(invite.invite_id, "a", now=NOW)
    assert store.take(invite.invite_id, "b", now=NOW)
    with pytest.raises(TokenUsed):
        store.take(invite.invite_id, "c", now=NOW)
    assert not store.take(invite.invite_id, "b", now=NOW)


def test_invites_expire_and_are_forgotten(tmp_path: Path) -> None:
    """After the expiry they say so; after the grace they are unknown, and the next write drops them."""
    store, invite = make_invite(tmp_path)
    with pytest.raises(TokenExpired):
        store.take(invite.invite_id, "a", now=NOW + LIFE + timedelta(seconds=1))
    late = NOW + LIFE + GRACE + timedelta(seconds=1)
    assert store.open_invites(now=late) == []
    with pytest.raises(TokenUnknown):
        store.find(invite.invite_id, now=late)
    with pytest.raises(TokenUnknown):
        store.take("other", "a", now=NOW)
    store.add(Invite("x", invite.certificate, late + LIFE, 1), now=late)
    assert [one.invite_id for one in store.open_invites(now=NOW)] == ["x"]


def test_eight_processes_share_three_uses(tmp_path: Path) -> None:
    """Exactly three of them get one."""
    _, invite = make_invite(tmp_path, uses=3)
    code = (
        "import sys,pathlib,datetime; from transport.identity.invite_store import InviteStore;"
        "from transport.errors import TokenUsed\n"
        "store = InviteStore(pathlib.Path(sys.argv[1])); print('ready', flush=True); sys.stdin.readline()\n"
        "try: print(store.take(sys.argv[2], sys.argv[3], now=datetime.datetime.now(datetime.UTC)))\n"
        "except TokenUsed: print('used')\n"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "default"), invite.invite_id, f"node-{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    outcomes = sorted(child.communicate(timeout=60)[0].strip() for child in children)
    assert outcomes == ["True"] * 3 + ["used"] * 5


def test_open_invites_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a trust anchor in every handshake."""
    store, invite = make_invite(tmp_path)
    many = [Invite(f"i{number}", invite.certificate, invite.expires_at, 1) for number in range(INVITES_MAX)]
    with monkeypatch.context() as patched:
        patched.setattr(store, "_read", lambda: many)
        with pytest.raises(IdentityError, match="invites are open"):
            store.add(invite, now=NOW)
    with pytest.raises(IdentityError, match="times"):
        store.add(Invite("x", invite.certificate, invite.expires_at, 0), now=NOW)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"version": 2, "invites": []}',
        '{"version": 1, "invites": {"a": 1}}',
        '{"version": 1, "invites": [{}]}',
        '{"version": 1, "invites": 5}',
        '{"version": 1, "invites": [{"id": "a", "certificate": "x", "expires_at": 1, "uses_left": 1, "used_by": []}]}',
        '{"version": 1, "invites": [{"id": "a", "certificate": "x", "expires_at": 1, "uses_left": 1, "used_by": 1}]}',
        "\x00" * 100,
        "[" * 100_000,
    ],
)
def test_a_damaged_store_is_an_error(tmp_path: Path, content: str) -> None:
    """Invites may be void; nothing is admitted by guesswork."""
    store, invite = make_invite(tmp_path)
    path = tmp_path / "default" / "ca" / "invites.json"
    path.write_text(content)
    for call in (lambda: store.open_invites(now=NOW), lambda: store.take(invite.invite_id, "a", now=NOW)):
        with pytest.raises(DataDirectoryError, match=f"rm {path}"):
            call()
