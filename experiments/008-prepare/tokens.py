"""Tokenise and pack beside SentencePiece's own encoding, per core, and on two cores: five paired rounds.

    LLMSTACK_DATA=DIR python experiments/008-prepare/tokens.py PREPARATION

PREPARATION: the workdir of prepare.py:shared, for its tokenizer and its documents.
"""

import glob
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time

from llmstack.data import packing, sources
from llmstack.data.tokenizer import Tokenizer


def texts(paths):
  return [d.text for path in paths for d in sources.documents(sources.Source((path,)))]


def raw(tokenizer, documents):
  """Returns CPU seconds of SentencePiece alone, one thread."""
  import sentencepiece

  model = sentencepiece.SentencePieceProcessor()
  model.LoadFromSerializedProto(tokenizer.proto)
  begun = time.process_time()
  model.encode(documents, num_threads=1)
  return time.process_time() - begun


def pack(path, documents, out):
  """Returns CPU seconds to tokenise, pack and write."""
  tokenizer = Tokenizer(path)
  begun = time.process_time()
  packing.write_shard(packing.pack(packing.encode(documents, tokenizer), 513, 'best_fit'), out, tokenizer.vocab)
  return time.process_time() - begun


def work(path, paths, out, ready, go):
  documents = texts(paths)
  ready.put(1)
  go.wait()
  pack(path, documents, out)


def wall(path, shares, folder):
  """Returns seconds for processes that each take a share of the files, without starting and reading."""
  context = multiprocessing.get_context('spawn')
  ready, go = context.Queue(), context.Event()
  jobs = [context.Process(target=work, args=(path, s, f'{folder}/{i}', ready, go)) for i, s in enumerate(shares)]
  for job in jobs:
    job.start()
  for _ in jobs:
    ready.get()
  begun = time.monotonic()
  go.set()
  for job in jobs:
    job.join()
  return time.monotonic() - begun


def main(preparation):
  path = f'{preparation}/tokenizer.model'
  files = sorted(p for p in glob.glob(f'{preparation}/documents/*.zst') if '.eval.' not in p)
  files.sort(key=os.path.getsize, reverse=True)
  documents = texts(files)
  size = sum(len(t.encode()) for t in documents) / 1e6
  rounds = []
  with tempfile.TemporaryDirectory() as folder:
    for n in range(5):
      a, b = raw(Tokenizer(path), documents), pack(path, documents, f'{folder}/x')
      one, two = wall(path, [files], folder), wall(path, [files[::2], files[1::2]], folder)
      rounds.append((a / b, one / two))
      row = {'round': n, 'mb': round(size, 1), 'sentencepiece_mb_per_cpu_s': round(size / a, 2)}
      row |= {'ours_mb_per_cpu_s': round(size / b, 2), 'ratio': round(a / b, 2), 'two_processes': round(one / two, 2)}
      print(json.dumps(row), flush=True)
  ratio, scaling = (round(statistics.median(r), 2) for r in zip(*rounds))
  print(json.dumps({'median ratio': ratio, 'median scaling on two': scaling}))


if __name__ == '__main__':
  main(sys.argv[1])
