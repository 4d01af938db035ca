"""nanoGPT's CPU setting: a character model of Shakespeare, 4 layers, D 128, T 64, B 12, 2,000 steps.

    LLMSTACK_DATA=DIR llmstack --config configs/shakespeare.py --workdir runs/shakespeare

Source: nanoGPT README, "I only have a macbook": validation loss 1.88. Here: experiments/002-shakespeare.
Rows are disjoint windows in a new order every epoch, where nanoGPT draws offsets at random.
"""

import os

from configs import pretrain, sizes


def get_config():
  c = pretrain.get_config('tiny')
  c.model = sizes.model('nanogpt_cpu')
  c.tokenizer.kind = 'char'
  c.tokenizer.vocab = 256  # at most; this text has 65 characters
  c.data.length = 64
  c.data.batch = 12
  c.data.packing = 'concat'
  del c.data.sources['readme']
  text = os.path.join(os.environ.get('LLMSTACK_DATA', 'data'), 'text/tinyshakespeare.txt')
  c.data.sources.shakespeare = pretrain.source((text,), holdout=0.1)
  c.optim.lr = 4e-3  # nanoGPT's 1e-3 reaches 1.913 here, 2e-3 1.818, 4e-3 1.788
  c.optim.b2 = 0.99
  c.optim.warmup = 100
  c.train.steps = 2000
  c.train.z_loss = 0.0
  c.train.log_every = 20
  c.eval.every = 250
  c.eval.rows = 2000
  c.eval.prompts = ('ROMEO:',)
  c.eval.new_tokens = 56  # learned positions end at T
  c.checkpoint.every = 500
  return c
