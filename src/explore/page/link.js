// The state as a link, and links as states:
//   #IMG/LAYER/MAP/Y,X/RULE?view=x,y,s&cover=x0,y0,x1,y1&fill=grey&weights=random
// and further words for what is not as at the start: checkpoint=K, compare=K or K,STEP or K,random, rules=all,
// scale=shared, gain=2, show=whole, over=map, hold=LAYER,MAP,Y,X, class=C, preferred=shown, run=open. The unit may be `peak`, and the path may end after any part.

import { hasImage, publishedImage } from './api.js'
import { beginNavigation, checkpointsOf, loadNetwork, netOf } from './nets.js'
import { isPublished, layersShown } from './published.js'
import { any, change, listen, state } from './state.js'

const KEPT = ['image', 'view', 'cover', 'fill', 'layer', 'map', 'unit', 'rule', 'all', 'random', 'shared', 'gain', 'cut', 'overlay', 'held', 'net', 'compared', 'study', 'preferredOf', 'training']

/** What the kept fields are where a link says nothing. */
const START = { view: null, cover: null, fill: 'mean', map: null, unit: null, all: false, random: false, shared: false, gain: 1, cut: true, overlay: false, held: null, compared: null, study: null, preferredOf: null, training: false }

export const FILLS = ['mean', 'grey', 'blur']
export const GAINS = [0.25, 0.5, 1, 2, 4, 8]

// Commas and slashes stay as they are; what would end the hash or a word does not.
const word = text => encodeURIComponent(text).replaceAll('%2C', ',')

/** @param {typeof state} s */
export const hashOf = s => {
  if (!s.image) return ''
  let path = s.image.split('/').map(word).join('/')
  if (s.layer) {
    path += '/' + encodeURIComponent(s.layer)
    if (s.map !== null) path += `/${s.map}/${s.unit ? s.unit.join(',') : 'peak'}/${word(s.rule)}`
  }
  const words = []
  if (s.net.checkpoint) words.push('checkpoint=' + s.net.checkpoint)
  if (s.compared) words.push('compare=' + [s.compared.checkpoint, s.compared.untrained ? 'random' : s.compared.step].filter(part => part !== null).join(','))
  if (s.view) words.push('view=' + s.view.map(v => +v.toFixed(4)).join(','))
  if (s.cover) words.push('cover=' + s.cover.join(','))
  if (s.cover && s.fill !== 'mean') words.push('fill=' + s.fill)
  if (s.random) words.push('weights=random')
  if (s.all) words.push('rules=all')
  if (s.shared) words.push('scale=shared')
  if (s.gain !== 1) words.push('gain=' + s.gain)
  if (!s.cut) words.push('show=whole')
  if (s.overlay) words.push('over=map')
  if (s.held) words.push(`hold=${word(s.held.layer)},${s.held.map},${s.held.y},${s.held.x}`)
  if (s.study !== null) words.push('class=' + s.study)
  if (s.layer && s.preferredOf === `${s.layer}/${s.map}`) words.push('preferred=shown')
  if (s.training) words.push('run=open')
  return '#' + path + (words.length ? '?' + words.join('&') : '')
}

const whole = text => (/^\d{1,9}$/.test(text ?? '') ? Number(text) : null)

const numbers = (text, count) => {
  const values = text.split(',').map(v => (v.trim() === '' ? NaN : Number(v)))
  return values.length === count && values.every(Number.isFinite) ? values : null
}

const imageOf = (split, number, network) => {
  if (split === 'upload') return /^[\w-]{1,64}$/.test(number ?? '') ? `upload/${number}` : null
  const known = network.splits.find(s => s.name === split)
  const index = whole(number)
  const id = `${split}/${index}`
  return known && index !== null && (isPublished || index < known.count) && hasImage(id) ? id : null
}

const unitOf = (layer, map, y, x) => {
  const [m, row, column] = [whole(map), whole(y), whole(x)]
  const fits = m !== null && m < layer.maps && row !== null && row < layer.rows && column !== null && column < layer.columns
  return fits ? { map: m, y: row, x: column } : null
}

