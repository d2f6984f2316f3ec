"""What a document's multicast group is called.

Groups of documents and of messages share gossip's names.  Those of documents begin with a character that no user's
group may begin with, so that nobody can publish into a document by accident.
"""

# core: no I/O

from __future__ import annotations

from typing import Final

#: How the group of every document begins.
PREFIX: Final = "\0document:"
#: The longest name of a document, in characters: what gossip and the profile of a node take.
NAME_CHARS_MAX: Final = 200


def group_of(document: str) -> str:
    """The group of a document."""
    return PREFIX + document


def document_of(group: str) -> str | None:
    """The document of a group; ``None``: the group is not a document's."""
    return group.removeprefix(PREFIX) if group.startswith(PREFIX) else None
