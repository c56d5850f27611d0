// Curves and bars on a canvas. Nothing here knows of the page but its colours.

import { short } from './dom.js'

/** What a saved picture is drawn in, whatever the page's own colours: ink on white. */
export const PAPER = { paper: '#fff', ink: '#1d2126', quiet: '#5b636d', rule: '#dcddd8', accent: '#9a3412', second: '#1f5fa8' }

/** The page's colours as they are now. */
export const colours = () => {
  const style = getComputedStyle(document.documentElement)
  return Object.fromEntries(Object.keys(PAPER).map(name => [name, style.getPropertyValue(`--${name}`).trim()]))
}

/** A canvas of so many CSS pixels, cleared. @returns {CanvasRenderingContext2D} */
export const sheet = (canvas, width, height, ratio = devicePixelRatio || 1) => {
  canvas.width = Math.max(1, Math.round(width * ratio))
  canvas.height = Math.max(1, Math.round(height * ratio))
  const context = canvas.getContext('2d')
  context.setTransform(ratio, 0, 0, ratio, 0, 0)
  context.font = '11px system-ui, sans-serif'
  return context
}

/** Round numbers from `low` to `high`, about so many. */
const ticks = (low, high, count) => {
  if (!(high > low)) return [low]
  const rough = (high - low) / count
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 5, 10].find(k => k * power >= rough) * power
  const all = []
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) all.push(Number((i * step).toPrecision(12)))
  return all
}

/**
 * Lines over one axis, each with its name at its end.
 * @param {CanvasRenderingContext2D} context
 * @param {{width: number, height: number, title: string, x: number[], y: number[], xName: string, format?: (v: number) => string,
 *   faint?: number[][], lines: {name: string, colour: string, dash: number[], points: number[][]}[]}} chart  `x`, `y` the axes' ends
 */
export const lines = (context, { width, height, title, x, y, xName, format = short, faint = [], lines }, palette) => {
  const left = 40, right = 74, top = 24, bottom = 30
  const [w, h] = [width - left - right, height - top - bottom]
  const px = v => left + (x[1] > x[0] ? (v - x[0]) / (x[1] - x[0]) : 0.5) * w
  const py = v => top + (1 - (y[1] > y[0] ? (v - y[0]) / (y[1] - y[0]) : 0.5)) * h
  context.fillStyle = palette.ink
  context.textBaseline = 'alphabetic'
  context.textAlign = 'left'
  context.font = '600 12px system-ui, sans-serif'
  context.fillText(title, 0, 12)
  context.font = '11px system-ui, sans-serif'
  context.lineWidth = 1
  context.fillStyle = palette.quiet
  for (const v of ticks(y[0], y[1], 4)) {
    context.strokeStyle = palette.rule
    context.beginPath()
    context.moveTo(left, Math.round(py(v)) + 0.5)
    context.lineTo(left + w, Math.round(py(v)) + 0.5)
    context.stroke()
    context.textAlign = 'right'
    context.fillText(format(v), left - 6, py(v) + 4)
  }
  context.textAlign = 'center'
  for (const v of ticks(x[0], x[1], Math.max(2, Math.round(w / 60)))) context.fillText(String(v), px(v), top + h + 14)
  context.textAlign = 'right'
  context.fillText(xName, left + w, top + h + 27)
  const path = points => {
    context.beginPath()
    points.forEach(([a, b], i) => (i ? context.lineTo(px(a), py(b)) : context.moveTo(px(a), py(b))))
    context.stroke()
  }
  context.save()
  context.beginPath()
  context.rect(left, top - 2, w + 4, h + 4)
  context.clip()
  context.strokeStyle = palette.quiet
  context.globalAlpha = 0.35
  path(faint)
  context.globalAlpha = 1
  context.lineWidth = 2
  for (const { colour, dash, points } of lines) {
    context.strokeStyle = palette[colour]
    context.fillStyle = palette[colour]
    context.setLineDash(dash)
    path(points)
    context.setLineDash([])
    // A run of one epoch is a point.
    if (points.length === 1) context.fillRect(px(points[0][0]) - 3, py(points[0][1]) - 3, 6, 6)
  }
  context.restore()
  context.textAlign = 'left'
  // Names at the ends of their lines, moved apart where these meet.
  const named = lines.filter(line => line.points.length).map(line => ({ ...line, at: py(line.points.at(-1)[1]) })).sort((a, b) => a.at - b.at)
  named.forEach((line, i) => { if (i && line.at < named[i - 1].at + 14) line.at = named[i - 1].at + 14 })
  for (const { name, colour, at } of named) {
    context.fillStyle = palette[colour]
    context.fillText(name, left + w + 6, Math.min(at, top + h) + 4)
  }
}
