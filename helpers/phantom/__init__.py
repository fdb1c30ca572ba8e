"""Simulated studies and images whose truth is known."""
