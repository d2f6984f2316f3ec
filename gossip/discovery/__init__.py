"""How nodes that do not know each other's addresses find one another.

Internal to peermesh: import from :mod:`mesh` instead.  :mod:`.base` says what a way of finding nodes is;
:mod:`.mdns` (the local network) and :mod:`.bootstrap` (a list of addresses) are the two that come with it.
What any of them says is a hint: only the TLS handshake proves who answers.

Nothing is imported here, so that a node without mDNS does not pay for zeroconf.
"""
