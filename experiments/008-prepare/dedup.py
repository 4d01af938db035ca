"""MinHash on planted duplicates with their true Jaccard similarity: recall by similarity, false merges, throughput.

    LLMSTACK_DATA=DIR python experiments/008-prepare/dedup.py [--datatrove PYTHON]

--datatrove: the interpreter of an environment with datatrove[processing,io], whose four MinHash stages then run on the
same file with the same bands; five paired rounds, whole processes.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow

from llmstack.data import sources

HASHES, NGRAM, THRESHOLD, CONFIRM = 128, 5, 0.8, 0.7

TROVE = """
import sys
from datatrove.executor import LocalPipelineExecutor as Run
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
if __name__ == '__main__':
  folder, out, bands, rows = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
  c = MinhashConfig(n_grams=5, num_buckets=bands, hashes_per_bucket=rows)
  read = lambda: JsonlReader(folder, compression='zstd')
  for steps, tasks in (
    ([read(), MinhashDedupSignature(f'{out}/s', config=c)], 1),
    ([MinhashDedupBuckets(f'{out}/s', f'{out}/b', config=c)], bands),
    ([MinhashDedupCluster(f'{out}/b', f'{out}/r', config=c)], 1),
    ([read(), MinhashDedupFilter(f'{out}/r'), JsonlWriter(f'{out}/kept', compression=None)], 1),
  ):
    Run(pipeline=steps, tasks=tasks, workers=2 if tasks > 1 else 1).run()
"""


def ours(path):
  """Returns {id: cluster} of what MinHash joins, after exact copies by hash."""
  from llmstack.prepare import clean, engine, near

  records = [r for _, r in sources.objects(sources.Source((path,)))]
  texts = pyarrow.array([r['text'] for r in records])
  signature = engine.minhash(clean.normalise(texts), hashes=HASHES, ngram=NGRAM, seed=0)
  bands, rows = near.bands_for(THRESHOLD, HASHES)
  pairs = np.unique(np.concatenate([near.candidates(k) for k in near.keys(signature, bands, rows)]), axis=0)
  pairs = pairs[near.similarity(signature, pairs) >= CONFIRM]
  component = near.clusters(len(records), pairs)
  return {r['id']: int(c) for r, c in zip(records, component)}, (bands, rows)


def table(cluster, truth):
  """Returns [(band of Jaccard similarity, pairs, joined)]."""
  out = []
  for low, high in ((1, 2), (0.9, 1), (0.8, 0.9), (0.7, 0.8), (0.5, 0.7), (0.3, 0.5), (0, 0.3)):
    pairs = [t for t in truth if low <= t['jaccard5'] < high]
    out.append((low, min(high, 1), len(pairs), sum(cluster[t['a']] == cluster[t['b']] for t in pairs)))
  return out


def false_merges(path, cluster):
  """Returns (pairs within clusters whose true similarity is below 0.3, pairs within clusters)."""
  from llmstack.prepare import clean

  records = [r for _, r in sources.objects(sources.Source((path,)))]
  words = clean.normalise(pyarrow.array([r['text'] for r in records])).to_pylist()
  grams = {
    r['id']: {tuple(s[i : i + NGRAM]) for i in range(len(s) - NGRAM + 1)}
    for r, s in zip(records, map(str.split, words))
  }
  groups = {}
  for i, c in cluster.items():
    groups.setdefault(c, []).append(i)
  wrong = total = 0
  for group in groups.values():
    for n, a in enumerate(group):
      for b in group[:n]:
        total += 1
        wrong += len(grams[a] & grams[b]) / len(grams[a] | grams[b]) < 0.3
  return wrong, total


def timed(command):
  begun = time.monotonic()
  subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  return time.monotonic() - begun


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--datatrove')
  parser.add_argument('--once', action='store_true', help='only find the clusters, to be timed')
  flags = parser.parse_args()
  folder = os.path.join(os.environ['LLMSTACK_DATA'], 'dedup')
  path = os.path.join(folder, 'near_dup_bench.jsonl.zst')
  cluster, bands = ours(path)
  if flags.once:
    return
  truth = [r for _, r in sources.objects(sources.Source((os.path.join(folder, 'near_dup_bench_truth.jsonl'),)))]
  for low, high, n, joined in table(cluster, truth):
    print(json.dumps({'jaccard': [low, high], 'pairs': n, 'joined': joined}))
  wrong, total = false_merges(path, cluster)
  print(json.dumps({'pairs in clusters': total, 'of them below 0.3': wrong, 'bands': bands}))
  if flags.datatrove:
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
      os.makedirs(f'{scratch}/in')
      shutil.copy(path, f'{scratch}/in')
      with open(f'{scratch}/trove.py', 'w') as f:
        f.write(TROVE)
      for n in range(5):
        a = timed([sys.executable, __file__, '--once'])
        b = timed([flags.datatrove, f'{scratch}/trove.py', f'{scratch}/in', f'{scratch}/{n}', *map(str, bands)])
        ratios.append(b / a)
        print(
          json.dumps({'round': n, 'ours_s': round(a, 2), 'datatrove_s': round(b, 2), 'ratio': round(b / a, 2)}),
          flush=True,
        )
    print(json.dumps({'median ratio': round(statistics.median(ratios), 2), 'least': round(min(ratios), 2)}))


if __name__ == '__main__':
  main()
