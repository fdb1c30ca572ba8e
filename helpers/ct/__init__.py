"""Chest CT studies: from a NIfTI file to the array that a network sees, and cohorts of them."""
