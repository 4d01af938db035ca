// Before each page's own script: the page's data, nodes, words for numbers, ticks of an axis. Texts become nodes by
// textContent only.
'use strict'
const data = JSON.parse(document.getElementById('data').textContent)

const SVG = 'http://www.w3.org/2000/svg'
const fill = (node, attrs, kids) => {
  for (const [k, v] of Object.entries(attrs || {})) {
    if (k.startsWith('on')) node.addEventListener(k.slice(2), v)
    else if (v !== null && v !== undefined && v !== false) node.setAttribute(k, v)
  }
  node.append(...kids.flat().filter((k) => k !== null && k !== undefined && k !== false))
  return node
}
const el = (tag, attrs, ...kids) => fill(document.createElement(tag), attrs, kids)
const svg = (tag, attrs, ...kids) => fill(document.createElementNS(SVG, tag), attrs, kids)
const $ = (id) => document.getElementById(id)
const many = (n, word) => `${whole(n)} ${word}${n === 1 ? '' : 's'}`
const whole = (n) => Math.round(n).toLocaleString('en-US')
const significant = (v, digits = 4) => {
  if (v === null || v === undefined) return 'none'
  const a = Math.abs(v)
  if (a && (a < 1e-4 || a >= 1e7)) return v.toExponential(digits - 2).replace(/\.?0*e\+?/, 'e')
  return Number(v.toPrecision(digits)).toLocaleString('en-US', { maximumFractionDigits: 8 })
}
const short = (v) => { // 12.3M
  for (const [n, unit] of [[1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e3, 'k']]) {
    if (Math.abs(v) >= n) return Number((v / n).toPrecision(3)) + unit
  }
  return String(Number(v.toPrecision(3)))
}
const clock = (s) => {
  if (s < 10) return `${Number(s.toPrecision(2))} s`
  if (s < 120) return `${Math.round(s)} s`
  if (s < 7200) return `${s < 600 ? (s / 60).toFixed(1) : Math.round(s / 60)} min`
  return s < 172800 ? `${(s / 3600).toFixed(1)} h` : `${(s / 86400).toFixed(1)} days`
}
const bytes = (n) => {
  for (const [size, unit] of [[1e12, 'TB'], [1e9, 'GB'], [1e6, 'MB'], [1e3, 'kB']]) if (n >= size) return `${(n / size).toPrecision(3)} ${unit}`
  return `${n} B`
}
const percent = (v) => `${(100 * v).toFixed(v && v !== 1 && (v < 0.0995 || v > 0.9949) ? 1 : 0)} %`
const date = (s) => new Date(1000 * s).toISOString().slice(0, 16).replace('T', ' ') + ' UTC'
const look = (i) => `r${i % 6} ${i >= 6 ? `dash${Math.floor(i / 6) % 4}` : ''}`
const last = (list) => list[list.length - 1]
// Invisible and direction-changing characters would hide what was said.
const visible = (text) => text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g, (c) => `⟨${c.charCodeAt(0).toString(16).padStart(4, '0')}⟩`)

function ticks(lo, hi, count, log, steps) {
  if (log) {
    const out = []
    const dense = hi / lo < 30
    for (let e = Math.floor(Math.log10(lo)) ; e <= Math.ceil(Math.log10(hi)); e++) {
      for (const m of dense ? [1, 1.5, 2, 3, 4, 5, 6, 7, 8] : hi / lo < 3000 ? [1, 2, 5] : [1]) {
        const t = m * 10 ** e
        if (t >= lo * 0.9999 && t <= hi * 1.0001) out.push(Number(t.toPrecision(6)))
      }
    }
    while (out.length > count + 3) for (let i = out.length - 2; i > 0; i -= 2) out.splice(i, 1)
    if (out.length > 1) return out
  }
  const raw = (hi - lo) / count
  let step
  if (steps && raw > 1 && raw < 86400) step = steps.find((s) => s >= raw * 0.8) || 86400
  else {
    const e = 10 ** Math.floor(Math.log10(raw))
    step = e * [1, 2, 2.5, 5, 10].find((m) => m * e >= raw * 0.85)
  }
  const out = []
  for (let t = Math.ceil(lo / step - 1e-9) * step; t <= hi * (1 + 1e-9); t += step) out.push(Number(t.toPrecision(10)))
  return out
}
