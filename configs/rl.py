"""Learning from reward: PPO against a reward model, GRPO and its family against a checkable answer, online DPO.

    llmstack --config configs/rl.py:world-ppo --workdir runs/ppo        # after configs/reward.py:world
    llmstack --config configs/rl.py:world-grpo --workdir runs/grpo      # after configs/sft.py:world-skills
    LLMSTACK_DATA=DIR llmstack --config configs/rl.py:math-grpo --workdir runs/math     # after configs/sft.py:shared

Instead of grpo: dr_grpo, dapo, bnpo, gspo, cispo, sapo, rloo, reinforce_pp, remax, online_dpo. What each of them is
made of stands in llmstack/losses/policy.py and, as settings, below. Measured: experiments/010-reward.
"""

import os

from ml_collections import ConfigDict, config_dict

from configs import tuning
from llmstack.errors import BadInput

# What each algorithm sets under objective, kl and rollout, besides what is plain below.
ALGORITHMS = {
  'ppo': {'objective.aggregate': 'token', 'objective.whiten': True, 'objective.epochs': 2},
  'grpo': {'objective.aggregate': 'sequence'},
  'dr_grpo': {'objective.aggregate': 'constant', 'objective.scale': 'none'},
  'dapo': {'objective.clip_high': 0.28, 'rollout.dynamic': True, 'rollout.rounds': 4},
  'bnpo': {'objective.aggregate': 'microbatch'},
  'gspo': {
    'objective.ratio': 'sequence', 'objective.aggregate': 'sequence', 'objective.clip_low': 3e-4,
    'objective.clip_high': 4e-4,
  },
  'cispo': {'objective.surrogate': 'cispo', 'objective.clip_low': 1.0, 'objective.clip_high': 4.0},
  'sapo': {'objective.surrogate': 'sapo', 'objective.tau': (1.0, 1.05), 'objective.aggregate': 'sequence'},
  'rloo': {
    'objective.baseline': 'leave_one_out', 'objective.scale': 'none', 'objective.ratio': 'sequence_sum',
    'objective.aggregate': 'sequence', 'kl.placement': 'reward', 'kl.estimator': 'k1', 'kl.beta': 0.03,
  },
  'reinforce_pp': {'objective.baseline': 'none', 'objective.scale': 'none', 'objective.whiten': True},
  'remax': {'objective.baseline': 'greedy', 'objective.scale': 'none'},
  'online_dpo': {'objective.kind': 'dpo'},
}  # fmt: skip
PLACES = ('world', 'math')


