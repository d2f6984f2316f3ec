"""The errors that users catch."""

from __future__ import annotations

import pytest

from mesh import errors as m


def test_everything_public_is_listed() -> None:
    """__all__ names each error of the module, its own and the lower layers', once."""
    classes = [name for name, value in vars(m).items() if isinstance(value, type) and issubclass(value, m.MeshError)]

    assert sorted(m.__all__) == sorted(classes)


def test_everything_is_a_mesh_error() -> None:
    """One except clause catches all that peermesh raises on purpose."""
    for name in m.__all__:
        assert issubclass(getattr(m, name), m.MeshError)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (m.RequestTimeout, TimeoutError),
        (m.DeliveryTimeout, TimeoutError),
        (m.InvalidMessage, ValueError),
        (m.PayloadTooLarge, ValueError),
        (m.ConfigError, ValueError),
        (m.UnknownAgent, LookupError),
        (m.UnknownNode, LookupError),
    ],
)
def test_errors_are_also_what_python_calls_them(error: type[m.MeshError], builtin: type[Exception]) -> None:
    """Who knows only Python's own errors catches ours as well."""
    assert issubclass(error, builtin)


def test_uncertain_errors_say_that_something_may_have_changed() -> None:
    """A caller that wants to send again can tell when that may double the effect."""
    assert m.DeliveryUncertain("x").changed
    assert m.RequestTimeout("x").changed
    assert m.RemoteError("x").changed
    assert not m.NotDelivered("x").changed
    assert not m.UnknownAgent("x").changed


def test_a_remote_error_names_its_kind() -> None:
    """The class that the remote handler raised is an attribute, the hint part of the text."""
    error = m.RemoteError("boom", kind="KeyError", hint="look there")

    assert (error.kind, error.message, str(error)) == ("KeyError", "boom", "boom (look there)")
