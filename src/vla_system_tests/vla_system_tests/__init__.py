"""Tests that start the real nodes as real processes, and what they need for that."""
