"""What a model of the embedded world knows: completions of facts by how they were told.

    llmstack --config configs/recall.py --workdir runs/world

Facts are `qa` (told in sentences and in questions with answers), `statement` (never answered) or
`unseen` (never told: whatever is right here was guessed).
"""

from ml_collections import ConfigDict

from configs import sizes


def get_config():
  c = ConfigDict()
  c.task = 'recall'
  c.world = 'runs/world-text'  # the folder of configs/world.py
  c.wording = 0  # which of the world's wordings is completed
  c.answer_tokens = 16
  c.quizzes = 90  # questions, shown three to a page
  c.batch = 128  # prompts decoded together
  c.mesh = sizes.mesh()
  return c
