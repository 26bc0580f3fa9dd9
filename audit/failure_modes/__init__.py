"""Failure modes: what claims to be one, its name, and what real images say of it. One file a kind."""
