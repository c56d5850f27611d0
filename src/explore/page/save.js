// What is kept: any picture as PNG with its caption under it, the state as JSON, the link.

import * as api from './api.js'
import { $, percent, short, whole } from './dom.js'
import { fieldHere, mapsHere } from './load.js'
import { hashOf } from './link.js'
import { state } from './state.js'
import { sweepCaption } from './sweep.js'
import { activation, pictures, rangeText, scaleOf } from './unit.js'

const INK = '#1d2126', QUIET = '#5b636d', PAPER = '#fff'

const download = (blob, name) => {
  const url = URL.createObjectURL(blob)
  const link = document.createElement('a')
  link.href = url
  link.download = name
  link.click()
  setTimeout(() => URL.revokeObjectURL(url), 10_000)
}

const safe = text => text.replace(/[^\w.-]+/g, '-').replace(/^-+|-+$/g, '').slice(0, 120)

/** Lines no wider than the picture. */
const wrap = (context, text, width) => {
  const lines = []
  let line = ''
  for (const word of text.split(' ')) {
    const longer = line ? `${line} ${word}` : word
    if (line && context.measureText(longer).width > width) {
      lines.push(line)
      line = word
    } else line = longer
  }
  return line ? [...lines, line] : lines
}

/** A canvas at a size to be looked at, its pixels repeated, with a caption; the first line of it is the title. */
const captioned = (source, caption) => {
  const k = Math.max(1, Math.round(512 / Math.max(source.width, source.height)))
  const width = Math.max(360, source.width * k), margin = 16, line = 19
  const out = document.createElement('canvas')
  let context = out.getContext('2d')
  const font = i => `${i === 0 ? '600 ' : ''}14px system-ui, sans-serif`
  const lines = caption.flatMap((text, i) => {
    context.font = font(i)
    return wrap(context, text, width).map(words => ({ words, i }))
  })
  out.width = width + 2 * margin
  out.height = source.height * k + 2 * margin + lines.length * line + 8
  context = out.getContext('2d')
  context.fillStyle = PAPER
  context.fillRect(0, 0, out.width, out.height)
  context.imageSmoothingEnabled = false
  context.drawImage(source, margin, margin, source.width * k, source.height * k)
  context.textBaseline = 'top'
  lines.forEach(({ words, i }, row) => {
    context.font = font(i)
    context.fillStyle = i === 0 ? INK : QUIET
    context.fillText(words, margin, source.height * k + margin + 10 + row * line)
  })
  return out
}

const shownText = () => {
  const parts = [state.image]
  if (state.info) parts.push(state.network.data_classes?.[state.info.class] ?? '', state.info.name)
  if (state.view) parts.push(`view ${state.view.join(', ')}`)
  if (state.cover) parts.push(`covered ${state.cover.join(', ')} (${state.fill})`)
  return parts.filter(Boolean).join('; ')
}
const unitText = () => `${state.layer}, map ${state.map}, y ${state.unit[0]}, x ${state.unit[1]}`
const programText = () => `${state.network.title} (${state.network.checkpoint}), ${state.network.program}`

/** The nine pairs as one picture. */
const nine = () => {
  const side = 112, gap = 6
  const canvas = document.createElement('canvas')
  const pairs = [...document.querySelectorAll('#top-list .peak')]
  canvas.width = 3 * (2 * side + 2 + gap) - gap
  canvas.height = Math.ceil(pairs.length / 3) * (side + gap) - gap
  const context = canvas.getContext('2d')
  context.fillStyle = PAPER
  context.fillRect(0, 0, canvas.width, canvas.height)
  context.imageSmoothingEnabled = false
  pairs.forEach((pair, i) => [...pair.querySelectorAll('img')].forEach((image, which) => {
    if (image.naturalWidth) context.drawImage(image, (i % 3) * (2 * side + 2 + gap) + which * (side + 2), Math.floor(i / 3) * (side + gap), side, side)
  }))
  return canvas
}

