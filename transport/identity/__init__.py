"""Who a node is: keys, certificates, the network's authority, joining, and the record of it (internal).

``names`` (what a certificate says) -> ``certificates`` (building and judging them) -> ``authority`` (the one that
signs) -> ``credentials`` (what one node needs to run) -> ``tls`` (contexts for both ends).  ``invites``, ``enrolment``
(issuing side) and ``joining`` (joining side) admit a node whose disk knows nothing of the network yet; ``audit`` keeps
what was decided.  The formats are specified in ``docs/protocol/identity.md``.

Everything but :func:`joining.enrol` and the methods of :class:`enrolment.EnrolmentDesk` is synchronous and touches the
disk or does public-key arithmetic: on an event loop, call it through ``asyncio.to_thread``.
"""
