"""One file a paper: what it claims, and a runnable experiment that can refute it."""

from unseen.papers.base import Card, Claim, Condition, Judgement, Reproduction, Row

__all__ = ["Card", "Claim", "Condition", "Judgement", "Reproduction", "Row"]
