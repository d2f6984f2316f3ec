"""How the replicas of a document come to be equal: live updates, repair, and who replicates what."""
