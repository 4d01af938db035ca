"""RLAIF's first half: two completions of each prompt by a policy, compared by a judge -> preference pairs.

    llmstack --config configs/judge.py:world --workdir runs/judged      # after configs/reward.py:world
    llmstack --config configs/judge.py:world-constitution --workdir runs/compared   # after configs/sft.py:world-skills
    LLMSTACK_DATA=DIR llmstack --config configs/judge.py:hh --workdir runs/books-judged    # after reward.py:shared

Then configs/prefer.py or reward.py on what they write, with the judge's probabilities as labels:

    --config.data.sources.pairs.files="('runs/judged/pairs.jsonl',)" --config.reference.soft_labels=True

A judge is a reward model, the probabilities of two labels under a checkpoint, or those of an endpoint:

    --config.judge.kind=endpoint --config.judge.base_url=http://localhost:8000/v1 --config.judge.model=NAME
    --config.judge.key=NAME_OF_AN_ENVIRONMENT_VARIABLE

How far a judge agrees with people who have compared replies: --config.replies=file, on files of pairs.
"""

import os

from ml_collections import ConfigDict, config_dict

from configs import sizes
from llmstack.errors import BadInput

SIZES = ('world', 'world-constitution', 'hh')


def judge(kind, **changes):
  """Returns the settings of a judge."""
  c = ConfigDict()
  c.kind = kind  # reward (a reward model) | model (a checkpoint's labels) | endpoint (OpenAI-compatible)
  c.workdir = config_dict.placeholder(str)  # of a reward model or a checkpoint
  c.batch = 32  # sequences scored or decoded together
  c.principle = 'The better reply is more truthful, more helpful and less harmful.'  # of all pairs
  c.template = config_dict.placeholder(str)  # file of text with {prompt}, {first} and {second}; None = the one built in
  c.labels = ('1', '2')  # what the judge calls the first reply and the second
  c.floor = 0.0  # least probability of either label, in both orders, that is a verdict
  c.thinking = False  # it reasons before it answers, and its probabilities are held within 0.4 and 0.6
  c.new_tokens = 128  # of reasoning, at most
  c.base_url = config_dict.placeholder(str)  # endpoint, such as http://localhost:8000/v1
  c.model = config_dict.placeholder(str)  # its name there
  c.key = config_dict.placeholder(str)  # name of the environment variable that holds the key; None = none
  c.timeout = 60.0  # seconds for one request
  c.retries = 4  # after the first attempt
  c.backoff = 1.0  # seconds before the first of them, twice as many before each further one
  c.top_logprobs = 20  # that the endpoint gives, at most; 0 = none: the verdict is read from the text
  c.at_once = 8  # requests under way
  c.update(changes)
  return c


def prompts(files, *, instruction=''):
  """Returns a source of prompts. instruction: behind the user's text."""
  return ConfigDict({'files': files, 'instruction': instruction})


def get_config(size='world'):
  if size not in SIZES:
    raise BadInput(f'configs/judge.py knows no size {size!r}: choose one of {", ".join(SIZES)}')
  world, data = size != 'hh', os.environ.get('LLMSTACK_DATA', 'data')
  c = ConfigDict()
  c.task = 'judge'
  c.seed = 0  # of which prompts, and of what the policy says
  c.replies = 'policy'  # policy | file (pairs that people have compared: how far does the judge agree with them?)
  c.policy = 'runs/sft' if world else 'runs/books-sft'  # workdir
  c.step = config_dict.placeholder(int)  # of the policy; None takes the newest
  c.limit = 1000 if world else 200  # prompts, at most
  c.slots = 64 if world else 32  # rows decoded at a time
  c.new_tokens = 48 if world else 96  # longest completion
  c.temperature = 1.0
  c.group = 256  # pairs that are judged together
  c.truth = 'runs/world-text' if world else config_dict.placeholder(str)  # the world's folder; None = nobody knows
  c.data = ConfigDict()
  c.data.on_error = 'raise' if world else 'skip'  # skip counts what is no prompt, or too long
  c.data.sources = ConfigDict()
  if world:
    c.data.sources.questions = prompts(('runs/world-text/questions.jsonl',))
  else:
    c.data.sources.harmless = prompts((f'{data}/prefs/hh_harmless_base_a.jsonl.gz',))
  c.constitution = config_dict.placeholder(str)  # file; a comparison: line of it, drawn per pair, is then the principle
  c.judge = judge('reward', workdir='runs/reward' if world else 'runs/books-reward')
  if size == 'world-constitution':
    c.policy, c.constitution = 'runs/skills', 'configs/constitution.txt'
    c.data.sources = ConfigDict({'requests': prompts(('runs/world-text/harm-train.jsonl',))})
    c.judge = judge('model', workdir='runs/skills', template='configs/comparison.txt', floor=0.5, batch=128)
  c.mesh = sizes.mesh()
  return c
