"""Builders of what is bundled; run from the root of the repository, as `python -m tools.build_emoji`."""
