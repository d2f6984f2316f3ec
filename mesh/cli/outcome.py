"""How a command ends: its exit code, and what it says when it failed.

====  =============================================================================
code  meaning
====  =============================================================================
0     done
1     failed
2     usage: an argument, a setting, or a choice between nodes that must be made
3     no such node, network or agent; no node runs here
4     not authorised: certificate, token, key file
5     timed out
130   interrupted by a second Ctrl-C
====  =============================================================================
"""

from __future__ import annotations

import enum
import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer

from mesh.control.protocol import error_document
from mesh.errors import (
    AmbiguousNode,
    CertificateRejected,
    ConfigError,
    InsecureKeyFile,
    InvalidAddress,
    InvalidMessage,
    InvalidName,
    MeshError,
    NodeNotRunning,
    TokenError,
    TokenMalformed,
    UnknownAgent,
    UnknownKey,
    UnknownLetter,
    UnknownNode,
    UnknownState,
)


class ExitCode(enum.IntEnum):
    """See the table above."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_AUTHORISED = 4
    TIMED_OUT = 5
    INTERRUPTED = 130


# The first class that fits decides, so a subclass stands before its base.
_CODES: Final[tuple[tuple[type[BaseException], ExitCode], ...]] = (
    (TimeoutError, ExitCode.TIMED_OUT),
    (TokenMalformed, ExitCode.USAGE),
    (TokenError, ExitCode.NOT_AUTHORISED),
    (CertificateRejected, ExitCode.NOT_AUTHORISED),
    (InsecureKeyFile, ExitCode.NOT_AUTHORISED),
    (ConfigError, ExitCode.USAGE),
    (InvalidName, ExitCode.USAGE),
    (InvalidAddress, ExitCode.USAGE),
    (InvalidMessage, ExitCode.USAGE),
    (AmbiguousNode, ExitCode.USAGE),
    (NodeNotRunning, ExitCode.NOT_FOUND),
    (UnknownNode, ExitCode.NOT_FOUND),
    (UnknownAgent, ExitCode.NOT_FOUND),
    (UnknownLetter, ExitCode.NOT_FOUND),
    (UnknownState, ExitCode.NOT_FOUND),
    (UnknownKey, ExitCode.NOT_FOUND),
)


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code for a command that ended with ``error``."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.FAILED)


@contextmanager
def reported(*, as_json: bool) -> Iterator[None]:
    """Turn an error inside into one paragraph on stderr, or one JSON document on stdout, and the exit code."""
    try:
        yield
    except MeshError as error:
        fail(error, as_json=as_json)
    except BrokenPipeError:
        # The reader (`head`, say) has what it wanted.  Python would complain once more when it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(ExitCode.OK) from None
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:  # noqa: BLE001 - a bug of ours: its user gets a sentence, its finder the traceback
        if os.environ.get("MESH_LOGS__LEVEL", "").lower() == "debug":
            traceback.print_exc()
        unexpected = MeshError(
            f"unexpected {type(error).__name__}: {error}",
            hint="this is a bug; run again with MESH_LOGS__LEVEL=debug for the traceback",
            changed=True,
        )
        fail(unexpected, as_json=as_json)


def fail(error: BaseException, *, as_json: bool) -> None:
    """Say what failed and exit.

    Raises:
        typer.Exit: Always.
    """
    document = error_document(error)
    if as_json:
        print(json.dumps(document), flush=True)
    else:
        hint = f" ({document['hint']})" if document["hint"] else ""
        print(f"mesh: {document['message']}{hint}", file=sys.stderr, flush=True)
    raise typer.Exit(exit_code_of(error))
