"""The embedded world: text with known truth, for a machine without data or network.

    llmstack --config configs/world.py --workdir runs/world-text

Writes documents.jsonl, clean.jsonl, labels.jsonl, facts.jsonl; for after pretraining chats.jsonl,
questions.jsonl, pairs.jsonl and pairs-eval.jsonl; and manifest.json; seconds.
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.task = 'world'
  c.seed = 0
  c.documents = 20_000
  c.noise = 0.2  # share of boilerplate, spam, duplicates and made-up toxic words in documents.jsonl
  c.chats = 4_000  # conversations
  c.pairs = 3_000  # preference pairs, on the facts of chats
  c.eval_pairs = 600  # preference pairs, on facts that no chat asks
  return c
