"""Links between nodes: identity, TLS, WebSocket, MessagePack frames, queues.

Internal to peermesh: import from :mod:`mesh` instead.  This is the bottom layer, so it also owns the
vocabulary that every other layer shares (:mod:`transport.types`, :mod:`transport.errors`,
:mod:`transport.clock`).  Submodules are imported by name; this package root imports none of them, so that
a pure core can use :mod:`transport.wire` without dragging in an event loop.
"""
