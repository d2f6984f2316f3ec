"""How a command line talks to the node that runs on the same machine: a socket that only its user can open.

:mod:`.protocol` says what the lines are, :mod:`.operations` what each request does, :mod:`.server` answers inside
``mesh up``, :mod:`.client` asks without an event loop so that a command starts fast, and :mod:`.locate` finds the
socket.
"""