/** The layer to begin with: the last with maps to look at that is not a pooling, where the parts of objects are. */
const firstLayer = network => {
  const layers = layersShown(network)
  const spatial = layers.filter(layer => layer.rows > 1)
  const telling = spatial.filter(layer => !layer.kind.endsWith('pool'))
  return (telling.at(-1) ?? spatial.at(-1) ?? layers[0])?.name ?? null
}

/** The image to begin with. */
const firstImage = ({ splits: [split] }) => publishedImage() ?? (split?.count ? `${split.name}/0` : null)

/** Words of what a published page cannot do. */
const NEED_THE_PROGRAM = ['compare', 'view', 'cover', 'fill', 'weights', 'class', 'preferred']

const wordsIn = hash => {
  const cut = hash.indexOf('?')
  return new URLSearchParams(cut < 0 ? '' : hash.slice(cut + 1))
}

/** Which checkpoint of the command line a hash is of: the first, where it names none that is here. */
const checkpointOf = hash => {
  const asked = whole(wordsIn(hash).get('checkpoint'))
  return asked !== null && asked < checkpointsOf(state.networks[0]).length ? asked : 0
}

const comparedOf = (value, network) => {
  const [checkpoint, which, ...rest] = value.split(',')
  const [k, step] = [whole(checkpoint), whole(which)]
  if (k === null || k >= checkpointsOf(network).length || rest.length) return null
  if (which === undefined) return netOf(k)
  if (which === 'random') return netOf(k, null, true)
  return step === null ? null : netOf(k, step)
}

/**
 * What a hash says, with a sentence for each part that it cannot mean; such parts are as at the start.
 * @returns {{patch: Partial<typeof state>, problems: string[]}}
 */
