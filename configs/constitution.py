"""Constitutional AI, first stage: drafts of a model, criticised and revised by itself as a constitution asks.

    llmstack --config configs/constitution.py --workdir runs/constitution       # after configs/sft.py:world-skills
    llmstack --config configs/constitution.py --workdir runs/constitution --config.show=5       # reads what it wrote
    llmstack --config configs/sft.py:world-revised --workdir runs/revised       # SFT on the revisions

The pairs are (revision, draft), for configs/prefer.py: --config.data.sources.pairs.files="('runs/.../pairs.jsonl',)".
"""

from ml_collections import ConfigDict, config_dict

from configs import sizes


def get_config():
  c = ConfigDict()
  c.task = 'constitution'
  c.seed = 0  # of drafts, and of which principle
  c.model = 'runs/skills'  # workdir of the assistant that drafts, criticises and revises
  c.step = config_dict.placeholder(int)  # None takes the newest
  c.constitution = 'configs/constitution.txt'
  c.files = ('runs/world-text/harm-train.jsonl',)  # of prompts, any form that configs/rl.py reads
  c.on_error = 'raise'  # raise | skip (counted)
  c.rounds = 2  # of critique and revision
  c.critique = 'Question: {request}\nAnswer: {draft}\n{ask}'  # what is asked; {ask} is the principle's
  c.revision = 'Question: {request}\nAnswer: {draft}\nCritique: {critique}\n{ask}'
  c.fine = 'No'  # how a critique begins after which no revision is asked for; '' always asks, as the paper does
  c.temperature = 0.7  # of drafts
  c.second_temperature = 0.0  # of critiques and revisions
  c.new_tokens = 32  # at most, of a draft, a critique or a revision
  c.batch = 128  # texts at once
  c.group = 300  # prompts that are written together: what a killed run loses at most
  c.show = 0  # conversations to print of what is there, in place of a run
  c.mesh = sizes.mesh()
  return c
