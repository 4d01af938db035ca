"""Supervised fine-tuning of a base model on conversations.

    llmstack --config configs/sft.py:world --workdir runs/sft      # after configs/pretrain.py:world
    LLMSTACK_DATA=DIR llmstack --config configs/sft.py:shared --workdir runs/books-sft     # after pretrain.py:books
    llmstack --config configs/sft.py:world-lora --workdir runs/sft-lora
    llmstack --config configs/sft.py:world-skills --workdir runs/skills     # goes on with sums and requests
    llmstack --config configs/sft.py:world-revised --workdir runs/revised   # on what configs/constitution.py wrote

A source is JSON lines or parquet with messages, prompt/completion, instruction/output or question/answer.
`shared` reads the instruction sets of DIR/sft. Measured: experiments/009-assistant.
"""

import os

from ml_collections import ConfigDict

from configs import tuning
from llmstack.errors import BadInput

SIZES = ('world', 'world-lora', 'world-skills', 'world-revised', 'shared')


def get_config(size='world'):
  if size not in SIZES:
    raise BadInput(f'configs/sft.py knows no size {size!r}: choose {", ".join(SIZES[:-1])} or {SIZES[-1]}')
  data = os.environ.get('LLMSTACK_DATA', 'data')
  world = size != 'shared'
  c = ConfigDict()
  c.task = 'sft'
  c.seed = 0
  tuning.common(c, world=world)
  c.checkpoint.init_from = 'runs/world' if world else 'runs/books'  # workdir of the model to tune

  if world:
    # Documents beside the chats keep facts alive that no chat asks.
    c.data.sources.chats = tuning.source(('runs/world-text/chats.jsonl',), weight=0.25, holdout=0.05)
    c.data.sources.documents = tuning.source(('runs/world-text/clean.jsonl',), weight=0.75, holdout=0.0, text=True)
  else:
    # By their tokens, about: an epoch or two of each in 600 steps.
    for name, weight in dict(creak=1.0, qasc=0.4, sensemaking=1.0, strategyqa=0.8).items():
      c.data.sources[name] = tuning.source((f'{data}/sft/flan_cot_{name}.jsonl.gz',), weight=weight)
    c.data.sources.oasst = tuning.source((f'{data}/sft/oasst_octopack_a.jsonl.gz',), weight=1.5)
    c.data.sources.dolly = tuning.source((f'{data}/sft/dolly_sample.jsonl.gz',), weight=0.15)
    c.data.sources.self_instruct = tuning.source((f'{data}/sft/self_instruct_seed.jsonl.gz',), weight=0.1)
    c.data.on_error = 'skip'  # 67 dialogues end with the user
    c.data.sources.taskmaster = tuning.source((f'{data}/sft/taskmaster4_dialogs_a.jsonl.zst',), weight=0.7)

  c.optim.lr = 1e-3 if world else 5e-4  # peak
  c.train.steps = 300 if world else 600
  c.train.z_loss = 0.0  # coefficient of log(Z)^2; 0 for none
  c.eval.every = c.train.steps if world else 300  # steps
  if size in ('world-skills', 'world-revised'):
    # Sums are reasoned out, and requests answered, as people do; what becomes of that is up to configs/rl.py and
    # configs/constitution.py.
    c.checkpoint.init_from = 'runs/sft'
    c.data.sources.chats.weight, c.data.sources.documents.weight = 0.15, 0.1
    c.data.sources.sums = tuning.source(('runs/world-text/sums.jsonl',), weight=0.8, holdout=0.0)
    c.data.sources.requests = tuning.source(('runs/world-text/harm-chats.jsonl',), weight=0.08, holdout=0.0)
    c.data.sources.skills = tuning.source(('runs/world-text/harm-skills.jsonl',), weight=0.15, holdout=0.0)
    c.train.steps = c.eval.every = 350
  if size == 'world-revised':
    c.checkpoint.init_from = 'runs/skills'
    c.data.sources.revised = tuning.source(('runs/constitution/chats.jsonl',), weight=0.3, holdout=0.0)
    del c.data.sources.requests  # people's answers to such requests, of which these are the better ones
    c.optim.lr, c.train.steps, c.eval.every = 2e-4, 50, 50
  if size == 'world-lora':
    c.lora.rank = 2
    c.lora.targets = ('wq', 'wk', 'wv', 'w_gate', 'w_up', 'w_down')
    c.lora.alpha = 1.0
    c.optim.lr, c.optim.b2, c.optim.clip = 2e-2, 0.99, float('inf')
    c.data.sources.documents.weight = 0.25
    c.train.steps = 500
    c.eval.every = 500
  return c
