"""stories260K: logits, the published greedy text and the loss on TinyStories.

    LLMSTACK_DATA=DIR python experiments/004-stories260k/run.py [STORIES]

Rows as in its training: BOS before each story, no EOS, T = 512; a longer story is cut there.
"""

import gzip
import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np

from llmstack.data.tokenizer import Tokenizer
from llmstack.infer import decode
from llmstack.infer.sampling import Sampling
from llmstack.interop import llama2c
from llmstack.losses import lm
from llmstack.model import forward, unembed

data = os.environ['LLMSTACK_DATA']
folder = os.path.join(data, 'weights/stories260K')
cfg, params = llama2c.load(os.path.join(folder, 'stories260K.bin'))
tokenizer = Tokenizer(os.path.join(folder, 'tok512.model'))
golden = np.load(os.path.join(folder, 'golden_logits.npz'))


@jax.jit
def score(params, tokens, mask):
  """Returns (logits[B,T,V], sum of nll, tokens)."""
  at = jnp.broadcast_to(jnp.arange(tokens.shape[1] - 1), tokens[:, 1:].shape)
  hidden, _ = forward(cfg, params, tokens[:, :-1], at, at * 0 + 1)
  sums, weights, _ = lm.cross_entropy(unembed(cfg, params, hidden), tokens[:, 1:], mask, z_loss=0.0)
  return sums['nll'], weights['nll']


ids = jnp.asarray(golden['tokens'])[None]
at = jnp.arange(ids.shape[1])[None]
logits = unembed(cfg, params, forward(cfg, params, ids, at, at * 0 + 1)[0])[0]
print(f'largest difference of logits: {np.abs(logits - golden["logits"]).max():.2e}')

tokens, lengths = decode.pad_prompts([[tokenizer.bos]], limit=256, pad=0)
out = decode.generate(
  cfg, params, tokens, lengths, decode.row_keys([0]), Sampling.of(1, cfg.vocab, temperature=0.0),
  decode.stop_table([[tokenizer.bos], [tokenizer.eos]]), new_tokens=256, pad=0,
)  # fmt: skip
text = tokenizer.decode(np.asarray(out.tokens[0])[np.asarray(out.sampled[0])])
with open(os.path.join(folder, 'stories260K.md')) as f:
  published = f.read().split('-t 0.0\n')[1].split('\n```')[0]
print(
  f'greedy text is the published one, letter by letter: {text.strip() == published.strip()} ({len(text)} characters)'
)

with gzip.open(os.path.join(data, 'text/tinystories_val.jsonl.gz'), 'rt') as f:
  stories = [json.loads(line)['text'] for line in f]
stories = stories[: int(sys.argv[1])] if len(sys.argv) > 1 else stories
nll = count = 0.0
for i in range(0, len(stories), 16):
  rows = [[tokenizer.bos, *tokenizer.encode(s.strip())][: cfg.length + 1] for s in stories[i : i + 16]]
  tokens = np.zeros((16, cfg.length + 1), np.int32)
  mask = np.zeros((16, cfg.length), np.float32)
  for j, row in enumerate(rows):
    tokens[j, : len(row)], mask[j, : len(row) - 1] = row, 1
  a, b = score(params, tokens, mask)
  nll, count = nll + float(a), count + float(b)
print(f'{nll / count:.4f} nats per token over {int(count)} tokens of {len(stories)} stories')
