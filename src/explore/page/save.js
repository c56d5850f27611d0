// What is kept: any picture with its caption under it, as PNG or in the run's report; the state as JSON; the link.

import * as api from './api.js'
import { $, many, percent, saving, short, whole } from './dom.js'
import { classesAddress, fieldHere, inputAddress, isTopSeen, mapsAddress, mapsHere, otherClassesAddress, otherMapsAddress, topAddress } from './load.js'
import { hashOf } from './link.js'
import { checkpointsOf, counterpart, weightsOf } from './nets.js'
import { preferredCaption, preferredComplete, preferredHere } from './preferred.js'
import { any, listen, state } from './state.js'
import { histogramCaption, histogramHere, histogramPicture, studyCaption, studyComplete, studyHere, studyPicture } from './study.js'
import { sweepCaption } from './sweep.js'
import { curvesCaption, curvesPicture, filtersHere } from './training.js'
import { activation, otherActivation, pictures, rangeText, scaleOf } from './unit.js'

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

const shownText = ({ cover } = state) => {
  const parts = [state.image]
  if (state.info) parts.push(state.network.data_classes?.[state.info.class] ?? '', state.info.name)
  if (state.view) parts.push(`view ${state.view.join(', ')}`)
  if (cover) parts.push(`covered ${cover.join(', ')} (${state.fill})`)
  return parts.filter(Boolean).join('; ')
}
const unitText = (layer, map, unit) => `${layer}, map ${map}, y ${unit[0]}, x ${unit[1]}`
const weightsText = ({ updates, epoch, untrained }) => (untrained ? 'untrained'
  : [epoch === null ? '' : `epoch ${epoch}`, updates === null ? '' : `after ${many(updates)} updates`].filter(Boolean).join(', '))
/** Which network, and which program, made a picture. */
const programText = (net, weights) => {
  const { title, checkpoint } = checkpointsOf(state.network)[net.checkpoint]
  return [`${title} (${checkpoint})`, weightsText(weights), state.network.program].filter(Boolean).join(', ')
}

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

/**
 * What `data-save` names: a canvas, its caption, the network that it is of, if not the first, and its weights, if others
 * may have replaced them; null while it is not of the present state.
 * @returns {{canvas: HTMLCanvasElement, caption: string[], net?: api.Net, weights?: ReturnType<typeof weightsOf>} | null}
 */
const contents = key => {
  const { layer, map, unit, compared } = state
  const maps = mapsHere()
  if (key === 'image') {
    if (!state.input || state.input.of !== inputAddress()) return null
    const best = state.classes?.of === classesAddress() ? state.classes.classes[0] : null
    return { canvas: $('stage'), caption: ['The image as the network sees it', shownText(), ...(best ? [`${best.name} ${percent(best.probability)}`] : [])] }
  }
  if (key === 'map') return maps?.of === mapsAddress() ? { canvas: $('map-large'), caption: [`${layer}, map ${map}`, `${$('map-range').textContent}; peak ${short(maps.head.peaks[map][0])}`, shownText()] } : null
  if (key === 'compare-map') {
    const there = counterpart(), found = state.otherMaps
    if (!found || found.of !== otherMapsAddress()) return null
    return { canvas: $('compare-map'), net: compared, caption: [`${there.layer.name}, map ${there.map}`, `${$('compare-map-range').textContent}; peak ${short(found.head.peaks[there.map][0])}`, shownText()] }
  }
  if (key === 'heat') return state.sweep?.done ? { canvas: $('heat'), net: state.sweep.net, weights: state.sweep.weights, caption: [`Where the network looks: ${state.sweep.name}`, sweepCaption(state.sweep), shownText({ cover: null })] } : null
  if (key === 'top') return current(state.top, topAddress()) ? { canvas: nine(), caption: [`The nine strongest of ${layer}, map ${map}`, `patches and projections (each in its own scale), ${$('top-progress').textContent}: ${state.top.peaks.map(peak => `${short(peak.value)} in ${peak.id}`).join(', ')}`] } : null
  if (key === 'curves') return made(curvesPicture(), curvesCaption)
  if (key === 'filters') return made(filtersHere(), () => ['Filters of the first layer'])
  if (key === 'study') return made(studyPicture(), studyCaption)
  if (key === 'histogram') return made(histogramPicture(), histogramCaption)
  if (key === 'preferred') return made(preferredHere() && $('preferred-image'), preferredCaption)
  const canvas = document.querySelector(`[data-picture="${CSS.escape(key)}"] canvas`)
  if (key === 'photo') return state.input?.of === inputAddress() ? { canvas, caption: [`Receptive field of ${unitText(layer, map, unit)}`, shownText()] } : null
  const all = pictures()
  const entry = all.find(p => p.key === key)
  if (!entry?.current || !entry.picture.head) return null
  const { head } = entry.picture
  const there = entry.kind === 'compared' ? counterpart() : { layer: { name: layer }, map, unit }
  const net = shownBy(entry)
  const [x0, y0, x1, y1] = head.field
  return { canvas, net, caption: [`Projection by ${entry.rule}${net.untrained ? ', untrained weights' : ''}`,
    `${unitText(there.layer.name, there.map, there.unit)}; activation ${short(head.activation)}`,
    `black to white ${rangeText(scaleOf(entry, all))}, zero is grey${state.gain === 1 ? '' : `, gain ${state.gain}`}${state.shared ? ', one scale for all shown' : ''}`,
    `receptive field x ${whole(x0)} to ${whole(x1)}, y ${whole(y0)} to ${whole(y1)}`, shownText()] }
}
/** The network that one of the unit's pictures is of. */
const shownBy = ({ kind }) => (kind === 'compared' ? state.compared : kind === 'random' ? { ...state.net, untrained: true } : state.net)
const made = (canvas, caption) => (canvas ? { canvas, caption: caption() } : null)

