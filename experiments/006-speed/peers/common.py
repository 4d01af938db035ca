"""What every peer script shares: the sizes, the process' own clock, the one JSON line."""

import json
import os
import resource
import statistics
import time

THREADS = 2
WARM_UP = 2

# layers, d_model, heads, T, B, vocabulary
TRAIN_SIZES = {
  'S': (4, 128, 4, 64, 12, 65),
  'M': (6, 384, 6, 256, 16, 65),
  'L': (12, 768, 12, 512, 4, 32_000),
  '125M': (12, 768, 12, 1024, 16, 50_304),
  '1B': (24, 1792, 14, 1024, 8, 50_304),
}
LLAMA = dict(
  layers=12, d=768, heads=12, kv_heads=12, intermediate=2048, vocabulary=32_000, rope_theta=10_000.0, rms_eps=1e-6
)
PROMPT, NEW = 64, 128
SEED = 0


def process_age():
  """Returns the seconds since this process was started (10 ms resolution), interpreter start-up included."""
  with open('/proc/self/stat') as file:
    ticks = int(file.read().rsplit(')', 1)[1].split()[19])
  return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf('SC_CLK_TCK')


def limit_threads():
  """Pins the process to two cores and sets the thread variables. Call it before numpy, torch or jax are imported."""
  cores = sorted(os.sched_getaffinity(0))[:THREADS]
  os.sched_setaffinity(0, cores)
  for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'):
    os.environ[name] = str(len(cores))
  return len(cores)


def emit(peer, version, size, tokens, seconds, first_step_s, threads, warm_up=WARM_UP, **more):
  """Prints the JSON line. `tokens`: per step. `seconds`: every step's, the first `warm_up` kept out of the median.

  tokens_per_s and step_ms are medians over the steps after the warm-up; step_ms_all has all of them, warm-up first.
  """
  median = statistics.median(seconds[warm_up:])
  row = dict(
    peer=peer,
    version=version,
    size=size,
    tokens_per_s=round(tokens / median, 2),
    step_ms=round(1e3 * median, 3),
    step_ms_all=[round(1e3 * second, 3) for second in seconds],
    first_step_s=round(first_step_s, 2),
    peak_rss_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    threads=threads,
    warm_up=warm_up,
    load_1m=round(os.getloadavg()[0], 2),
    **more,
  )
  print(json.dumps(row), flush=True)
