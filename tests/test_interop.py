"""llama2.c files against a numpy forward that rotates adjacent pairs, and the real stories260K where it is at hand."""

import os

import jax.numpy as jnp
import numpy as np
import pytest

from llmstack.data.tokenizer import Tokenizer
from llmstack.errors import BadInput
from llmstack.infer import decode
from llmstack.infer.sampling import Sampling
from llmstack.interop import llama2c
from llmstack.model import forward, unembed

D, F, L, N, K, V, S = 12, 20, 2, 3, 1, 17, 16
H = D // N


def write(path, *, tied=True, cut=0, vocab=V):
  r = np.random.RandomState(0)
  shapes = dict(
    embed=(vocab, D), rms1=(L, D), wq=(L, N * H, D), wk=(L, K * H, D), wv=(L, K * H, D), wo=(L, D, N * H), rms2=(L, D),
    w1=(L, F, D), w2=(L, D, F), w3=(L, F, D), rms3=(D,), cos=(S, H // 2), sin=(S, H // 2),
  ) | ({} if tied else dict(head=(vocab, D)))  # fmt: skip
  w = {k: (r.randn(*s) * 0.4).astype('<f4') for k, s in shapes.items()}
  data = b''.join(x.tobytes() for x in w.values())
  header = np.array([D, F, L, N, K, vocab if tied else -vocab, S], '<i4').tobytes()
  path.write_bytes((header + data)[: len(header + data) - cut])
  return {k: x.astype(np.float64) for k, x in w.items()}


def reference(w, ids):
  """Returns float64[T,V], straight from llama2.c's run.c: one position and one head at a time."""
  norm = lambda x, g: g * x / np.sqrt((x * x).mean() + 1e-5)  # noqa: E731
  keys, values, out = [[] for _ in range(L)], [[] for _ in range(L)], []
  for pos, token in enumerate(ids):
    x = w['embed'][token].copy()
    for layer in range(L):
      h = norm(x, w['rms1'][layer])
      q, k, v = w['wq'][layer] @ h, w['wk'][layer] @ h, w['wv'][layer] @ h
      for vec in (q, k):
        for i in range(0, len(vec), 2):
          angle = pos / 10000.0 ** ((i % H) / H)
          a, b = vec[i], vec[i + 1]
          vec[i], vec[i + 1] = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
      keys[layer].append(k)
      values[layer].append(v)
      heads = []
      for n in range(N):
        kv = slice(n * K // N * H, n * K // N * H + H)
        s = np.array([q[n * H : n * H + H] @ key[kv] for key in keys[layer]]) / np.sqrt(H)
        p = np.exp(s - s.max()) / np.exp(s - s.max()).sum()
        heads.append(sum(a * val[kv] for a, val in zip(p, values[layer])))
      x += w['wo'][layer] @ np.concatenate(heads)
      h = norm(x, w['rms2'][layer])
      gate = w['w1'][layer] @ h
      x += w['w2'][layer] @ (gate / (1 + np.exp(-gate)) * (w['w3'][layer] @ h))
    out.append(w.get('head', w['embed']) @ norm(x, w['rms3']))
  return np.array(out)


def logits(cfg, params, ids):
  at = jnp.arange(len(ids))[None]
  return np.asarray(unembed(cfg, params, forward(cfg, params, jnp.asarray([ids]), at, at * 0 + 1)[0]))[0]


@pytest.mark.parametrize('tied', [True, False])
def test_a_file_gives_the_logits_of_run_c(tmp_path, tied):
  """wq and wk are not permuted, heads are split along the wrong axis, or w2 and w3 are swapped."""
  w = write(tmp_path / 'm.bin', tied=tied)
  cfg, params = llama2c.load(tmp_path / 'm.bin')
  assert cfg.tied == tied and (cfg.heads, cfg.kv_heads, cfg.ff) == (N, K, F)
  ids = [3, 1, 16, 5, 5, 9]
  np.testing.assert_allclose(logits(cfg, params, ids), reference(w, ids), atol=2e-5)


def test_damaged_files_are_refused(tmp_path):
  """A truncated download loads as a model with garbage in its last layers."""
  write(tmp_path / 'm.bin', cut=8)
  with pytest.raises(BadInput, match='holds .* bytes of tensors and its header asks for .*: the file is damaged'):
    llama2c.load(tmp_path / 'm.bin')
  (tmp_path / 'e.bin').write_bytes(b'short')
  with pytest.raises(BadInput, match='does not start with a llama2.c version-0 header'):
    llama2c.load(tmp_path / 'e.bin')
  (tmp_path / 'e.bin').write_bytes(b'not a model, but long enough for a header')
  with pytest.raises(BadInput, match='the file is damaged'):
    llama2c.load(tmp_path / 'e.bin')


def stories():
  folder = os.path.join(os.environ.get('LLMSTACK_DATA', ''), 'weights', 'stories260K')
  if not os.path.exists(os.path.join(folder, 'stories260K.bin')):
    pytest.skip('LLMSTACK_DATA/weights/stories260K is not here')
  return folder


def test_stories260k_logits_and_greedy_text():
  """Every convention at once, on a real trained model: logits to 1e-4 and the published text letter by letter."""
  folder = stories()
  golden = np.load(os.path.join(folder, 'golden_logits.npz'))
  cfg, params = llama2c.load(os.path.join(folder, 'stories260K.bin'))
  np.testing.assert_allclose(logits(cfg, params, golden['tokens'].tolist()), golden['logits'], atol=1e-4)
  tokenizer = Tokenizer(os.path.join(folder, 'tok512.model'))
  tokens, lengths = decode.pad_prompts([[tokenizer.bos]], limit=256, pad=0)
  out = decode.generate(
    cfg, params, tokens, lengths, decode.row_keys([0]), Sampling.of(1, 512, temperature=0.0),
    decode.stop_table([[tokenizer.bos], [tokenizer.eos]]), new_tokens=256, pad=0,
  )  # fmt: skip
  assert out.tokens[0, :200].tolist() == golden['greedy'][1:].tolist()
  with open(os.path.join(folder, 'stories260K.md')) as f:
    published = f.read().split('-t 0.0\n')[1].split('\n```')[0]
  text = tokenizer.decode(np.asarray(out.tokens[0])[np.asarray(out.sampled[0])])
  assert text.strip() == published.strip()
