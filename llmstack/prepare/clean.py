"""What happens to a text before it is judged: repair, lines that are no text, personal data. Arrow strings in and out.

Each step returns its input where nothing is to be done, so that `changed` can count the documents it touched.
"""

import functools
import ipaddress
import re

import numpy as np
import pyarrow
import pyarrow.compute as pc

from llmstack.errors import BadInput
from llmstack.prepare import rules

# Of each byte of ASCII text, what it is as part of a word in lower case, or a space.
LOWER = np.array(
  [ord(chr(i).lower()) if i < 128 and (chr(i).isalnum() or i == 95) else 32 for i in range(256)], np.uint8
)
CONTROL = '[\\x00-\\x08\\x0b-\\x1f\\x7f\\x{FEFF}]'  # but tab and newline
# Source: C4 (policies, scripts) and RefinedWeb, Penedo et al. 2023, appendix G.2 (navigation, calls to action).
POLICY = (
  r'(?i)terms of use|privacy policy|cookie policy|\buses? (?:of )?cookies|\bcookies (?:help|are)|javascript|lorem ipsum'
)
ACTION = (
  r'(?i)\b(?:log ?in|sign[ -]?(?:in|up)|skip to (?:main )?content|you (?:may|might) also like|subscribe|newsletter'
  r'|read more|(?:comments?|posts?) (?:are|is) closed|all rights reserved|powered by|last updated|share this'
  r'|leave a (?:comment|reply)|accept all|enable scripts)\b'
)
MENU = r'(?:\s[|›»>·•]\s.*){2}|\S {2,}\S.* {2,}\S'  # words between bars or wide gaps
SHORT = 15  # words of a line that a call to action makes no text

OCTET = r'(?:25[0-5]|2[0-4]\d|1?\d?\d)'
PII = {
  'EMAIL': r'\b[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b',
  'IP': rf'\b(?:{OCTET}\.){{3}}{OCTET}\b',
  'PHONE': r'(?:\+\d{1,3}[ .-]?)?\(\d{3}\)[ .-]?\d{3}[ .-]\d{4}\b|\b\d{3}[.-]\d{3}[.-]\d{4}\b'
  r'|\+\d{1,3}(?:[ .-]\d{2,4}){3,5}\b',
  'KEY': r'\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bsk-[A-Za-z0-9_-]{20,}\b'
  r'|\bAIza[0-9A-Za-z_-]{35}\b|\bxox[baprs]-[A-Za-z0-9-]{10,}\b'
  r'|-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*-----END [A-Z ]*PRIVATE KEY-----',
}


def changed(before, after):
  """Returns bool[N]: which texts a step changed."""
  return np.zeros(len(before), bool) if before is after else pc.not_equal(before, after).to_numpy(zero_copy_only=False)


def _map(function, texts, which):
  """Returns the texts with function(str) -> str applied where `which` (arrow bool[N]) says so."""
  which = pc.fill_null(which, False)
  if not pc.any(which).as_py():
    return texts
  return pc.replace_with_mask(texts, which, pyarrow.array(map(function, texts.filter(which).to_pylist()), texts.type))


def repair(texts):
  """Returns the texts with Unix newlines, without control characters and byte-order marks, and mojibake undone.

  Source: ftfy (Speer 2019), on the lines that its own test of badness finds, of those with two characters beyond ASCII
  side by side, which mojibake has; typographic quotes and the like stay.
  """
  plain = lambda t: re.sub('[\x00-\x08\x0b-\x1f\x7f\ufeff]', '', re.sub('\r\n?|\f', '\n', t))  # noqa: E731
  texts = _map(plain, texts, pc.match_substring_regex(texts, CONTROL))
  wide = pc.invert(pc.string_is_ascii(texts))
  if not pc.any(wide).as_py():
    return texts
  lines = pc.split_pattern(texts.filter(wide), '\n').flatten()
  strange = lines.filter(pc.match_substring_regex(lines, '[^\\x00-\\x7f]{2}')).unique().to_pylist()
  is_bad, fix = _ftfy()
  fixes = {line: fixed for line in strange if is_bad(line) and (fixed := fix(line)) != line}
  if not fixes:
    return texts
  return _map(lambda t: '\n'.join(fixes.get(line, line) for line in t.split('\n')), texts, wide)


@functools.cache
def _ftfy():
  try:
    import ftfy
    import ftfy.badness
  except ImportError:
    raise BadInput("clean.repair needs ftfy: pip install 'llmstack[data]', or set clean.repair=False") from None
  config = ftfy.TextFixerConfig(
    unescape_html=False, uncurl_quotes=False, fix_latin_ligatures=False, fix_character_width=False, normalization=None,
    remove_terminal_escapes=False, fix_line_breaks=False, explain=False,
  )  # fmt: skip
  return ftfy.badness.is_bad, lambda line: ftfy.fix_text(line, config)