/** Canvas and caption of what `data-save` names. */
const contents = key => {
  if (key === 'image') {
    const best = state.classes?.classes[0]
    return [$('stage'), ['The image as the network sees it', shownText(), ...(best ? [`${best.name} ${percent(best.probability)}`] : [])]]
  }
  if (key === 'map') {
    const maps = mapsHere()
    return [$('map-large'), [`${state.layer}, map ${state.map}`, `${$('map-range').textContent}; peak ${short(maps.head.peaks[state.map][0])}`, shownText()]]
  }
  if (key === 'heat') return [$('heat'), [`Where the network looks: ${state.sweep.name}`, sweepCaption(state.sweep), shownText()]]
  if (key === 'top') return state.top && [nine(), [`The nine strongest of ${state.layer}, map ${state.map}`, `patches and projections (each in its own scale), ${$('top-progress').textContent}: ${state.top.peaks.map(peak => `${short(peak.value)} in ${peak.id}`).join(', ')}`]]
  const canvas = document.querySelector(`[data-picture="${CSS.escape(key)}"] canvas`)
  if (key === 'photo') return [canvas, [`Receptive field of ${unitText()}`, shownText()]]
  const all = pictures()
  const entry = all.find(p => p.key === key)
  if (!entry?.picture?.head) return null
  const scale = scaleOf(entry, all)
  const field = fieldHere()
  return [canvas, [`Projection by ${entry.rule}${entry.random ? ', untrained weights' : ''}`,
    `${unitText()}; activation ${short(entry.picture.head.activation)}`,
    `black to white ${rangeText(scale)}, zero is grey${state.gain === 1 ? '' : `, gain ${state.gain}`}${state.shared ? ', one scale for all shown' : ''}`,
    ...(field ? [`receptive field x ${whole(field[0])} to ${whole(field[2])}, y ${whole(field[1])} to ${whole(field[3])}`] : []), shownText()]]
}

const savePicture = key => {
  const found = contents(key)
  if (!found?.[0]?.width) return
  const [canvas, caption] = found
  captioned(canvas, [...caption, programText()]).toBlob(blob => {
    if (blob) download(blob, `${safe(['zfnet', key, state.image, state.layer, state.map].join('-'))}.png`)
  })
}

/** All that is shown, in numbers. */
const stateJson = () => ({
  program: state.network.program, title: state.network.title, checkpoint: state.network.checkpoint,
  link: hashOf(state), image: state.image, name: state.info?.name ?? null,
  label: state.info ? state.network.data_classes?.[state.info.class] ?? null : null,
  view: state.view, cover: state.cover, fill: state.cover ? state.fill : null,
  layer: state.layer, map: state.map, unit: state.unit, activation: activation(), field: fieldHere(),
  classes: state.classes?.of === api.classesAt(state) ? state.classes.classes : null,
  projections: pictures().filter(p => p.current && p.picture.head).map(p => ({ rule: p.rule, weights: p.random ? 'random' : 'trained', activation: p.picture.head.activation, scale: p.picture.head.scale, shown_scale: scaleOf(p, pictures()), gain: state.gain })),
  occlusion: state.sweep ? { class: state.sweep.class, name: state.sweep.name, side: state.sweep.side, fill: state.sweep.fill, places: state.sweep.steps, probabilities: [...state.sweep.values].map(v => (Number.isNaN(v) ? null : v)), upper_bounds: state.sweep.bounds } : null,
})

/** @param {(text: string) => void} tell */
export const startSave = tell => {
  document.addEventListener('click', event => {
    const key = event.target.closest?.('[data-save]')?.dataset.save
    if (key && state.image) savePicture(key)
  })
  $('save-state').addEventListener('click', () => download(new Blob([JSON.stringify(stateJson(), null, 2) + '\n'], { type: 'application/json' }), `${safe(`zfnet-${state.image ?? 'state'}`)}.json`))
  $('copy-link').addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(location.href)
      tell('The link is in the clipboard: it opens exactly what is shown.')
    } catch {
      // Only pages on HTTPS or localhost may write there.
      tell(`The link: ${location.href}`)
    }
  })
}
