"""What documents measure. Pure: an Arrow array of strings in, arrays out.

A rule is the name of a measure and the range [low, high] that it must lie in; `MEASURES` names each one's source and
its published range. All measures of a batch are taken at once and stored beside the text, so that moving a threshold
reads no text again, and a report can show the histogram behind each.

Source: Gopher, Rae et al. 2021, table A1; C4, Raffel et al. 2020, section 2.2; FineWeb, Penedo et al. 2024, section 3.
Words are runs of characters between white space, with their punctuation. Deviation: Gopher counts the characters that
duplicate n-grams cover; here a character counts once however many of them cover it, and the first occurrence of an
n-gram is no duplicate.
"""

from typing import NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute as pc

STOP_WORDS = 'the be to of and that have with'.split()
ENDS = r'[.!?"”’\'…):]$'
BULLETS = '^[-*•‣▪–]'
TOP, DUPLICATE = (2, 3, 4), (5, 6, 7, 8, 9, 10)  # n of n-grams
NONE, MANY = float('-inf'), float('inf')
CAPITALS = np.array([chr(i).isupper() for i in range(128)])
LETTERS = np.array([chr(i).isalpha() for i in range(128)])


class Measure(NamedTuple):
  source: str
  says: str  # of a reader of the report
  low: float = NONE
  high: float = MANY


MEASURES = {
  'words': Measure('Gopher', 'words', 50, 100_000),
  'word_length': Measure('Gopher', 'mean word length, characters', 3, 10),
  'symbols': Measure('Gopher', '# and ellipses per word', high=0.1),
  'bullets': Measure('Gopher', 'share of lines that begin with a bullet', high=0.9),
  'ellipses': Measure('Gopher', 'share of lines that end with an ellipsis', high=0.3),
  'alphabetic': Measure('Gopher', 'share of words with a letter', 0.8),
  'stop_words': Measure('Gopher', 'how many of the, be, to, of, and, that, have, with', 2),
  'duplicate_lines': Measure('Gopher', 'share of lines seen before', high=0.3),
  'duplicate_paragraphs': Measure('Gopher', 'share of paragraphs seen before', high=0.3),
  'duplicate_line_characters': Measure('Gopher', 'share of characters in lines seen before', high=0.2),
  'duplicate_paragraph_characters': Measure('Gopher', 'share of characters in paragraphs seen before', high=0.2),
  **{
    f'top_{n}gram': Measure('Gopher', f'share of characters in the most frequent {n}-gram', high=high)
    for n, high in zip(TOP, (0.20, 0.18, 0.16))
  },
  **{
    f'duplicate_{n}grams': Measure('Gopher', f'share of characters in {n}-grams seen before', high=high)
    for n, high in zip(DUPLICATE, (0.15, 0.14, 0.13, 0.12, 0.11, 0.10))
  },
  'braces': Measure('C4', 'curly brackets', high=0),
  'sentences': Measure('C4', 'ends of sentences', 3),
  'bad_words': Measure('C4', 'words of the list given', high=0),
  'line_ends': Measure('FineWeb', 'share of lines that end with punctuation', 0.12),
  'short_lines': Measure('FineWeb', 'share of lines under 30 characters', high=0.67),
  'capitals': Measure('llmstack', 'share of letters that are capitals', high=0.3),
}
# Measures that `measure` does not take.
OTHERS = {
  'leaked': Measure('GPT-3', 'share of the text that was in an evaluation set and was cut', high=0.5),
  'language_distance': Measure('resiliparse', 'distance from the nearest language', high=1000),
  'quality': Measure('llmstack', 'how sure the classifier is that a person would call it good', 0.5),
  'spam': Measure('llmstack', 'how sure the classifier is that it is spam', high=0.5),
  'toxicity': Measure('llmstack', 'how sure the classifier is that it is toxic', high=0.5),
}


def pieces(lists):
  """Returns (owner int64[M], string[M]): the strings of a list array, trimmed, not empty, and whose they are."""
  owner = np.repeat(np.arange(len(lists)), pc.list_value_length(lists).to_numpy())
  flat = pc.utf8_trim_whitespace(lists.flatten())
  some = pc.greater(pc.binary_length(flat), 0)
  return owner[some.to_numpy(zero_copy_only=False)], flat.filter(some)


def raw(strings):
  """Returns (offsets int64[N+1], bytes uint8) of an arrow string[N], without a copy of the bytes."""
  _, offsets, data = strings.buffers()
  ends = np.frombuffer(offsets, np.int32)[strings.offset : strings.offset + len(strings) + 1].astype(np.int64)
  text = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]] if data is not None else np.zeros(0, np.uint8)
  return ends - ends[0], text


def _characters(words, table, pattern):
  """Returns int64[N]: how many characters of each word `table` (bool[128], of ASCII) or else `pattern` names."""
  ends, text = raw(words)
  before = np.concatenate([[0], np.cumsum(table[text & 127] & (text < 128))])
  out = before[ends[1:]] - before[ends[:-1]]
  wide = pc.invert(pc.string_is_ascii(words))
  out[wide.to_numpy(zero_copy_only=False)] = pc.count_substring_regex(words.filter(wide), pattern).to_numpy()
  return out


def encode(values):
  """Returns (index int64[M], distinct): values = distinct[index], the distinct ones in order of their first place."""
  made = (pyarrow.array(values) if isinstance(values, np.ndarray) else values).dictionary_encode()
  return made.indices.to_numpy().astype(np.int64), made.dictionary


def again(index):
  """Returns bool[M]: whether this index of `encode` was there before."""
  top = np.maximum.accumulate(index)
  out = np.ones(len(index), bool)
  out[np.flatnonzero(np.diff(top, prepend=-1))] = False
  return out