def drop_lines(texts, *, line_words, drop_policy, known=None):
  """Returns the texts without the lines that are no text, '' where nothing is left.

  line_words: fewest words of a line that ends without punctuation, 0 to keep them all. A list or a title is text to a
    language model, so that, unlike C4, a long line may end without punctuation.
  drop_policy: whether lines about cookies, scripts and terms of use, menus and short calls to action go.
  known: uint64 sorted, `line_keys` of lines that occur too often in the corpus, or None.
  """
  lists = pc.split_pattern(texts, '\n')
  lines = lists.flatten()
  bare = pc.utf8_trim_whitespace(lines)
  drop = np.zeros(len(lines), bool)
  there = pc.greater(pc.binary_length(bare), 0).to_numpy(zero_copy_only=False)
  if drop_policy:
    drop |= _matches(bare, POLICY) | _matches(bare, MENU)
    drop |= _matches(bare, ACTION) & (pc.count_substring(bare, ' ').to_numpy() < SHORT)
  if line_words:
    drop |= ~_matches(bare, rules.ENDS) & (pc.count_substring(bare, ' ').to_numpy() + 1 < line_words)
  if known is not None and len(known):
    drop |= np.isin(line_keys(bare), known)
  drop &= there
  if not drop.any():
    return texts
  owner = np.repeat(np.arange(len(texts)), pc.list_value_length(lists).to_numpy())
  hit = np.zeros(len(texts), bool)
  hit[owner[drop]] = True
  keep = ~drop & hit[owner]
  counts = np.bincount(owner[keep], minlength=len(texts))[hit]
  offsets = pyarrow.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
  joined = pc.binary_join(pyarrow.ListArray.from_arrays(offsets, lines.filter(pyarrow.array(keep))), '\n')
  joined = pc.utf8_trim_whitespace(pc.replace_substring_regex(joined, '\n{3,}', '\n\n'))
  return pc.replace_with_mask(texts, pyarrow.array(hit), joined)


def _matches(lines, pattern):
  return pc.match_substring_regex(lines, pattern).to_numpy(zero_copy_only=False)


def line_keys(lines):
  """Returns uint64[M]: a hash of each string, 0 for the empty one; equal strings have equal ones, for ever.

  A polynomial in its bytes modulo 2^64, well mixed; who makes texts to collide can.
  """
  ends, text = rules.raw(pyarrow.array(lines, pyarrow.string()) if isinstance(lines, list) else lines)
  size = np.diff(ends)
  out = np.zeros(len(lines), np.uint64)
  if not size.sum():
    return out
  text = text.astype(np.uint64) + np.uint64(1)
  place = np.arange(len(text)) - np.repeat(ends[:-1], size)
  some = np.flatnonzero(size)
  powers = np.cumprod(np.full(int(size.max()), 0x9E3779B97F4A7C15, np.uint64))
  sums = np.add.reduceat(text * powers[place], ends[:-1][some])
  out[some] = (sums ^ (sums >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
  return out ^ (out >> np.uint64(32))


def mask(texts):
  """Returns (texts with e-mail and public IP addresses, phone numbers, keys as <EMAIL>, <IP>, ..., {kind: how many}).

  Private, loopback and documentation addresses stay. Source: the kinds are those of Dolma, Soldaini et al. 2024, and
  of FineWeb; recall is bought with patterns that ask for separators, so that plain numbers stay.
  """
  counts = {}
  for kind, pattern in PII.items():
    hit = pc.match_substring_regex(texts, pattern)
    if not pc.any(hit).as_py():
      continue
    found = [0]

    def replace(match, kind=kind, found=found):
      if kind == 'IP' and not ipaddress.ip_address(match[0]).is_global:
        return match[0]
      found[0] += 1
      return f'<{kind}>'

    texts = _map(functools.partial(re.sub, pattern, replace, flags=re.ASCII), texts, hit)
    counts[kind] = found[0]
  return texts, counts


def normalise(texts):
  """Returns the texts as words in lower case between single spaces, everything that is no letter or digit left out."""
  wide = pc.invert(pc.string_is_ascii(texts))
  if pc.all(wide).as_py():
    return _normalise(texts)
  plain = _normalise_ascii(pc.if_else(wide, '', texts))
  return pc.replace_with_mask(plain, wide, _normalise(texts.filter(wide))) if pc.any(wide).as_py() else plain


def _normalise_ascii(texts):
  """Returns what `_normalise` does, ten times as fast, of texts that are ASCII."""
  ends, data = rules.raw(texts)
  data = LOWER[np.concatenate([data, [32]])]
  word = data != 32
  keep = word.copy()
  keep[:-1] |= word[1:]  # of each run of spaces the last one, if a word follows
  last = ends[1:][np.diff(ends) > 0] - 1
  keep[last] &= word[last]  # of the same text
  places = np.append(np.flatnonzero(word), len(data))
  first = places[np.searchsorted(places, ends[:-1])]
  lead = first[(first > ends[:-1]) & (first < ends[1:])] - 1
  keep[lead] = False  # and one has been before
  keep[-1] = False
  after = np.concatenate([[0], np.cumsum(keep)])[ends]
  return pyarrow.StringArray.from_buffers(
    len(texts), pyarrow.py_buffer(after.astype(np.int32)), pyarrow.py_buffer(data[keep])
  )


def _normalise(texts):
  return pc.utf8_trim_whitespace(pc.replace_substring_regex(pc.utf8_lower(texts), r'[^\pL\pN_]+', ' '))
