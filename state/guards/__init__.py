"""What stands between the network and pycrdt: validation of updates, order of delivery, exact values."""
