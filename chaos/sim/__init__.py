"""The protocol ring: gossip cores alone, on a simulated network, in virtual time.

``mesh sim`` runs it (:mod:`chaos.sim.command`).  A :class:`~chaos.sim.plan.Plan` is data: how many nodes, what the
network is like, and what happens in which order.  :mod:`chaos.sim.scenarios` draws plans from a seed,
:mod:`chaos.sim.runner` carries one out in a :class:`~chaos.sim.world.World`, :mod:`chaos.sim.checkers` look at every
transition, and :mod:`chaos.sim.shrink` makes a failing plan small.  See ``docs/simulation.md``.
"""