/** The picture with its caption, as a file would have it, and the lines of that. */
const pictured = async key => {
  const found = contents(key)
  if (!found?.canvas?.width) throw new Error('This picture is still being computed.')
  const { net = state.net, weights = weightsOf(net) } = found
  const caption = [...found.caption, programText(net, weights)]
  const blob = await new Promise(resolve => captioned(found.canvas, caption).toBlob(resolve, 'image/png'))
  if (!blob) throw new Error('This browser cannot make a picture of it.')
  return { blob, caption }
}

const savePicture = async key => download((await pictured(key)).blob, `${safe(['zfnet', key, state.image, state.layer, state.map].join('-'))}.png`)

const keepPicture = async (key, go, tell) => {
  go.disabled = true
  try {
    const { blob, caption: [title, ...rest] } = await pictured(key)
    const { kept } = await api.keep(blob, { title, caption: rest.join('\n'), link: hashOf(state) })
    tell(`Added to the report, which now holds ${many(kept)} view${kept === 1 ? '' : 's'}.`)
    // A dialog may be over the notice.
    go.textContent = 'Added'
    setTimeout(() => { go.textContent = 'Report' }, 2000)
  } finally {
    go.disabled = false
  }
}

/** What of the page is not of its state yet, in words; what could not be had is said in its place. */
const pending = () => {
  const { errors, sweep } = state
  const late = (words, found, of, part) => (of !== null && found?.of !== of && !errors[part] ? [words] : [])
  return [
    ...late('the image', state.input, inputAddress(), 'input'), ...late('the classes', state.classes, classesAddress(), 'classes'),
    ...late('the maps', state.maps, mapsAddress(), 'maps'),
    ...(!state.image || errors.unit || pictures().every(p => p.current) ? [] : ['the projections']),
    ...late("the compared network's classes", state.otherClasses, otherClassesAddress(), 'otherClasses'),
    ...late("the compared network's maps", state.otherMaps, otherMapsAddress(), 'otherMaps'),
    ...late('the nine strongest', state.top, isTopSeen() ? topAddress() : null, 'top'),
    ...(studyComplete() ? [] : ['the class']), ...(preferredComplete() ? [] : ['the preferred image']),
    ...(sweep?.running ? ['the heat map'] : []),
  ]
}

const current = (found, of) => (found && found.of === of ? found : null)