def _share(part, whole):
  return part / np.maximum(whole, 1)


def _repeated(owner, text, n):
  """Returns (share of strings seen before in their document, share of their characters), float[n] each."""
  size = pc.utf8_length(text).to_numpy()
  seen = again(encode(encode(text)[0] * n + owner)[0]) if len(owner) else np.zeros(0, bool)
  count = lambda weights=None, at=slice(None): np.bincount(owner[at], weights, n)  # noqa: E731
  return _share(count(at=seen), count()), _share(count(size[seen], seen), count(size))


def _ngrams(owner, word, size, n):
  """Yields (measure, float[n]) of the repetition of n-grams.

  owner, word, size: int64[M]: the document of each word, its number (equal words of one document have equal ones, and
  no other), its characters. An n-gram repeats only where both (n-1)-grams in it do, so that few places are looked at.
  """
  total = np.maximum(np.bincount(owner, size, n), 1)
  ends = np.concatenate([[0], np.cumsum(size)])
  one, number = word, word.copy()  # of the (k-1)-gram that begins here
  repeats = np.bincount(word)[word] > 1 if len(word) else np.zeros(0, bool)
  for k in range(2, DUPLICATE[-1] + 1):
    at = np.flatnonzero(repeats[:-1] & repeats[1:])
    at = at[at + k <= len(word)]
    # Grams across a border of two documents occur once: words of two documents have different numbers.
    index, _ = encode(number[at] * (len(one) + 1) + one[at + k - 1])
    counts = np.bincount(index)
    many = counts[index] > 1
    out = np.zeros(n)
    if k in TOP and many.any():
      first = np.flatnonzero(~again(index))
      whose, span, times = owner[at[first]], ends[at[first] + k] - ends[at[first]], counts
      begin = np.flatnonzero(np.diff(whose, prepend=-1))
      most = np.repeat(np.maximum.reduceat(times, begin), np.diff(begin, append=len(whose)))
      best = np.where((times == most) & (times > 1), times * span, 0)
      out[whose[begin]] = np.maximum.reduceat(best, begin)
    elif k in DUPLICATE and many.any():
      places = at[again(index)]
      cover = np.zeros(len(word) + 1, np.int64)
      cover[places] += 1
      cover[places + k] -= 1
      covered = np.cumsum(cover[:-1]) > 0
      out = np.bincount(owner[covered], size[covered], n)
    if k in TOP + DUPLICATE:
      yield (f'top_{k}gram' if k in TOP else f'duplicate_{k}grams'), out / total
    repeats = np.zeros(len(word), bool)
    repeats[at[many]] = True
    number[at] = index


def measure(texts, bad_words=()):
  """Returns {name of MEASURES: float32[N]}.

  texts: arrow string[N]. bad_words: lower-case words, compared without the punctuation around them.
  """
  n = len(texts)
  owner, words = pieces(pc.utf8_split_whitespace(texts))
  index, distinct = encode(words)
  bare = pc.utf8_lower(pc.utf8_trim(distinct, characters='.,;:!?"\'()[]{}<>*_“”‘’…-–—'))
  at_words = lambda of_distinct: np.asarray(of_distinct)[index]  # noqa: E731
  per_document = lambda weights=None: np.bincount(owner, weights, n)  # noqa: E731
  size = at_words(pc.utf8_length(distinct)).astype(np.int64)
  letters, total = at_words(_characters(distinct, LETTERS, r'\pL')), per_document()
  stop = at_words(pc.fill_null(pc.index_in(bare, pyarrow.array(STOP_WORDS)), -1))
  said = np.bincount(owner[stop >= 0] * len(STOP_WORDS) + stop[stop >= 0], minlength=n * len(STOP_WORDS))
  bad = pc.is_in(bare, pyarrow.array(sorted(bad_words), pyarrow.string()))
  line_of, lines = pieces(pc.split_pattern(texts, '\n'))
  of_lines = lambda which: _share(np.bincount(line_of, np.asarray(which), n), np.bincount(line_of, minlength=n))  # noqa: E731
  matching = lambda pattern: of_lines(pc.match_substring_regex(lines, pattern))  # noqa: E731
  symbols = sum(np.asarray(pc.count_substring(texts, s)) for s in ('#', '...', '…'))
  own, _ = encode(owner * len(distinct) + index)
  out = {
    'words': total,
    'word_length': _share(per_document(size), total),
    'symbols': _share(symbols, total),
    'bullets': matching(BULLETS),
    'ellipses': matching(r'(\.\.\.|…)$'),
    'alphabetic': _share(per_document(letters > 0), total),
    'stop_words': (said.reshape(n, -1) > 0).sum(1),
    'braces': np.asarray(pc.count_substring_regex(texts, '[{}]')),
    'sentences': per_document(at_words(pc.match_substring_regex(distinct, r'[.!?]["”’\')]*$'))),
    'bad_words': per_document(at_words(bad)),
    'line_ends': matching(ENDS),
    'short_lines': of_lines(pc.less(pc.utf8_length(lines), 30)),
    'capitals': _share(per_document(at_words(_characters(distinct, CAPITALS, r'\p{Lu}'))), per_document(letters)),
    **dict(_ngrams(owner, own, size, n)),
  }
  out['duplicate_lines'], out['duplicate_line_characters'] = _repeated(line_of, lines, n)
  repeated = _repeated(*pieces(pc.split_pattern(texts, '\n\n')), n)
  out['duplicate_paragraphs'], out['duplicate_paragraph_characters'] = repeated
  return {name: out[name].astype(np.float32) for name in MEASURES}
