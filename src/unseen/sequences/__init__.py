"""Sequences: length generalization of language models."""