def get_config(size='world-grpo'):
  where, _, kind = size.partition('-')
  if where not in PLACES or kind not in ALGORITHMS:
    known = f'{" or ".join(PLACES)}, a dash, and one of {", ".join(ALGORITHMS)}'
    raise BadInput(f'configs/rl.py knows no size {size!r}: it is {known}')
  world, data = where == 'world', os.environ.get('LLMSTACK_DATA', 'data')
  c = ConfigDict()
  c.task = 'rl'
  c.seed = 0
  tuning.common(c, world=world)
  sums = world and kind != 'ppo'
  c.checkpoint.init_from = 'runs/skills' if sums else 'runs/sft' if world else 'runs/books-sft'  # workdir of the policy

  c.rollout = ConfigDict()
  c.rollout.prompts = 32 if sums else 8 if world else 4  # P, different prompts of a step
  c.rollout.samples = 8  # M, completions of each
  c.rollout.new_tokens = 40 if sums else 48 if world else 128  # longest completion
  c.rollout.temperature = 1.0  # of the sampler, and of every log-prob of the learner
  c.rollout.slots = 128 if sums else 64 if world else 32  # rows decoded at a time
  c.rollout.refill = 32 if sums else 16 if world else 8  # rows that are free before the queue is looked at
  c.rollout.gate = 1e-4  # largest difference of a log-prob between sampler and learner; bfloat16 needs more
  c.rollout.dynamic = False  # sample other prompts in place of those whose completions are all worth the same (DAPO)
  c.rollout.rounds = 1  # of sampling in a step, with dynamic
  c.rollout.gold = config_dict.placeholder(str)  # the reward that counts, whatever is trained on; None = none known
  c.rollout.alarm = 20  # steps over which a rising reward and a falling gold one are compared

  c.rewards = ConfigDict()
  c.objective = ConfigDict()
  c.objective.kind = 'policy'  # policy | dpo (online: the best and the worst completion of a prompt)
  c.objective.baseline = 'mean'  # of a group: mean | leave_one_out | greedy | none
  c.objective.scale = 'group'  # standard deviation that advantages are divided by: group | batch | none
  c.objective.eps = 1e-4  # added to it
  c.objective.whiten = False  # advantages over all tokens of the rollout
  c.objective.scale_rewards = False  # by the running mean and spread of all rewards so far
  c.objective.mask_truncated = False  # leave out what the budget ended, of its group's mean too (TRL: not of that)
  c.objective.epochs = 1  # passes over a rollout, in minibatches of data.batch rows
  c.objective.old = 'sampler'  # whose log-probs the ratio is against: sampler | learner (read again before the updates)
  c.objective.importance = config_dict.placeholder(float)  # bound of learner / sampler as a weight; None = no weight
  c.objective.importance_level = 'token'  # token | sequence
  c.objective.importance_beyond = 'truncate'  # truncate | mask, what is above the bound
  c.objective.ratio = 'token'  # token | sequence (its geometric mean) | sequence_sum
  c.objective.surrogate = 'clip'  # clip | cispo | sapo
  c.objective.clip_low = 0.2  # the ratio's bounds are 1 - clip_low and 1 + clip_high
  c.objective.clip_high = 0.2
  c.objective.dual_clip = config_dict.placeholder(float)  # bound of the ratio for negative advantages; None = none
  c.objective.tau = config_dict.placeholder(tuple)  # sapo: temperatures of positive and other advantages
  c.objective.aggregate = 'token'  # mean over: token | sequence | constant | microbatch
  c.objective.divisor = config_dict.placeholder(int)  # of constant: tokens
  c.objective.entropy = 0.0  # coefficient of the entropy bonus
  c.objective.beta = 0.1  # dpo
  c.objective.terms = ConfigDict({'sigmoid': 1.0})  # dpo: name: weight

  c.kl = ConfigDict()
  c.kl.placement = 'watch'  # of the KL to the policy at the start: none | watch (only logged) | loss | reward
  c.kl.estimator = 'k3'  # k1 | k2 | k3
  c.kl.gradient = 'plain'  # of one in the loss: plain | ratio (the estimate times pi / old)
  c.kl.beta = 0.04  # coefficient
  c.kl.target = config_dict.placeholder(float)  # nats per completion that beta is adapted to; None = beta stays
  c.kl.horizon = 10_000  # completions, of the adaptation

  c.critic = ConfigDict()
  c.critic.kind = 'none'  # none | shared (a head on the policy's hidden states) | separate (another model)
  c.critic.workdir = config_dict.placeholder(str)  # where a separate one begins; None = as the policy
  c.critic.gamma = 1.0  # discount
  c.critic.lam = 0.95  # of GAE
  c.critic.clip = 0.2  # of the value around that before the updates; inf for none
  c.critic.coefficient = 0.1  # of its error in the loss

  for key, value in ALGORITHMS[kind].items():
    section, _, leaf = key.partition('.')
    c[section][leaf] = value
  if kind == 'dr_grpo':
    c.objective.divisor = c.rollout.new_tokens
  if kind == 'ppo':
    c.critic.kind = 'shared'
    # Of a small reward model little is true: with 0.05 the policy finds that out within 40 steps.
    c.kl.placement, c.kl.estimator, c.kl.beta = 'reward', 'k1', 0.3

  c.data.sources = ConfigDict()
  if world and kind == 'ppo':
    c.rewards.model = reward('model', workdir='runs/reward', batch=64)
    c.rewards.world = reward('world', weight=0.0, folder='runs/world-text')
    c.rollout.gold = 'world'
    c.data.sources.pairs = prompts(('runs/world-text/pairs.jsonl',), holdout=0.05)
  elif world:
    c.rewards.answer = reward('numeric')
    c.data.sources.sums = prompts(('runs/world-text/sums-train.jsonl',))
    c.data.sources.held_out = prompts(('runs/world-text/sums-eval.jsonl',), holdout=1.0)
  else:
    c.rewards.answer = reward('numeric')
    c.rewards.unended = reward('unended', weight=-0.1)
    c.data.sources.gsm8k = prompts((f'{data}/math/gsm8k_train.jsonl.gz',))
    c.data.sources.svamp = prompts((f'{data}/math/svamp_a.jsonl.gz',), holdout=0.2)
    c.data.sources.sums = prompts((f'{data}/math/simple_arithmetic_*.jsonl.gz',), holdout=0.2)
    c.data.sources.gsm8k_test = prompts((f'{data}/math/gsm8k_test_a.jsonl.gz',), holdout=1.0)
  c.data.packing = 'best_fit' if sums and kind != 'online_dpo' else 'padded'  # padded | best_fit
  c.data.length = 128 if world else 384  # T, tokens of the longest prompt and its completion
  c.data.batch = c.rollout.prompts * (1 if kind == 'online_dpo' else c.rollout.samples)  # rows per update

  c.optim.lr = 2e-4 if kind == 'ppo' else 1e-4  # peak
  c.optim.schedule = 'constant'
  c.optim.warmup = 5  # steps
  c.train.steps = 12 if sums else 32 if world else 60
  c.train.log_every = 1
  c.eval.every = c.train.steps if world else 20  # steps
  c.eval.rows = 400 if sums else 200  # prompts per source, at most
  c.eval.prompts = ()
  c.eval.new_tokens = c.rollout.new_tokens
  c.eval.samples = 1  # completions of each; of more than one the best is reported too
  c.eval.temperature = 0.0  # 0 = greedy
  c.eval.shown = 4  # completions per source that are logged
  c.checkpoint.every = 20
  return c


def reward(kind, *, weight=1.0, **options):
  """Returns one part of the reward; see llmstack/tasks/rewarded.py for kinds and their options."""
  return ConfigDict({'kind': kind, 'weight': weight, **options})


def prompts(files, *, holdout=0.0, instruction=''):
  """Returns a source of prompts. holdout: share that is only evaluated on. instruction: behind the user's text."""
  return ConfigDict({'files': files, 'holdout': holdout, 'instruction': instruction})
