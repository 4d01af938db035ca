"""Whether a compiled train step fits, said before it runs, and by the same sentence where memory ran out after all.

XLA has laid out every buffer of a program when it has compiled it, so that what one call takes is known without
running it. Not counted: evaluation, sampling, and the host's own arrays.
"""

import ctypes
import os
import resource

import jax

from llmstack.errors import BadInput, exhausted


def size(n):
  """Returns bytes as MiB or GiB."""
  return f'{n / 2**30:.2f} GiB' if n >= 2**30 else f'{n / 2**20:.0f} MiB'


def need(compiled):
  """Returns {'parameters, optimiser and batch', 'results', 'temporaries'}: bytes on each device, {} if XLA is silent.

  A donated argument and the result in its place count once, as argument.
  """
  m = compiled.memory_analysis()
  if m is None:
    return {}
  return {
    'parameters, optimiser and batch': m.argument_size_in_bytes,
    'results': m.output_size_in_bytes - m.alias_size_in_bytes,
    'temporaries': m.temp_size_in_bytes,
  }


def read(path):
  """Returns the text of a file of the kernel's, '' where it has none."""
  if not os.path.exists(path):
    return ''
  with open(path) as f:
    return f.read()


def process():
  """Returns (bytes that this process may still take, what says so) by the tightest limit; (None, '') if none is known.

  Limits, not what happens to be free: what other processes hold today is no reason never to retry.
  """
  pages = [int(n) * os.sysconf('SC_PAGE_SIZE') for n in read('/proc/self/statm').split()] or [0, 0]
  left = []
  soft, _ = resource.getrlimit(resource.RLIMIT_AS)
  if soft != resource.RLIM_INFINITY:
    left.append((soft - pages[0], 'the address space limit (ulimit -v)'))
  for line in read('/proc/self/cgroup').splitlines():
    _, kinds, group = line.split(':', 2)
    if kinds == '' or 'memory' in kinds.split(','):  # version 2 has one unnamed hierarchy
      root = '/sys/fs/cgroup' if kinds == '' else '/sys/fs/cgroup/memory'
      name = 'memory.max' if kinds == '' else 'memory.limit_in_bytes'
      # In a container the group's own path may not be there: its limit is then at the root.
      for folder in (root + group, root):
        text = read(os.path.join(folder, name)).strip()
        if text.isdigit():
          left.append((int(text) - pages[1], f'the control group ({folder}/{name})'))
  if 'SC_PHYS_PAGES' in os.sysconf_names:
    left.append((os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') - pages[1], 'the memory of this machine'))
  return min(left, default=(None, ''))


def trim():
  """Returns nothing; gives back to the system what compiling has freed: glibc keeps it, 260 MB for a small model."""
  give_back = getattr(ctypes.CDLL(None), 'malloc_trim', None)
  if give_back:
    give_back(0)


class Budget:
  """What one train step takes against what there is; as a context, it turns running out of memory into BadInput.

  microbatches, remat, fsdp, batch: the present settings of the knobs that the sentence names.
  """

  def __init__(self, *, microbatches, remat, fsdp, batch):
    self._fix = (
      f'raise train.microbatches = {microbatches}, set model.remat = {remat!r} to full, raise mesh.fsdp = {fsdp} '
      f'(with that many devices), or lower data.batch = {batch}'
    )
    self._more = f'evaluation comes on top, with data.batch = {batch} rows at once'
    self._has = ''

  def check(self, compiled):
    """Returns a line with bytes per device; raises BadInput where they are more than there are."""
    parts, device, devices = need(compiled), jax.local_devices()[0], jax.local_device_count()
    total = sum(parts.values())
    if device.platform == 'cpu':
      have, says = process()
      taken, shared = total * devices, f'{devices} devices share' if devices > 1 else 'it has'
    else:
      have, says = (device.memory_stats() or {}).get('bytes_limit'), 'the device'
      taken, shared = total, f'a {device.device_kind} has'
    self._has = f'a train step takes {size(total)} on each device'
    if have is not None:
      self._has += f' and {shared} {size(max(have, 0))}'
    if parts and have is not None and taken > have:
      shares = ', '.join(f'{name} {size(n)}' for name, n in parts.items())
      raise BadInput(f'{self._has}, by {says}: {shares}; {self._fix}')
    return self._has

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if exhausted(error):
      said = (str(error) or kind.__name__).splitlines()[0]
      has = [f'{self._has}, and {self._more}'] if self._has else []
      raise BadInput('; '.join([f'memory ran out ({said})', *has, self._fix])) from error
