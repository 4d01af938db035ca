"""Distillation of a teacher into a student, on conversations or on what the student says.

    llmstack --config configs/distill.py:world --workdir runs/distilled        # after configs/prefer.py:world
    llmstack --config configs/distill.py:on_policy --workdir runs/on-policy     # from the student's own answers

The student is half of the teacher's layers. Measured: experiments/009-assistant.
"""

from ml_collections import ConfigDict, config_dict

from configs import tuning
from llmstack.errors import BadInput


def get_config(size='world'):
  if size not in ('world', 'on_policy'):
    raise BadInput(f'configs/distill.py knows no size {size!r}: choose world or on_policy')
  c = ConfigDict()
  c.task = 'distill'
  c.seed = 0
  tuning.common(c, world=True)
  c.checkpoint.init_from = 'runs/dpo'  # workdir of the student
  c.student = ConfigDict()
  c.student.layers = (0, 2)  # of init_from, which the student begins with; () keeps all

  c.teacher = ConfigDict()
  c.teacher.workdir = 'runs/dpo'
  c.teacher.top_k = config_dict.placeholder(
    int
  )  # store so many log-probs per token beside the rows; None = all, online

  c.objective = ConfigDict()
  c.objective.on_policy = size == 'on_policy'  # learn from the student's own answers to the prompts of the data
  c.objective.beta = 1.0 if size == 'on_policy' else 0.0  # 0: KL(teacher || student), 1: reverse, between: JSD
  c.objective.temperature = 1.0  # of both distributions
  c.objective.t_squared = False  # times temperature^2, as Hinton
  c.objective.tail = 'bucket'  # what top_k leaves out: bucket (one more outcome) | renormalise
  c.objective.ce = 0.0  # weight of the cross-entropy with the data
  c.objective.sampling_temperature = 1.0  # of on-policy answers
  c.objective.new_tokens = 48  # at most, of an on-policy answer

  c.data.sources.chats = tuning.source(('runs/world-text/chats.jsonl',), holdout=0.05)
  if size == 'on_policy':
    c.data.packing = 'padded'
  else:  # what the teacher knows besides, too
    c.data.sources.documents = tuning.source(('runs/world-text/clean.jsonl',), weight=2.0, holdout=0.0, text=True)
  c.optim.lr = 2e-3  # peak
  c.train.steps = 300
  c.eval.every = 300  # steps
  return c
