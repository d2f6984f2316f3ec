"""End-to-end encryption of what agents say to each other (``docs/protocol/e2e.md``)."""
