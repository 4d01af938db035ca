"""Weights of llama2.c (the legacy version-0 export) as llmstack parameters.

Source: karpathy/llama2.c, export.py `legacy_export`: seven int32 (dim, hidden, layers, heads, kv heads,
vocabulary, length), then float32 tensors, [out, in]. A negative vocabulary means an untied head.
"""

import math

import numpy as np

from llmstack.errors import BadInput
from llmstack.model import ModelConfig


def load(path):
  """Returns (ModelConfig, params) of a llama2.c checkpoint file.

  llama2.c rotates adjacent pairs (2i, 2i+1), we rotate (i, i + H/2): wq and wk are permuted per head.
  Raises: BadInput where the file's size is not what its header says.
  """
  with open(path, 'rb') as f:
    head = f.read(28)
    header = np.frombuffer(head[: len(head) // 4 * 4], '<i4')
    if len(header) < 7 or min(header[:5]) < 1 or header[6] < 1:
      raise BadInput(f'{path} does not start with a llama2.c version-0 header: export it with legacy_export')
    D, F, L, N, K, V, S = (int(x) for x in header)
    tied, V = V > 0, abs(V)
    H = D // N
    body = f.read()
  shapes = dict(
    embed=(V, D), attn_norm=(L, D), wq=(L, N * H, D), wk=(L, K * H, D), wv=(L, K * H, D), wo=(L, D, N * H),
    mlp_norm=(L, D), w_gate=(L, F, D), w_down=(L, D, F), w_up=(L, F, D), final_norm=(D,),
    cos=(S, H // 2), sin=(S, H // 2), **({} if tied else {'head': (V, D)}),
  )  # fmt: skip
  want = 4 * sum(math.prod(s) for s in shapes.values())
  if len(body) != want:
    raise BadInput(f'{path} holds {len(body)} bytes of tensors and its header asks for {want}: the file is damaged')
  data = np.frombuffer(body, '<f4')
  at, w = 0, {}
  for name, shape in shapes.items():
    w[name] = data[at : at + math.prod(shape)].reshape(shape)
    at += w[name].size

  def heads(x, n):
    """Returns [L, D, n, H] from [L, n * H, D]."""
    return x.reshape(L, n, H, D).transpose(0, 3, 1, 2)

  def halves(x):
    """Returns x with the adjacent pairs of its last axis moved to (i, i + H/2)."""
    return np.concatenate([x[..., 0::2], x[..., 1::2]], -1)

  params = {
    'embed': {'w': w['embed']},
    'layers': {
      'attn_norm': {'scale': w['attn_norm']},
      'attn': {
        'wq': {'w': halves(heads(w['wq'], N))},
        'wk': {'w': halves(heads(w['wk'], K))},
        'wv': {'w': heads(w['wv'], K)},
        'wo': {'w': w['wo'].transpose(0, 2, 1).reshape(L, N, H, D)},
      },
      'mlp_norm': {'scale': w['mlp_norm']},
      'mlp': {name: {'w': w[name].transpose(0, 2, 1)} for name in ('w_gate', 'w_up', 'w_down')},
    },
    'final_norm': {'scale': w['final_norm']},
  }
  if not tied:
    params['head'] = {'w': w['head'].T}
  cfg = ModelConfig(
    vocab=V, layers=L, width=D, heads=N, kv_heads=K, head_width=H, ff=F, length=S, norm='rms', norm_eps=1e-5,
    post_norm=False, act='silu', gated=True, bias=False, positions='rope', rope_theta=1e4, qk_norm=False,
    attn_softcap=None, logit_softcap=None, windows=(), tied=tied, scale_embed=False, dropout=0.0, init_std=0.02,
    dtype='float32', attention='einsum', scan=False, remat='none',
  )  # fmt: skip
  return cfg, {k: _copy(v) for k, v in params.items()}


def _copy(tree):
  # Own the memory: views of the file's buffer are read-only and not contiguous.
  return {k: _copy(v) for k, v in tree.items()} if isinstance(tree, dict) else np.ascontiguousarray(tree)
