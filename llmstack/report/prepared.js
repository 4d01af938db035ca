// Draws a preparation of text; draw.js comes before. Documents are strangers' words: they become text nodes, with
// their control characters spelled out, in boxes that end where they end.
const names = Object.keys(data.sources)
const entries = (x) => Object.entries(x || {})
const some = (x) => (x && Object.keys(x).length ? x : null) // an empty list or object is as good as absent
const share = (v) => (v > 0 && v < 0.0005 ? '< 0.1 %' : percent(v))
const of = (a, b) => (b ? a / b : 0)
const label = (step) => step.replace(/^- /, '').replaceAll('_', ' ')
const rate = (v) => (v === null || v === undefined ? '' : significant(v, 3))
const tick = (v) => (Math.abs(v) >= 1e4 ? short(v) : rate(v))
const td = (...kids) => el('td', {}, ...kids)
const num = (...kids) => el('td', { class: 'num' }, ...kids)
const note = (...kids) => el('p', { class: 'note' }, ...kids)
const table = (head, rows, cls) => el('div', { class: 'wide' }, el('table', { class: cls },
  el('thead', {}, el('tr', {}, ...head.map((h) => el('th', { scope: 'col', class: h.startsWith('#') ? 'num' : null }, h.replace(/^#/, ''))))), el('tbody', {}, ...rows)))
const meter = (...parts) => el('div', { class: 'track meter', 'aria-hidden': 'true' }, ...parts.filter(([, v]) => v > 0).map(([cls, v]) => { const d = el('div', { class: cls }); d.style.width = `${100 * Math.min(1, v)}%`; return d }))
const source = (name) => el('span', { class: `source ${look(names.indexOf(name))}` }, el('span', { class: 'swatch' }), name, data.sources[name] && data.sources[name].synthetic ? el('span', { class: 'note' }, ' synthetic') : null)

// ---------------------------------------------------------------- plots that know their width
const plots = []
function plot(parent, height, says, draw) {
  const node = svg('svg', { class: 'plot', role: 'img', 'aria-label': says })
  const figure = el('figure', {}, node)
  parent.append(figure)
  plots.push(() => {
    const W = Math.max(240, figure.clientWidth)
    node.setAttribute('viewBox', `0 0 ${W} ${height}`)
    node.replaceChildren()
    draw((tag, attrs, ...kids) => node.appendChild(svg(tag, attrs, ...kids)), W, height)
  })
}

// ---------------------------------------------------------------- the funnel
// Rows {step, documents, bytes, goneDocuments, goneBytes} of these sources together: what is left behind each step.
function funnel(of) {
  const order = []
  for (const name of of) {
    let at = -1
    for (const [step] of data.sources[name].funnel) {
      if (!order.includes(step)) order.splice(at + 1, 0, step)
      at = order.indexOf(step)
    }
  }
  const left = new Map(of.map((name) => [name, [0, 0]]))
  let before = null
  return order.map((step) => {
    for (const name of of) {
      const row = data.sources[name].funnel.find((r) => r[0] === step)
      if (row) left.set(name, step.startsWith('- ') ? left.get(name).map((v, i) => v + row[i + 1]) : row.slice(1))
    }
    const [documents, size] = [0, 1].map((i) => [...left.values()].reduce((a, v) => a + v[i], 0))
    const out = { step, documents, bytes: size, goneDocuments: before ? before[0] - documents : 0, goneBytes: before ? before[1] - size : 0 }
    before = [documents, size]
    return out
  })
}
const all = funnel(names)
const read = all[0] || { documents: 0, bytes: 0 }
const kept = last(all) || read
const rules = [...new Set([...all.map((r) => r.step).filter((s) => s.startsWith('- ')).map((s) => s.slice(2)), ...Object.keys(data.examples || {}), ...Object.keys(data.histograms || {})])]
const anchor = (rule) => `rule-${rules.indexOf(rule)}-${rule.replace(/[^a-zA-Z0-9]+/g, '-')}`
const link = (rule) => el('a', { href: `#${anchor(rule)}` }, label(rule))

function drawFunnel(root) {
  const box = el('div', {})
  const choices = [null, ...names]
  const buttons = choices.map((name) => el('button', { type: 'button', onclick: () => show(name) }, name ?? 'all sources'))
  const cell = (left, gone, total, word) => el('td', {},
    el('div', { class: 'step-line' }, el('span', {}, el('strong', {}, gone ? `−${word(gone)}` : word(left)), ' ', el('span', { class: 'note' }, share(of(gone || left, total)))), gone ? el('span', { class: 'note' }, `${word(left)} left`) : null),
    meter(['left', of(left, total)], ['gone', Math.max(0, of(gone, total))]))
  function show(name) {
    buttons.forEach((b, i) => b.setAttribute('aria-pressed', String(choices[i] === name)))
    const rows = funnel(name === null ? names : [name])
    box.className = name === null ? '' : look(names.indexOf(name))
    const [d, b] = rows.length ? [rows[0].documents, rows[0].bytes] : [0, 0]
    box.replaceChildren(table(['step', 'documents', 'bytes'], rows.map((r) => el('tr', { class: r.step.startsWith('- ') ? 'rule' : 'total' },
      el('th', { scope: 'row' }, r.step.startsWith('- ') ? link(r.step.slice(2)) : label(r.step)),
      cell(r.documents, r.goneDocuments, d, whole), cell(r.bytes, r.goneBytes, b, (n) => (n < 0 ? `−${bytes(-n)}` : bytes(n))))), 'funnel'))
  }
  root.append(note('The bar is what is left of what was read, the red end what this step took. A document counts under the first rule that it breaks.'),
    el('div', { class: 'choices', role: 'group', 'aria-label': 'Whose funnel' }, ...buttons), box)
  show(null)
  const each = names.map((name) => funnel([name]))
  const shown = rules.filter((rule) => all.some((r) => r.step === `- ${rule}`))
  if (names.length > 1 && shown.length) {
    root.append(el('h3', { class: 'apart' }, 'Share of each source\'s documents that a rule removes'), table(['rule', ...names.map((n) => `#${n}`)], [
      ...shown.map((rule) => el('tr', {}, el('th', { scope: 'row' }, link(rule)), ...each.map((rows) => {
        const r = rows.find((row) => row.step === `- ${rule}`)
        const v = r ? of(r.goneDocuments, rows[0].documents) : 0
        const c = num(v ? share(v) : el('span', { class: 'note' }, '0'))
        c.style.background = `color-mix(in srgb, var(--bad) ${Math.round(Math.min(60, 150 * v))}%, transparent)`
        return c
      }))),
      el('tr', { class: 'total' }, el('th', { scope: 'row' }, 'kept'), ...each.map((rows) => num(el('strong', {}, rows.length ? share(of(last(rows).documents, rows[0].documents)) : ''))))], 'matrix'))
  }
}

// ---------------------------------------------------------------- texts
// The words of a and b with those marked that the other lacks at that place (longest common subsequence).
function compare(a, b) {
  const [x, y] = [a, b].map((t) => visible(t).match(/\s+|\S+/g) || [])
  if (x.length * y.length > 4e5) return [[x.join('')], [y.join('')]]
  const best = Array.from({ length: x.length + 1 }, () => new Uint16Array(y.length + 1))
  for (let i = x.length - 1; i >= 0; i--) for (let j = y.length - 1; j >= 0; j--) best[i][j] = x[i] === y[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1])
  const out = [[], []]
  const put = (side, word, mark) => {
    const list = out[side], open = list.length && mark === (last(list).nodeType === 1)
    if (open) last(list).textContent += word
    else list.push(mark ? el('mark', { class: side ? 'new' : 'gone' }, word) : document.createTextNode(word))
  }
  let i = 0, j = 0
  while (i < x.length || j < y.length) {
    if (i < x.length && j < y.length && x[i] === y[j]) { put(0, x[i++], false); put(1, y[j++], false) }
    else if (j >= y.length || (i < x.length && best[i + 1][j] >= best[i][j + 1])) put(0, x[i++], true)
    else put(1, y[j++], true)
  }
  return out
}
const excerpt = (cls, head, kids) => el('article', { class: `text ${cls || 'plain'}` }, el('header', {}, ...head), el('p', { dir: 'auto' }, ...kids))
const origin = (e) => [el('span', { class: 'mono' }, visible(String(e.id))), e.source && !String(e.id).startsWith(e.source) ? ` · ${e.source}` : null]
const limits = (low, high) => [low === null || low === undefined ? null : `at least ${rate(low)}`, high === null || high === undefined ? null : `at most ${rate(high)}`].filter(Boolean).join(', ')
function example(e) {
  const against = limits(e.low, e.high)
  const value = typeof e.value === 'number' ? significant(e.value, 4) : e.value === null || e.value === undefined ? '' : visible(String(e.value))
  const head = [...origin(e), value !== '' ? el('div', {}, e.of ? 'similarity ' : null, el('b', {}, value), against ? ` against ${against}` : '') : null]
  if (!e.of) return excerpt('', head, [visible(e.text)])
  const [gone, stays] = compare(e.text, e.of_text)
  return el('div', { class: 'pair' }, excerpt('removed', ['removed: ', ...head], gone), excerpt('', ['kept: ', el('span', { class: 'mono' }, visible(String(e.of)))], stays))
}
function folded(nodes, first, word) {
  const wide = nodes.some((n) => n.className === 'pair')
  const box = (list) => el('div', { class: wide ? 'stack' : 'texts few' }, ...list)
  const rest = nodes.slice(first)
  return [box(nodes.slice(0, first)), rest.length ? el('details', {}, el('summary', {}, `${many(rest.length, `more ${word}`)}`), box(rest)) : null]
}

// ---------------------------------------------------------------- histograms
function histogram(parent, name, h) {
  const n = h.kept.length, [up, down] = [h.kept, h.removed].map((v) => Math.max(0, ...v))
  const height = (v) => Math.log10(1 + v), scale = height(up) + height(down) || 1
  const sum = (v) => v.reduce((a, b) => a + b, 0)
  // A place in units of bins, which are drawn equally wide: their edges may grow by factors.
  const place = (v) => {
    const i = h.edges.findIndex((e, k) => k && v <= e)
    if (i < 0) return v < h.edges[0] ? 0 : n
    return v <= h.edges[i - 1] ? i - 1 : i - 1 + (v - h.edges[i - 1]) / (h.edges[i] - h.edges[i - 1])
  }
  const lines = [['low', h.low, '≥'], ['high', h.high, '≤']].filter(([, v]) => v !== null && v !== undefined)
  plot(parent, 190, `Histogram of ${label(name)}: ${whole(sum(h.kept))} kept, ${whole(sum(h.removed))} removed; ${limits(h.low, h.high) || 'no limit'}`, (put, W, H) => {
    const box = { l: 40, r: 8, t: 18, b: 20 }, w = W - box.l - box.r, tall = H - box.t - box.b
    const X = (i) => box.l + (w * i) / n, zero = box.t + (tall * height(up)) / scale, unit = tall / scale
    for (const [most, sign] of [[up, -1], [down, 1]]) for (let t = 10; t <= most; t *= most > 1e5 ? 100 : 10) {
      const y = zero + sign * unit * height(t)
      put('line', { class: 'grid', x1: box.l, x2: W - box.r, y1: y, y2: y })
      put('text', { x: box.l - 6, y: y + 4, 'text-anchor': 'end' }, short(t))
    }
    for (const [key, v] of lines) {
      const x = X(place(v))
      put('rect', { class: 'beyond', x: key === 'low' ? box.l : x, width: key === 'low' ? x - box.l : W - box.r - x, y: box.t, height: tall })
    }
    for (let i = 0; i < n; i++) {
      const says = `${rate(h.edges[i]) || '−∞'} to ${rate(h.edges[i + 1]) || '∞'}: ${whole(h.kept[i])} kept, ${whole(h.removed[i])} removed`
      const wide = Math.max(0.5, w / n - 1)
      put('rect', { class: 'stays', x: X(i), width: wide, y: zero - unit * height(h.kept[i]), height: unit * height(h.kept[i]) })
      put('rect', { class: 'bad', x: X(i), width: wide, y: zero, height: unit * height(h.removed[i]) })
      put('rect', { class: 'ghost', x: X(i), width: w / n, y: box.t, height: tall }, svg('title', {}, says))
    }
    put('line', { class: 'axis', x1: box.l, x2: W - box.r, y1: zero, y2: zero })
    const count = Math.max(2, Math.floor(w / 64)), span = h.edges[n] - h.edges[0]
    const even = h.edges.every((e, i) => Math.abs(e - h.edges[0] - (span * i) / n) < 1e-3 * span)
    for (const t of even ? ticks(h.edges[0], h.edges[n], Math.min(count, 10)) : h.edges.filter((_, i) => i % Math.ceil(n / count) === 0)) put('text', { x: X(place(t)), y: H - 4, 'text-anchor': X(place(t)) > W - 20 ? 'end' : 'middle' }, tick(t))
    for (const [, v, word] of lines) {
      const x = X(place(v)), right = x > box.l + w * 0.7
      put('line', { class: 'limit', x1: x, x2: x, y1: box.t - 14, y2: box.t + tall })
      put('text', { class: 'end', x: x + (right ? -5 : 5), y: box.t - 6, 'text-anchor': right ? 'end' : 'start' }, `${word} ${tick(v)}`)
    }
  })
}

function drawRules(root) {
  if (!rules.length) { root.append(note('No rule removed a document.')); return }
  root.append(note('In a histogram, what was kept stands above the line and what was removed, by any rule, hangs below it; both on a logarithmic scale. Beyond the limit is shaded.'))
  const idle = (rule) => { const h = (data.histograms || {})[rule]; return h && h.low == null && h.high == null && !all.some((r) => r.step === `- ${rule}`) }
  drawEach(root, rules.filter((rule) => !idle(rule)))
  const rest = rules.filter(idle)
  if (!rest.length) return
  const more = el('details', {}, el('summary', {}, `${many(rest.length, 'measure')} without a limit`))
  more.addEventListener('toggle', () => { if (more.children.length === 1) drawEach(more, rest) })  // a closed one has no width to draw in
  root.append(more)
}

function drawEach(root, names) {
  for (const rule of names) {
    const row = all.find((r) => r.step === `- ${rule}`), h = (data.histograms || {})[rule], list = (data.examples || {})[rule] || []
    const part = el('article', { class: 'rule-box', id: anchor(rule), tabindex: -1 }, el('h3', {}, label(rule), h && limits(h.low, h.high) ? el('span', { class: 'unit' }, ` ${limits(h.low, h.high)}`) : null),
      note([h && h.says, h && h.origin, row ? `removed ${many(row.goneDocuments, 'document')} (${share(of(row.goneDocuments, read.documents))}), ${bytes(row.goneBytes)}` : 'removed nothing'].filter(Boolean).join(' · ')))
    root.append(part)
    if (h) histogram(part, rule, h)
    if (list.length) part.append(...folded(list.map(example), list[0].of ? 2 : 3, 'example').filter(Boolean))
    else if (row) part.append(note('No example was recorded.'))
  }
}

// ---------------------------------------------------------------- near duplicates
function drawDuplicates(root) {
  const c = some(data.clusters), s = some(data.curve)
  if (!c && !s) { root.append(note('Near duplicates were not looked for.')); return }
  const grid = el('div', { class: 'halves' })
  root.append(grid)
  if (s) {
    const part = el('div', {}, el('h3', {}, 'How similar a pair must be to be found'), note(`${many(s.bands, 'band')} of ${many(s.rows, 'row')}: the share of pairs of each Jaccard similarity that become candidates. Those whose signatures agree in at least ${rate(s.confirm)} count as duplicates.`))
    grid.append(part)
    plot(part, 230, `S-curve of ${s.bands} bands of ${s.rows} rows; threshold ${rate(s.threshold)}`, (put, W, H) => {
      const box = { l: 42, r: 10, t: 18, b: 34 }, X = (v) => box.l + (W - box.l - box.r) * v, Y = (v) => box.t + (H - box.t - box.b) * (1 - v)
      for (const t of ticks(0, 1, 4)) { put('line', { class: 'grid', x1: X(0), x2: X(1), y1: Y(t), y2: Y(t) }); put('text', { x: X(0) - 6, y: Y(t) + 4, 'text-anchor': 'end' }, percent(t)) }
      for (const t of ticks(0, 1, 5)) put('text', { x: X(t), y: H - 18, 'text-anchor': 'middle' }, String(t))
      put('text', { x: X(0.5), y: H - 3, 'text-anchor': 'middle' }, 'Jaccard similarity')
      put('path', { class: 'main r0', d: s.jaccard.map((j, i) => `${i ? 'L' : 'M'}${X(j).toFixed(1)} ${Y(s.found[i]).toFixed(1)}`).join('') })
      for (const [v, word, up] of [[s.threshold, 'must be found', 0], [s.confirm, 'confirmed', 16]]) if (v !== null && v !== undefined) {
        put('line', { class: 'limit', x1: X(v), x2: X(v), y1: box.t - 14 + up, y2: Y(0) })
        put('text', { class: 'end', x: X(v) - 5, y: box.t - 5 + up, 'text-anchor': 'end' }, `${word} from ${rate(v)}`)
      }
    })
  }
  if (c) {
    const groups = new Map() // 2, 3-4, 5-8, 9-16, ..
    for (const [size, count] of c.sizes || []) { const g = Math.ceil(Math.log2(size)); groups.set(g, (groups.get(g) || 0) + count) }
    const rows = [...groups].sort((a, b) => a[0] - b[0]), most = Math.max(1, ...rows.map((r) => r[1]))
    const total = rows.reduce((a, r) => a + r[1], 0)
    grid.append(el('div', {}, el('h3', {}, 'Documents per cluster'), total ? note(`${many(total, 'cluster')}; one document of each is kept.`) : note('No two documents are near duplicates.'),
      rows.length ? table(['size', '#clusters', ''], rows.map(([g, count]) => el('tr', {}, td(g <= 1 ? String(2 ** g) : `${2 ** (g - 1) + 1} to ${whole(2 ** g)}`), num(whole(count)), td(meter(['left', count / most])))), 'sizes') : null))
    if (some(c.largest)) {
      root.append(el('h3', { class: 'apart' }, 'The largest clusters'), ...folded(c.largest.map((k) => excerpt('', [el('b', {}, many(k.size, 'document')), el('span', { class: 'mono' }, ` ${visible((k.ids || []).slice(0, 4).join(', '))}${k.ids && k.size > 4 ? ', …' : ''}`)], [visible(k.text)])), 3, 'cluster').filter(Boolean))
    }
  }
}

// ---------------------------------------------------------------- cleaning, languages, leaks
function drawCleaning(root) {
  const steps = entries(data.edits).filter(([, list]) => list.length)
  if (!steps.length) { root.append(note('Cleaning changed no text, or no change was recorded.')); return }
  for (const [step, list] of steps) root.append(el('h3', { class: 'apart' }, label(step)), ...folded(list.map((e) => {
    const [before, after] = compare(e.before, e.after)
    return el('div', { class: 'pair' }, excerpt('removed', ['before: ', ...origin(e)], before), excerpt('', ['after'], after.length ? after : [el('mark', {}, '(nothing)')]))
  }), 2, 'change').filter(Boolean))
}
function drawLanguages(root) {
  const rows = entries(data.languages).filter(([, v]) => some(v))
  if (!rows.length) { root.append(note('Languages were not identified.')); return }
  const totals = new Map()
  for (const [, langs] of rows) for (const [l, n] of Object.entries(langs)) totals.set(l, (totals.get(l) || 0) + n)
  const order = [...totals].sort((a, b) => b[1] - a[1]).map(([l]) => l), shown = order.slice(0, 5)
  const parts = (langs) => {
    const total = Object.values(langs).reduce((a, b) => a + b, 0)
    const list = shown.map((l, i) => [l, Object.hasOwn(langs, l) ? langs[l] : 0, look(i)])
    const rest = total - list.reduce((a, p) => a + p[1], 0)
    return [...list, [order.length === 6 ? order[5] : `${order.length - 5} others`, rest, look(5)]].filter((p) => p[1]).map(([l, n, cls]) => [l, n, of(n, total), cls])
  }
  for (const [name, langs] of rows) {
    root.append(el('h3', {}, name), meterOf(parts(langs)))
  }
}
// A stacked bar with its numbers. parts: [[word, documents or bytes as text or number, share, class]].
function meterOf(parts) {
  return el('div', {}, el('div', { class: 'bar', 'aria-hidden': 'true' }, ...parts.map(([word, , v, cls]) => { const d = el('div', { class: `tone ${cls}`, title: word }); d.style.flex = `${v} 0 0`; return d })),
    el('div', { class: 'split' }, ...parts.map(([word, n, v, cls]) => el('span', { class: cls }, el('span', { class: 'swatch' }), `${visible(word)} `, el('strong', {}, typeof n === 'number' ? whole(n) : n), ` ${share(v)}`))))
}
function drawLeaks(root) {
  const files = entries(data.leaked), list = data.leaks || []
  if (!data.leaked && !data.leaks) { root.append(note('No evaluation files were given to look for.')); return }
  if (!list.length && !files.some(([, n]) => n)) root.append(note(`None of the texts of ${many(files.length, 'evaluation file')} occurs in the data.`))
  if (files.length) root.append(table(['evaluation file', '#documents with its text'], files.map(([f, n]) => el('tr', {}, el('td', { class: 'mono' }, visible(f)), num(whole(n)))), 'narrow'))
  if (list.length) root.append(el('h3', { class: 'apart' }, 'What both hold'), ...folded(list.map((l) => excerpt('', [...origin(l), el('div', {}, 'in ', el('b', {}, visible(l.eval)))], [visible(l.ngram)])), 6, 'document').filter(Boolean))
}

// ---------------------------------------------------------------- tables
function drawMixture(root) {
  const m = some(data.mixture)
  if (!m || !some(m.rows)) { root.append(note('No mixture was computed.')); return }
  const stages = [...new Set(m.rows.map((r) => r.stage))]
  if (m.tokens) root.append(note(`For ${short(m.tokens)} tokens of training. Epochs say how often each token of a source is seen.`))
  for (const stage of stages) {
    const rows = m.rows.filter((r) => r.stage === stage)
    root.append(stages.length > 1 || stage ? el('h3', { class: 'apart' }, `stage ${stage}`) : '', meterOf(rows.map((r) => [r.source, `${short(r.drawn_tokens)} tokens`, r.share, look(names.indexOf(r.source))])),
      table(['source', '#weight', '#documents', '#size', '#tokens', '#share', '#epochs', '#drawn', ''], rows.map((r) => el('tr', {}, td(source(r.source)), num(rate(r.weight)), num(whole(r.documents)), num(bytes(r.bytes)), num(short(r.tokens)), num(share(r.share)), num(significant(r.epochs, 3)), num(short(r.drawn_tokens)), td(r.capped ? el('span', { class: 'badge stopped' }, 'epochs capped') : '')))))
  }
}
function drawTokenizer(root) {
  const rows = data.tokenizer && data.tokenizer.rows
  if (!some(rows)) { root.append(note('No tokenizer was measured.')); return }
  const columns = [...new Set(rows.map((r) => r.tokenizer))], lines = [...new Set(rows.map((r) => r.source))]
  root.append(note('Bytes per token, more is better; below it tokens per word, and the share of tokens that are unknown or single bytes. The best of each source is bold.'),
    table(['source', ...columns.map((c) => `#${c}`)], lines.map((name) => {
      const best = Math.max(...rows.filter((r) => r.source === name).map((r) => r.bytes_per_token))
      return el('tr', {}, td(source(name)), ...columns.map((c) => {
        const r = rows.find((x) => x.source === name && x.tokenizer === c)
        return num(...(r ? [el(columns.length > 1 && r.bytes_per_token === best ? 'strong' : 'span', {}, r.bytes_per_token.toFixed(2)), el('div', { class: 'note' }, `${r.tokens_per_word.toFixed(2)} · ${share(r.unknown_or_byte_share)}`)] : ['']))
      }))
    })))
}
function drawSkipped(root) {
  if (!some(data.skipped)) { root.append(note('None.')); return }
  root.append(table(['source', 'what is wrong', '#records', 'where'], data.skipped.map((s) => el('tr', {}, td(source(s.source)), td(s.kind), num(whole(s.count)), el('td', { class: 'mono' }, ...(s.places || []).map((p) => el('div', {}, visible(p))), s.count > (s.places || []).length ? el('div', {}, `and ${whole(s.count - (s.places || []).length)} more`) : null)))))
}
function drawShards(root) {
  const rows = entries(data.shards)
  if (!rows.length) { root.append(note('Nothing was packed.')); return }
  root.append(table(['source', '#rows', '#tokens', '#documents', '#positions used', '#files', '#size'], rows.map(([name, s]) => el('tr', {}, td(source(name)), num(whole(s.rows)), num(short(s.tokens)), num(whole(s.documents)), num(share(s.fill)), num(whole(s.files)), num(bytes(s.bytes))))))
}
function drawTime(root) {
  const list = entries(data.seconds), total = list.reduce((a, [, s]) => a + s, 0)
  if (!list.length) { root.append(note('Not measured: every stage was there already.')); return }
  const most = Math.max(...list.map(([, s]) => s)), speed = (s) => (s > 0 && data.raw_bytes ? `${significant(data.raw_bytes / 1e6 / s, 3)} MB/s` : '')
  root.append(note(`${clock(total)} for ${bytes(data.raw_bytes)} of raw text. A stage that was there already is not listed.`), table(['stage', '#time', '#raw text', ''], [
    ...list.map(([stage, s]) => el('tr', {}, td(label(stage)), num(clock(s)), num(speed(s)), td(meter(['left', of(s, most)])))),
    el('tr', { class: 'total' }, el('th', { scope: 'row' }, 'all'), num(el('strong', {}, clock(total))), num(el('strong', {}, speed(total))), td())], 'sizes'))
}

// ---------------------------------------------------------------- all of it
function start() {
  $('title').textContent = `Preparation of ${data.name}`
  const total = Object.values(data.seconds || {}).reduce((a, b) => a + b, 0), bad = (data.skipped || []).reduce((a, s) => a + s.count, 0)
  const figure = (name, value, more) => el('div', {}, el('dt', {}, name), el('dd', {}, value), el('dd', { class: 'more' }, more))
  const tokens = Object.values(data.shards || {}).reduce((a, s) => a + s.tokens, 0)
  $('summary').append(el('article', { class: 'card r0' }, el('dl', { class: 'figures' },
    figure('documents kept', whole(kept.documents), `${share(of(kept.documents, read.documents))} of ${whole(read.documents)}`),
    figure('text kept', bytes(kept.bytes), `${share(of(kept.bytes, read.bytes))} of ${bytes(read.bytes)}`),
    tokens ? figure('tokens packed', short(tokens), `in ${many(Object.keys(data.shards).length, 'source')}`) : null,
    figure('rules', whole(all.filter((r) => r.step.startsWith('- ')).length), 'removed documents'),
    figure('unreadable', whole(bad), 'records skipped'),
    total ? figure('time', clock(total), data.raw_bytes ? `${significant(data.raw_bytes / 1e6 / total, 3)} MB/s` : '') : null)),
  el('h3', { class: 'apart' }, 'Text kept, by source'), meterOf(names.map((name, i) => { const r = last(funnel([name])) || { bytes: 0 }; return [name + (data.sources[name].synthetic ? ' (synthetic)' : ''), bytes(r.bytes), of(r.bytes, kept.bytes), look(i)] })))
  const draws = { funnel: drawFunnel, rules: drawRules, cleaning: drawCleaning, duplicates: drawDuplicates, languages: drawLanguages, leaks: drawLeaks, mixture: drawMixture, tokenizer: drawTokenizer, skipped: drawSkipped, shards: drawShards, time: drawTime }
  for (const [id, draw] of Object.entries(draws)) {
    draw($(id))
    $('contents').append(el('a', { href: `#${id}` }, id[0].toUpperCase() + id.slice(1)))
  }
  $('config').append(el('details', {}, el('summary', {}, 'The whole configuration'), el('pre', { class: 'mono', tabindex: 0 }, JSON.stringify(data.config, null, 2))))
  let width = 0
  const redraw = () => { const w = document.body.clientWidth; if (w !== width) { width = w; for (const draw of plots) draw() } }
  redraw()
  new ResizeObserver(() => requestAnimationFrame(redraw)).observe(document.body)
  const target = $(location.hash.slice(1)) // it was not there when the browser looked for it
  if (target) target.scrollIntoView()
  document.documentElement.dataset.ready = String(rules.length)
}
start()
