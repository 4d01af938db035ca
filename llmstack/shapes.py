"""Run-time shape checks in the letters of the alphabet (README, "The alphabet").

`check('BTV,BT', logits, mask)` binds each letter to a size over all its arrays and raises when one
letter would need two sizes. It runs at trace time: inside `jax.jit` it costs nothing per step.
"""

NAMES = {
  'B': 'sequences', 'T': 'query positions', 'S': 'cache positions', 'D': 'model width', 'N': 'query heads',
  'K': 'key/value heads', 'G': 'query heads per kv head', 'H': 'head width', 'F': 'feed-forward width',
  'V': 'vocabulary', 'L': 'layers', 'E': 'experts', 'R': 'LoRA rank', 'P': 'prompts', 'M': 'completions',
  'C': 'chunk',
}  # fmt: skip


def check(letters, *arrays):
  """Returns {letter: size}; raises ValueError where ranks or sizes disagree.

  letters: one word per array, separated by commas, e.g. 'BTV,BT'; '' is a scalar.
  """
  words = letters.split(',')
  if len(words) != len(arrays):
    raise ValueError(f'check({letters!r}) names {len(words)} arrays and was given {len(arrays)}')
  bound = {}
  for i, (word, array) in enumerate(zip(words, arrays)):
    if len(array.shape) != len(word):
      raise ValueError(f'array {i} should be {word or "a scalar"} but has shape {tuple(array.shape)}')
    for letter, size in zip(word, array.shape):
      if bound.setdefault(letter, size) != size:
        raise ValueError(
          f'array {i} should be {word} with {letter} ({NAMES.get(letter, letter)}) = {bound[letter]} '
          f'but has shape {tuple(array.shape)}'
        )
  return bound
