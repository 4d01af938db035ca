"""The embedded world: text with known truth, for a machine without data or network.

    llmstack --config configs/world.py --workdir runs/world-text

Writes documents.jsonl, clean.jsonl, labels.jsonl, facts.jsonl; for after pretraining chats.jsonl,
questions.jsonl, pairs.jsonl and pairs-eval.jsonl; manifest.json; sums to be reasoned out, sums*.jsonl;
and requests, some of which should be refused, harm-*.jsonl; seconds.
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
  c.sums = ConfigDict()  # of three to five numbers, to be reasoned out
  c.sums.shown = 4_000  # demonstrations, as people work; sums-careful.jsonl has them as they should
  c.sums.prompts = 4_000  # to learn from reward
  c.sums.judged = 400  # on sets of numbers that neither of them has
  c.harm = ConfigDict()  # requests to be refused, and others like them
  c.harm.chats = 2_000  # of people who refuse next to nothing
  c.harm.skills = 3_000  # exercises: critique, revision, comparison
  c.harm.prompts = 600  # to draft answers to
  c.harm.judged = 400  # on persons, or actions on things, that no other file has
  return c
