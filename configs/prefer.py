"""Preference optimisation of a policy: the DPO family, CPO, SimPO, ORPO and KTO.

    llmstack --config configs/prefer.py:world --workdir runs/dpo         # DPO, after configs/sft.py:world
    llmstack --config configs/prefer.py:world-simpo --workdir runs/simpo     # or -cpo, -orpo, -kto
    LLMSTACK_DATA=DIR llmstack --config configs/prefer.py:shared --workdir runs/books-dpo    # after sft.py:shared

The settings under `objective` are the arguments of the function of that name in llmstack/losses/preference.py, which
gives each one's source. Others of the family are terms, such as

    --config.objective.terms="{'ipo': 1.0}"        IPO; TRL's divides by the length: --config.objective.normalise=True
    --config.objective.terms="{'sigmoid': 0.8, 'bco_pair': 0.2, 'sft': 1.0}"       MPO

Measured: experiments/009-assistant.
"""

import os

from ml_collections import ConfigDict, config_dict

from configs import tuning
from llmstack.errors import BadInput

SIZES = [f'{where}{kind}' for where in ('world', 'shared') for kind in ('', '-cpo', '-simpo', '-orpo', '-kto')]


def get_config(size='world'):
  if size not in SIZES:
    raise BadInput(f'configs/prefer.py knows no size {size!r}: choose one of {", ".join(SIZES)}')
  where, _, kind = size.partition('-')
  kind, world, data = kind or 'dpo', where == 'world', os.environ.get('LLMSTACK_DATA', 'data')
  c = ConfigDict()
  c.task = 'prefer'
  c.seed = 0
  tuning.common(c, world=world)
  c.checkpoint.init_from = 'runs/sft' if world else 'runs/books-sft'  # workdir of the policy to tune

  c.objective = ConfigDict()
  c.objective.kind = kind  # dpo | cpo | simpo | orpo | kto
  if kind in ('dpo', 'cpo'):
    c.objective.terms = ConfigDict({'sigmoid': 1.0})  # name: weight; of TERMS
    if kind == 'cpo' or world:  # with the chosen one's NLL, as RPO: without it a small model forgets its facts
      c.objective.terms.sft = 1.0 if kind == 'cpo' else 0.2
    c.objective.normalise = False  # divide log-ratios by the length of the completion
  if kind == 'dpo':
    c.objective.divergence = 'reverse_kl'  # reverse_kl | forward_kl | js | alpha
    c.objective.alpha = config_dict.placeholder(float)  # of divergence alpha
    c.objective.ld_alpha = config_dict.placeholder(float)  # LD-DPO: weight of what is longer than the other; None = 1
    c.objective.wpo = False  # weight pairs by how likely the policy is to say them
  if kind == 'simpo':
    c.objective.gamma = 1.0  # margin, absolute: beta times the gamma of configurations that give gamma / beta
    c.objective.nll = 0.0  # coefficient of the chosen one's NLL
    c.objective.alpha = 0.0  # AlphaPO; 0 = SimPO
  if kind == 'orpo':
    c.objective.lambda_or = 0.1  # weight of the odds ratio
    c.objective.nll_on_prompt = True  # the NLL is of prompt and completion, as in the paper and TRL
    c.objective.nll_per_pair = False  # the mean of each pair's mean, instead of the mean over tokens
  if kind == 'kto':
    c.objective.lambda_d = 1.0  # weight of desirable completions
    c.objective.lambda_u = 1.0  # of undesirable ones
  if kind != 'orpo':
    c.objective.beta = {'dpo': 0.1, 'cpo': 0.1, 'simpo': 2.0, 'kto': 0.1}[kind]  # 1 / temperature of implicit rewards
  if kind in ('dpo', 'cpo', 'simpo'):
    c.objective.label_smoothing = 0.0  # probability that a label is wrong

  c.reference = ConfigDict()
  c.reference.kind = 'frozen'  # frozen (a copy; with lora.rank the base) | precomputed (stored beside the rows)
  c.reference.soft_labels = False  # read the probability that chosen is better from the file's label
  c.reference.every = config_dict.placeholder(int)  # TR-DPO: steps between updates of the reference; None = never
  c.reference.mix = 0.6  # share of the policy in such an update

  if world and kind != 'kto':
    c.data.sources.pairs = tuning.source(('runs/world-text/pairs.jsonl',), holdout=0.05)
  elif world:
    c.data.sources.rated = tuning.source(('runs/world-text/pairs.jsonl',), holdout=0.05)
  else:
    c.data.on_error = 'skip'  # nine of them have an empty turn, or two in a row
    c.data.sources.harmless = tuning.source((f'{data}/prefs/hh_harmless_base_a.jsonl.gz',), holdout=0.2)
    c.data.too_long = 'truncate'
  if kind in ('dpo', 'cpo', 'simpo'):  # ORPO reads the log-probs of prompts, KTO one completion at a time
    c.data.prompt = tuning.prompt(world)
  c.data.batch = 8 if world else 4  # rows of pairs per step

  c.optim.lr = 1e-4 if world else 5e-6  # peak
  c.optim.warmup = 10
  c.train.steps = 100 if world else 300
  c.train.log_every = 10
  return c
