"""The offline loop: dispatch step k, read the numbers of k-1, evaluate, save."""

import os
import time

import jax
import numpy as np

from llmstack.errors import Diverged
from llmstack.metrics import clock


def fit(
  state, step, batches, *, steps, metrics, checkpoints, meta, evaluate, log_every, eval_every, save_every,
  tokens_per_step, flops_per_token, peak_flops, bad_steps, workdir, place, crc, rate,
):  # fmt: skip
  """Returns the state after `steps` steps.

  step: (state, batch) -> (state, measurements), jitted. batches: iterator of host batches from state.step on.
  evaluate: (step, state) -> {metric: float}, called every `eval_every` steps and at the end; it logs by itself.
  meta: step -> JSON for the checkpoint. place: host batch -> device batch. crc: host batch -> int.
  rate: updates done -> learning rate of the next one, for the log.
  bad_steps: non-finite updates in a row after which the run stops. The arguments are otherwise numbers.

  The device never waits for the host's arithmetic: measurements are read one step late. `input_share` is the
  share of wall-clock that the loop spent waiting for a batch.
  """
  first = int(state.step)
  pending = None
  window = {'start': time.perf_counter(), 'wait': 0.0, 'steps': 0}
  begun = time.perf_counter()

  def read(k, batch, measured):
    """Logs step k (1-based); the transfer waits for the device to finish it."""
    values = {name: x.item() for name, x in jax.device_get(measured).items()}
    window['steps'] += 1
    if values['streak'] >= bad_steps:
      path = os.path.join(workdir, f'nonfinite-{k}-process{jax.process_index()}.npz')
      np.savez(path, **batch)
      raise Diverged(
        f'loss or gradients were not finite in {values["streak"]} updates in a row, the last at step {k} '
        f'(batch {k - 1}, crc {crc(batch):08x}, written to {path}): parameters are those of before; lower optim.lr, '
        f'look at that batch, or raise train.bad_steps = {bad_steps}'
      )
    if k % log_every and k != steps and k != first + 1:
      return
    now = time.perf_counter()
    seconds = now - window['start']
    speed = window['steps'] * tokens_per_step / seconds
    values |= {
      'crc': f'{crc(batch):08x}',
      'lr': float(rate(k - 1 - values['skipped'])),
      'tokens_per_step': tokens_per_step,
      'tokens_per_s': speed,
      'input_share': window['wait'] / seconds,
    }
    if peak_flops:
      values['mfu'] = speed * flops_per_token / peak_flops
    if k == first + 1:
      values['first_step_s'] = now - begun
    metrics.log(k, 'train', **values)
    window.update(start=now, wait=0.0, steps=0)
    left = (steps - k) * tokens_per_step / speed
    mfu = f'mfu {values["mfu"]:4.0%}  ' if 'mfu' in values else ''
    skipped = f'skipped {values["skipped"]}  ' if values['skipped'] else ''
    metrics.progress(
      f'step {k:>6}/{steps}  loss {values["loss"]:.4f}  {speed / 1e3:7.1f}k tok/s  {mfu}'
      f'input {values["input_share"]:3.0%}  {skipped}eta {clock(left)}',
      end=k == steps,
    )

  try:
    for k in range(first + 1, steps + 1):
      t = time.perf_counter()
      batch = next(batches)
      window['wait'] += time.perf_counter() - t
      state, measured = step(state, place(batch))
      if pending:
        read(*pending)
      pending = (k, batch, measured)
      checkpoints.poll()
      if k % eval_every == 0 or k % save_every == 0 or k == steps:
        read(*pending)  # a state whose step failed is neither evaluated nor saved
        pending = None
        paused = time.perf_counter()
        scores = evaluate(k, state) if k % eval_every == 0 or k == steps else {}
        if k % save_every == 0 or k == steps:
          checkpoints.save(k, state, meta(k), scores)
        window['start'] += time.perf_counter() - paused
  finally:
    checkpoints.wait()
    batches.close()
  return state
