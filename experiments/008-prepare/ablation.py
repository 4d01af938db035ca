"""Raw against prepared text: verbatim repetition of two models' samples, and their held-out losses.

    python experiments/008-prepare/ablation.py RUN:PREPARATION RUN:PREPARATION

Each model goes on from the first 24 words of the same held-out documents. Of its words, counted are those in an n-gram
of 8 words that its own training text holds (as decontaminate finds them), and those in 5-grams that it said before.
"""

import glob
import json
import sys

import numpy as np
import pyarrow

from llmstack import metrics, sharding
from llmstack.data import sources
from llmstack.prepare import clean, decontaminate, rules
from llmstack.tasks.sample import complete, load

N = 8  # words
PROMPTS, NEW = 64, 96  # held-out documents, tokens
SOURCES = ('books', 'docs', 'stories', 'code', 'text')


def texts(preparation, suffix):
  for source in SOURCES:
    for path in sorted(glob.glob(f'{preparation}/documents/{source}-*{suffix}')):
      if ('.eval.' in path) == ('.eval.' in suffix):
        for document in sources.documents(sources.Source((path,))):
          yield document.text


def copied(said, preparation):
  """Returns the share of the words said that are in an n-gram of the training text."""
  index = decontaminate.Index(said, ['said'] * len(said), N)
  words = clean.normalise(pyarrow.array(said)).to_pylist()
  wanted = {}
  for i, text in enumerate(words):
    w = text.split()
    for j in range(len(w) - N + 1):
      wanted.setdefault(tuple(w[j : j + N]), []).append((i, j))
  hit = [np.zeros(len(text.split()), bool) for text in words]
  for text in texts(preparation, '.jsonl.zst'):
    normal = clean.normalise(pyarrow.array([text]))
    found = index.find(normal)
    if not found:
      continue
    w = normal[0].as_py().split()
    for _, first, length, _ in found:
      for i, j in wanted.get(tuple(w[first : first + length]), ()):
        hit[i][j : j + length] = True
  return sum(h.sum() for h in hit) / sum(map(len, hit))


def main(pairs):
  first = pairs[1].split(':')[1]
  held = [t for t in texts(first, '.eval.jsonl.zst') if len(t.split()) > 60]
  prompts = [' '.join(t.split(' ')[:24]) for t in held[:: max(1, len(held) // PROMPTS)][:PROMPTS]]
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, context=1, expert=1)
  for pair in pairs:
    run, preparation = pair.split(':')
    cfg, params, tokenizer, step = load(run, None, mesh, len(prompts))
    for temperature in (0.0, 0.8):
      out = complete(
        cfg, params, tokenizer, prompts, mesh=mesh, new_tokens=NEW, seeds=range(len(prompts)), temperature=temperature
      )
      said = [t.text for t in out if t.text.strip()]
      loops = rules.measure(pyarrow.array(said))['duplicate_5grams'].mean()
      row = {'run': run, 'step': step, 'temperature': temperature, 'prompts': len(prompts), 'n': N}
      row |= {'copied': round(float(copied(said, preparation)), 4), 'said_before': round(float(loops), 4)}
      print(json.dumps(row), flush=True)
    last = [r for r in metrics.read(run) if r['kind'] == 'eval' and r['step'] == step]
    print(json.dumps({'run': run, 'step': step} | {r['name']: round(r['nll'], 4) for r in last}), flush=True)
    for prompt, text in list(zip(prompts, out))[:: len(prompts) // 6]:
      print(json.dumps({'run': run, 'temperature': temperature, 'prompt': prompt[-80:], 'text': text.text[:240]}))


if __name__ == '__main__':
  main(sys.argv[1:])