const projectionsOf = kinds => pictures().filter(p => p.current && p.picture.head && kinds.includes(p.kind)).map(p => ({
  rule: p.rule, weights: shownBy(p).untrained ? 'random' : 'trained', activation: p.picture.head.activation, scale: p.picture.head.scale, shown_scale: scaleOf(p, pictures()), gain: state.gain,
}))

const netJson = net => ({ ...checkpointsOf(state.network)[net.checkpoint], ...weightsOf(net) })

const peakOf = (maps, map) => {
  if (!maps || map === null) return null
  const [value, y, x] = maps.head.peaks[map]
  return { value, y, x }
}

const comparedJson = () => {
  const there = counterpart()
  if (!there) return null
  const { shown, layer, map, unit } = there
  const classes = current(state.otherClasses, otherClassesAddress()), maps = current(state.otherMaps, otherMapsAddress())
  return {
    ...netJson(state.compared), cover: shown.cover, layer: layer?.name ?? null, map, unit, activation: otherActivation(), peak: peakOf(maps, map),
    classes: classes?.classes ?? null, projections: projectionsOf(['compared']),
  }
}

/** All that is shown, in numbers. */
const stateJson = () => {
  const { network, sweep, study } = state
  const [studied, histogram, preferred] = [studyHere(), histogramHere(), preferredHere()]
  const top = current(state.top, topAddress())
  return {
    program: network.program, ...netJson(state.net),
    link: hashOf(state), image: state.image, name: state.info?.name ?? null,
    label: state.info ? network.data_classes?.[state.info.class] ?? null : null,
    view: state.view, cover: state.cover, fill: state.cover ? state.fill : null,
    layer: state.layer, map: state.map, unit: state.unit, activation: activation(), peak: peakOf(current(state.maps, mapsAddress()), state.map), field: fieldHere(),
    classes: current(state.classes, classesAddress())?.classes ?? null,
    projections: projectionsOf(['trained', 'random']),
    compared: state.compared ? comparedJson() : null,
    class_study: study === null ? null : { class: study, name: network.classes[study], layer: state.layer, images_searched: studied?.done ?? null, images_read: studied?.read ?? null, maps: studied?.maps ?? null, images: studied?.images ?? null },
    histogram: histogram ? { layer: state.layer, map: state.map, edges: histogram.edges, classes: histogram.classes } : null,
    preferred: preferred ? { layer: state.layer, map: state.map, steps: preferred.head.step, activation: preferred.head.activation } : null,
    strongest: top ? { searched: top.done, total: top.total, peaks: top.peaks } : null,
    occlusion: sweep ? { updates: sweep.weights.updates, epoch: sweep.weights.epoch, what: sweep.what, class: sweep.class ?? null, layer: sweep.layer ?? null, map: sweep.map ?? null, name: sweep.name, side: sweep.side, fill: sweep.fill, places: sweep.steps, uncovered: sweep.base, values: [...sweep.values].map(v => (Number.isNaN(v) ? null : v)) } : null,
  }
}

const saveState = tell => {
  const late = pending()
  if (late.length) return tell(`Still computing: ${late.join(', ')}. Save again in a moment.`)
  tell('')
  download(new Blob([JSON.stringify(stateJson(), null, 2) + '\n'], { type: 'application/json' }), `${safe(`zfnet-${state.image ?? 'state'}`)}.json`)
}

/** @param {(text: string) => void} tell */
export const startSave = tell => {
  for (const png of document.querySelectorAll('[data-save]')) {
    const words = png.getAttribute('aria-label').replace(/^Save |,? as PNG$/g, '')
    png.replaceWith(saving(png.dataset.save, words))
  }
  document.addEventListener('click', event => {
    const go = event.target.closest?.('[data-save], [data-keep]')
    if (!go) return
    const { save, keep } = go.dataset
    const done = save ? savePicture(save) : keepPicture(keep, go, tell)
    done.catch(error => tell(error.message))
  })
  $('save-state').addEventListener('click', () => saveState(tell))
  $('copy-link').addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(location.href)
      tell('The link is in the clipboard: it opens exactly what is shown.')
    } catch {
      // Only pages on HTTPS or localhost may write there.
      tell(`The link: ${location.href}`)
    }
  })
  listen(changed => { if (any(changed, 'network')) document.body.classList.toggle('keeps', !!state.network.can_keep) })
}
