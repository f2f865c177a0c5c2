"""Published sets that torchvision reads: facts of each, their cards, and the reading."""
