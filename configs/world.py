"""The embedded world: text with known truth, for a machine without data or network.

    llmstack --config configs/world.py --workdir runs/world-text

Writes documents.jsonl, clean.jsonl, labels.jsonl, facts.jsonl and manifest.json; seconds.
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.task = 'world'
  c.seed = 0
  c.documents = 20_000
  c.noise = 0.2  # share of boilerplate, spam, duplicates and made-up toxic words in documents.jsonl
  return c