export const parse = (hash, network) => {
  const problems = []
  const start = firstImage(network)
  /** @type {any} */
  const patch = { ...START, image: start, layer: firstLayer(network), rule: network.rules[0] }
  const text = hash.replace(/^#/, '')
  if (!text) return { patch, problems }
  const cut = text.indexOf('?')
  let parts
  try {
    parts = (cut < 0 ? text : text.slice(0, cut)).split('/').map(decodeURIComponent)
  } catch {
    return { patch, problems: ['The link is not well formed, so the page shows its beginning.'] }
  }
  const [split, number, layerName, map, unit, rule, ...rest] = parts
  const image = imageOf(split, number, network)
  if (image) patch.image = image
  else problems.push(`The link asks for the image ${[split, number ?? ''].join('/')}, which is not here.`)
  const layer = layersShown(network).find(l => l.name === layerName)
  if (layer) {
    patch.layer = layer.name
    const index = whole(map)
    if (index !== null && index < layer.maps) {
      patch.map = index
      const place = unit && unit !== 'peak' ? unit.split(',') : null
      const found = place?.length === 2 ? unitOf(layer, map, ...place) : null
      if (found) patch.unit = [found.y, found.x]
      else if (unit && unit !== 'peak') problems.push(`The link asks for the unit ${unit}, which ${layer.name} (${layer.rows} × ${layer.columns}) does not have; its map's strongest is shown.`)
    } else if (map) problems.push(`The link asks for map ${map}, but ${layer.name} has the maps 0 to ${layer.maps - 1}; the strongest is shown.`)
  } else if (layerName) problems.push(`The link asks for the layer ${layerName}, which ${network.layers.some(l => l.name === layerName) ? 'is not published' : 'this network does not have'}.`)
  if (rule && network.rules.includes(rule)) patch.rule = rule
  else if (rule) problems.push(`The link asks for the rule ${rule}, which is not known here.`)
  if (rest.length) problems.push('The link goes on after the rule; that part is left out.')

  const missing = []
  for (const [name, value] of wordsIn(text)) {
    const bad = () => problems.push(`The link says ${name}=${value}, which cannot be; it is left out.`)
    if (isPublished && NEED_THE_PROGRAM.includes(name)) missing.push(`${name}=${value}`)
    else if (name === 'checkpoint') {
      if (String(checkpointOf(hash)) !== value) bad()
    } else if (name === 'compare') {
      const compared = comparedOf(value, network)
      if (compared) patch.compared = compared
      else bad()
    } else if (name === 'class') {
      const kind = whole(value)
      if (kind !== null && kind < network.classes.length) patch.study = kind
      else bad()
    } else if (name === 'preferred') value === 'shown' && patch.map !== null ? patch.preferredOf = `${patch.layer}/${patch.map}` : bad()
    else if (name === 'run') value === 'open' ? patch.training = true : bad()
    else if (name === 'view') {
      const view = numbers(value, 3)
      if (view && view[2] > 0 && view[2] <= 1 && view[0] >= 0 && view[1] >= 0) patch.view = view
      else bad()
    } else if (name === 'cover') {
      const cover = numbers(value, 4)
      if (cover && cover.every(Number.isInteger) && cover[2] > cover[0] && cover[3] > cover[1] && cover.every(v => Math.abs(v) < 1e6)) patch.cover = cover
      else bad()
    } else if (name === 'fill') FILLS.includes(value) ? patch.fill = value : bad()
    else if (name === 'weights') value === 'random' ? patch.random = true : bad()
    else if (name === 'rules') value === 'all' && network.rules.length > 1 ? patch.all = true : bad()
    else if (name === 'scale') value === 'shared' ? patch.shared = true : bad()
    else if (name === 'gain') GAINS.includes(Number(value)) ? patch.gain = Number(value) : bad()
    else if (name === 'show') value === 'whole' ? patch.cut = false : bad()
    else if (name === 'over') value === 'map' ? patch.overlay = true : bad()
    else if (name === 'hold') {
      const parts = value.split(',')
      const [m, y, x] = parts.splice(-3)
      const of = network.layers.find(l => l.name === parts.join(','))
      const held = of ? unitOf(of, m, y, x) : null
      if (held) patch.held = { layer: of.name, ...held }
      else bad()
    } else problems.push(`The link says ${name}, which this page does not know; it is left out.`)
  }
  if (missing.length) problems.push(`The link says ${missing.join(', ')}: not published, that needs the program (zfnet explore).`)
  return { patch, problems }
}

/**
 * Shows what a hash says. `still` is whether that is still wanted once its network is known.
 * @returns {Promise<string[] | null>} sentences on what it cannot mean; null where it is no longer wanted
 */
export const openLink = async (hash, still = () => true) => {
  const checkpoint = checkpointOf(hash), isWanted = beginNavigation()
  if (!state.networks[checkpoint]) await loadNetwork(checkpoint).catch(error => { if (isWanted()) throw error })
  if (!isWanted() || !still()) return null
  const network = state.networks[checkpoint]
  const { patch, problems } = parse(hash, network)
  const here = state.network === network
  change({ ...patch, network, ...(here ? {} : { net: netOf(checkpoint) }) })
  return problems
}

/** Keeps the address as the state is, and takes up what people put there. @param {(problems: string[] | null) => void} tell */
export const followLinks = tell => {
  let written = location.hash
  let timer = 0
  const write = push => {
    clearTimeout(timer)
    timer = 0
    const hash = hashOf(state)
    if (!hash || hash === written) return
    try { history[push ? 'pushState' : 'replaceState'](null, '', hash) } catch { /* too often for this browser */ }
    // As the browser spells it.
    written = location.hash
  }
  const read = () => {
    if (location.hash === written) return
    const asked = written = location.hash
    openLink(asked, () => location.hash === asked).then(problems => {
      tell(problems)
      if (problems) write(false)
    }, error => tell([error.message]))
  }
  listen((changed, how) => {
    if (!any(changed, ...KEPT)) return
    // A hand that moves, or a camera, would write more often than browsers take.
    if (!how.follow) write(how.push)
    else if (!timer) timer = setTimeout(write, 250, false)
  })
  // Both happen for one step back, and either may be the only one.
  addEventListener('popstate', read)
  addEventListener('hashchange', read)
}
