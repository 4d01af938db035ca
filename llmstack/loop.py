"""The offline loop: dispatch step k, read the numbers of k-1, evaluate, save."""

import concurrent.futures
import os
import sys
import time

import jax
import numpy as np

from llmstack import runtime
from llmstack.errors import Diverged, Stopped
from llmstack.metrics import clock


def fit(
  state, step, batches, *, steps, metrics, checkpoints, meta, evaluate, log_every, eval_every, save_every,
  tokens_per_step, flops_per_token, peak_flops, bad_steps, workdir, place, watch, owed, first,
):  # fmt: skip
  """Returns the state after `steps` steps.

  step: (state, batch) -> (state, measurements), jitted. batches: iterator of host batches from state.step on.
  evaluate: (step, state) -> {metric: float}, called every `eval_every` steps and at the end; it logs by itself.
  meta: step -> JSON for the checkpoint. place: host batch -> device batch.
  bad_steps: non-finite updates in a row after which the run stops. watch: runtime.Watch, asked before every step.
  owed: whether an evaluation of the state at hand is missing. The arguments are otherwise numbers. A step that measures
    `tokens` had so many, in place of tokens_per_step.

  The device never waits for the host's arithmetic: measurements are read one step late. `input_share` is the
  share of wall-clock that the loop spent waiting for a batch.
  Raises: Stopped, after the last step is saved, where `watch` says so; Diverged.
  """
  pending = None
  window = {'start': time.perf_counter(), 'wait': 0.0, 'steps': 0, 'tokens': 0}
  begun = time.perf_counter()

  def read(k, batch, measured):
    """Logs step k (1-based); the transfer waits for the device to finish it."""
    watch.beat('waiting for the device')
    values = {name: x.item() for name, x in jax.device_get(measured).items()}
    watch.beat('log', done=k)
    values['crc'] = f'{values["crc"]:08x}'
    window['steps'] += 1
    window['tokens'] += values['tokens'] if 'tokens' in values else tokens_per_step
    if values['streak'] >= bad_steps:
      path = os.path.join(workdir, f'nonfinite-{k}-process{jax.process_index()}.npz')
      np.savez(path, **batch)
      raise Diverged(
        f'loss or gradients were not finite in {values["streak"]} updates in a row, the last at step {k} '
        f'(batch {k - 1}, crc {values["crc"]}, written to {path}): parameters are those of before; lower optim.lr, '
        f'look at that batch, or raise train.bad_steps = {bad_steps}'
      )
    if k % log_every and k != steps and k != first + 1:
      return
    now = time.perf_counter()
    seconds = now - window['start']
    speed = window['tokens'] / seconds
    values |= {
      'tokens_per_step': window['tokens'] / window['steps'] if 'tokens' in values else tokens_per_step,
      'tokens_per_s': speed,
      'input_share': window['wait'] / seconds,
    }
    if peak_flops:
      values['mfu'] = speed * flops_per_token / peak_flops
    if k == first + 1:
      values['first_step_s'] = now - begun
    metrics.log(k, 'train', **values)
    left = (steps - k) * seconds / window['steps']
    window.update(start=now, wait=0.0, steps=0, tokens=0)
    mfu = f'mfu {values["mfu"]:4.0%}  ' if 'mfu' in values else ''
    skipped = f'skipped {values["skipped"]}  ' if values['skipped'] else ''
    what = f'loss {values["loss"]:.4f}' if 'reward' not in values else f'reward {values["reward"]:.3f}'
    metrics.progress(
      f'step {k:>6}/{steps}  {what}  {speed / 1e3:7.1f}k tok/s  {mfu}'
      f'input {values["input_share"]:3.0%}  {skipped}eta {clock(left)}',
      end=k == steps,
    )

  def fetch():
    """Returns the next batch, or None where the run is to stop without waiting for it."""
    future = reader.submit(next, batches)
    while not future.done():
      concurrent.futures.wait([future], timeout=0.2)
      if watch.urgent and not future.done():
        return None
    return future.result()

  at = saved = first
  stalled = False
  reader = concurrent.futures.ThreadPoolExecutor(1, 'data')
  try:
    if owed:
      evaluate(first, state)
    while at < steps and not watch.poll():
      t = time.perf_counter()
      watch.beat(runtime.DATA)
      batch = fetch()
      stalled = batch is None
      if stalled:
        break
      window['wait'] += time.perf_counter() - t
      watch.beat('the step')
      state, measured = step(state, place(batch))
      at += 1
      if pending:
        read(*pending)
      pending = (at, batch, measured)
      if isinstance(measured['loss'], np.ndarray):  # on the host already: there is nothing to wait for
        read(*pending)
        pending = None
      checkpoints.poll()
      if at % eval_every == 0 or at % save_every == 0 or at == steps:
        if pending:
          read(*pending)  # a state whose step failed is neither evaluated nor saved
        pending = None
        paused = time.perf_counter()
        scores = evaluate(at, state) if at % eval_every == 0 or at == steps else {}
        evaluated = time.perf_counter()
        if at % save_every == 0 or at == steps:
          watch.beat('saving')
          checkpoints.save(at, state, meta(at), scores)
          saved = at
        now = time.perf_counter()
        metrics.log(at, 'pause', eval_s=evaluated - paused, save_s=now - evaluated)
        window['start'] += now - paused
    if pending:
      read(*pending)
    if saved < at:
      watch.beat('saving')
      checkpoints.save(at, state, meta(at))
  finally:
    watch.ending(sys.exception())  # before anything waits
    checkpoints.wait()
    watch.beat(None)
    reader.shutdown(wait=False)
    if not stalled:
      batches.close()
  if watch.stopping or at < steps:
    raise Stopped(f'{watch.why}; step {at} of {steps} is saved, run the same command again to go on')
  return state
