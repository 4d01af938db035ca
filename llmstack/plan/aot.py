"""What a compiled program holds and sends, per device, read from the compiler's own text and figures."""

import math
import re
from typing import NamedTuple

import jax

# GiB of memory of one chip. Source: Google's pages on each TPU version.
HBM = {'TPU v4': 32, 'TPU v5 lite': 16, 'TPU v5': 95, 'TPU v6 lite': 32}
GIB = 2**30

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.-]+) .*{$')
_INSTRUCTION = re.compile(r'\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z-]*)\((.*)')
_ARRAY = re.compile(r'\b([a-z]+)(\d*)\w*\[([\d,]*)\]')
_CALLED = re.compile(r'(?:body|calls|to_apply)=%?([\w.-]+)|(?:branch|called)_computations={([^}]*)}')


class Memory(NamedTuple):
  """Bytes on one device, as the compiler has laid the program out."""

  arguments: int
  outputs: int  # those that do not reuse a donated argument
  temporaries: int
  code: int

  @classmethod
  def of(cls, compiled):
    m = compiled.memory_analysis()
    outputs = m.output_size_in_bytes - m.alias_size_in_bytes
    return cls(m.argument_size_in_bytes, outputs, m.temp_size_in_bytes, m.generated_code_size_in_bytes)


def per_device(table, devices):
  """Returns a chip's figure as one jax device has it, or None: the two cores of a v4 may be a device each."""
  chips = len({tuple(d.coords) for d in devices})
  return table[devices[0].device_kind] * chips / len(devices) if devices[0].device_kind in table else None


def held(tree):
  """Returns the bytes that one device holds of ShapeDtypeStructs or arrays with shardings: a check on `Memory`.

  The compiler's figure is a little larger, because a TPU pads the last two axes to its tiles.
  """
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _bytes(text):
  """Returns the bytes of the arrays in an HLO type, without the counters that asynchronous operations carry."""
  arrays = [(name, bits, dims) for name, bits, dims in _ARRAY.findall(text) if (name + bits, dims) != ('u32', '')]
  return sum(math.prod(map(int, filter(None, d.split(',')))) * int(b or 8) // 8 for _, b, d in arrays)


def _times(line, computations):
  """Returns how often the loop on this line runs: as noted by the compiler, or the bound its condition counts to."""
  if noted := re.search(r'known_trip_count\W+n\W+(\d+)', line):
    return int(noted[1])
  condition = computations[re.search(r'condition=%?([\w.-]+)', line)[1]]
  bounds = [re.match(r'(\d+)\)', rest) for _, _, op, rest, _ in condition if op == 'constant']
  bounds = [int(b[1]) for b in bounds if b]
  return bounds[0] if len(bounds) == 1 else 1


def collectives(hlo):
  """Returns {kind: (how many run in one call, bytes)} of a compiled program, `compiled.as_text()`.

  Bytes: the larger of what goes in and what comes out of each on one device, so that an all-gather counts what it
  makes, a reduce-scatter what it takes and a collective-permute what it passes on. Loops count as often as they
  run. A conditional counts all its branches. One channel is one collective: XLA spreads a collective that it hides
  behind other work over several fusions that all name it. A TPU's reduce-scatter is an all-reduce in a fusion that
  is called all-reduce-scatter.
  """
  computations, entry, name = {}, None, None
  for line in hlo.splitlines():
    if (start := _COMPUTATION.match(line)) and not line.startswith('HloModule'):
      name = start[2]
      computations[name] = []
      entry = name if start[1] else entry
    elif found := _INSTRUCTION.match(line):
      computations[name].append((*found.groups(), line))

  found = {}

  def walk(name, times):
    types = {n: kind for n, kind, *_ in computations[name]}
    for at, kind, op, rest, line in computations[name]:
      base = op.removesuffix('-start')
      if base in KINDS:
        ins = sum(_bytes(types.get(n, '')) for n in re.findall(r'%([\w.-]+)', rest.partition(')')[0]))
        outs = _bytes(kind) - (ins if op != base and base != 'all-reduce' else 0)
        base = 'reduce-scatter' if name.startswith('all-reduce-scatter') else base
        channel = re.search(r'channel_id=(\d+)', line)
        key = base, channel[1] if channel else f'{name} {at}'
        found[key] = max(found.get(key, (0, 0)), (times, max(ins, outs)))
      inner = times * (_times(line, computations) if op == 'while' else 1)
      for one, several in _CALLED.findall(line):
        for called in [one] if one else re.findall(r'%?([\w.-]+)', several):
          walk(called, inner)

  walk(entry, 1)
  rows = {kind: [v for (k, _), v in found.items() if k == kind] for kind in KINDS}
  return {kind: (sum(n for n, _ in v), sum(n * size for n, size in v)) for kind, v in rows.items() if v}
