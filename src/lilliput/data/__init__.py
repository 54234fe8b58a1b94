"""Data sets as their publishers wrote them, the roles of their samples, and augmentation of batches."""
