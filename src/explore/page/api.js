// Requests. Addresses are relative to the page, so that it works behind any prefix. A published page has files for them.

import { Images, NOT_PUBLISHED, fileOf, isPublished } from './published.js'

/** The status that says so of the weights asked for. */
const OUTDATED = 412

/** An answer that is not the one asked for; `status` 0 is no answer at all. */
export class Refused extends Error {
  constructor(status, sentence) {
    super(sentence)
    this.status = status
  }

  /** Whether the weights that were asked for have been replaced: what is shown stays until the new ones have answered. */
  get isOutdated() { return this.status === OUTDATED }
}

const pause = (ms, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, ms)
  signal?.addEventListener('abort', () => { clearTimeout(timer); reject(signal.reason) }, { once: true })
})

const sentence = async response => {
  try {
    const { error } = await response.json()
    if (typeof error === 'string' && error) return error
  } catch { /* not JSON: said below */ }
  return `The server answered with status ${response.status}.`
}

/** The program that the page belongs to: no other's answers are taken. @type {{instance: string, replaced: (why: string) => void} | null} */
let own = null
/** @param {(why: string) => void} replaced  says that another program answers in its place */
export const belongTo = (instance, replaced) => { own = { instance, replaced } }

const REPLACED = 'The program that this page belongs to has ended, and another answers at its address.'
let halted = false

/** Stops all questions, if an answer is another program's. */
const check = instance => {
  if (!own || !instance || instance === own.instance) return
  if (!halted) own.replaced(REPLACED)
  halted = true
  throw new Refused(410, REPLACED)
}

let outdated = () => {}
/** @param {() => void} listener  is told when the weights asked for may have been replaced */
export const whenOutdated = listener => { outdated = listener }
/** For pictures whose elements ask themselves, and are not told why they get none. */
export const mayBeOutdated = () => outdated()

/** Where an address of the page is answered, be it for a request or as the source of a picture. */
const urlOf = path => (isPublished ? './data/' + fileOf(path) : './api/' + path)

const AWAY = isPublished ? 'The web server of this page does not answer.' : 'The server of this page does not answer. Is it still running?'

const ask = async (path, options = {}) => {
  for (let again = true; ; again = false) {
    if (halted) throw new Refused(410, REPLACED)
    let response
    try {
      response = await fetch(urlOf(path), { priority: 'high', ...options })
    } catch (error) {
      if (options.signal?.aborted) throw error
      throw new Refused(0, AWAY)
    }
    check(response.headers.get('zfnet-instance'))
    if (response.ok) return response
    // Some web servers forbid what they do not have.
    if (isPublished && [403, 404, 410].includes(response.status)) throw new Refused(404, NOT_PUBLISHED)
    if (response.status === OUTDATED) outdated()
    if (response.status !== 503 || !again) throw new Refused(response.status, await sentence(response))
    // Busy, not broken: once more.
    await pause(200, options.signal)
  }
}

/** Reads an answer. Some web servers send a page of their own in the place of a file that there is not. */
const read = async reading => {
  try {
    return await reading
  } catch (error) {
    if (!isPublished || error.name === 'AbortError') throw error
    throw new Refused(404, NOT_PUBLISHED)
  }
}

/** The bytes of an answer; published ones are compressed, unless the web server has undone that. */
const bytes = async response => {
  const buffer = await response.arrayBuffer()
  const [a, b] = new Uint8Array(buffer)
  if (!isPublished || a !== 0x1f || b !== 0x8b) return buffer
  return new Response(new Blob([buffer]).stream().pipeThrough(new DecompressionStream('gzip'))).arrayBuffer()
}

const json = async (path, signal, priority = 'high') => {
  const response = await ask(path, { signal, priority })
  return read(bytes(response).then(buffer => JSON.parse(new TextDecoder().decode(buffer))))
}

const segments = text => text.split('/').map(encodeURIComponent).join('/')

/**
 * A network: which checkpoint of the command line, after how many updates (null: the newest it has), and whether with
 * untrained weights. `version` names the newest weights, '' those that never change.
 * @typedef {{checkpoint: number, step: number | null, untrained: boolean, version: string}} Net
 */

/**
 * A query that ends with the network. The version keeps the answers of weights that have been replaced apart, and lets
 * the program refuse to answer with others.
 */
const asked = ({ checkpoint, step, untrained, version }, words = []) => {
  const all = [
    ...words, ...(checkpoint ? [`checkpoint=${checkpoint}`] : []), ...(step !== null ? [`step=${step}`] : []), ...(untrained ? ['weights=random'] : []),
    ...(version && step === null && !untrained ? [`version=${encodeURIComponent(version)}`] : []),
  ]
  return all.length ? '?' + all.join('&') : ''
}

/** The address of the same under whatever weights: what was there before others is shown until these have answered. */
export const withoutVersion = address => address.replace(/[?&]version=[^&]*$/, '')

/**
 * Which network is asked, and what it is shown of an image, as a query.
 * @param {{net: Net, view?: number[] | null, cover?: number[] | null, fill?: string}} shown
 * @param {Record<string, any>} more
 */
const query = ({ net, view, cover, fill }, more = {}) => {
  const words = []
  if (view) words.push('view=' + view.map(v => +v.toFixed(4)).join(','))
  if (cover) words.push('cover=' + cover.join(','), 'fill=' + encodeURIComponent(fill ?? 'mean'))
  for (const [name, value] of Object.entries(more)) words.push(`${name}=${encodeURIComponent(value)}`)
  return asked(net, words)
}

/** @typedef {{net: Net, image: string, view?: number[] | null, cover?: number[] | null, fill?: string}} Shown */

// The addresses are also the keys under which answers are kept and known to be of the present state.
export const inputAt = (/** @type {Shown} */ s) => `input/${segments(s.image)}${query(s)}`
/** `also` is a class whose probability is wanted though it may not be among the five. */
export const classesAt = (s, also) => `classes/${segments(s.image)}${query(s, also === undefined ? {} : { class: also })}`
export const mapsAt = (s, layer) => `maps/${segments(s.image)}/${encodeURIComponent(layer)}${query(s)}`
export const projectAt = (s, layer, map, [y, x], rule) =>
  `project/${segments(s.image)}/${encodeURIComponent(layer)}/${map}/${y},${x}${query(s, { rule })}`
export const pictureAt = image => `picture/${segments(image)}`
const mapAt = (what, net, layer, map) => `${what}/${encodeURIComponent(layer)}/${map}${asked(net)}`
export const topAt = (net, layer, map) => mapAt('top', net, layer, map)
export const classAt = (net, layer, kind) => mapAt('class', net, layer, kind)
export const histogramAt = (net, layer, map) => mapAt('histogram', net, layer, map)
export const preferredAt = (net, layer, map) => mapAt('preferred', net, layer, map)
export const filtersAt = net => `filters${asked(net)}`
/** A receptive field: the part of the image, or the unit's projection cut to it. */
export const fieldAt = (net, layer, map, { id, y, x }, what) =>
  urlOf(`field/${segments(id)}/${encodeURIComponent(layer)}/${map}/${y},${x}${asked(net, [`what=${what}`])}`)
export const thumbAt = image => urlOf('thumb/' + segments(image))

const ofCheckpoint = checkpoint => (checkpoint ? `?checkpoint=${checkpoint}` : '')
/** The images of a published page. @type {Images | null} */
let published = null

export const network = async checkpoint => {
  const found = await json('network' + ofCheckpoint(checkpoint))
  if (isPublished) {
    published = new Images((await json('images')).images, found.data_classes)
    found.splits = published.splits()
  }
  return found
}
export const run = async (checkpoint, signal) => {
  const found = await json('run' + ofCheckpoint(checkpoint), signal, 'low')
  // It may have been going on when the page was published.
  return isPublished ? { ...found, training: false, version: '' } : found
}
/** Begins the search over the data for a checkpoint's strongest; once begun, it stays so. */
export const search = (checkpoint, signal) => ask('search' + ofCheckpoint(checkpoint), { method: 'POST', signal, priority: 'low' })
/** JSON that is asked for again until it is complete. */
export const study = (address, signal) => json(address, signal, 'low')
export const classes = (address, signal) => json(address, signal)
export const top = (address, signal) => json(address, signal, 'low')

/** @param {{split: string, from: number, count: number, class?: number | null, search?: string}} want */
export const images = async ({ split, from, count, class: kind, search }, signal) => published?.list({ split, from, count, class: kind, search }) ?? json(
  `images?split=${encodeURIComponent(split)}&from=${from}&count=${count}`
  + (kind === null || kind === undefined ? '' : `&class=${kind}`)
  + (search ? `&search=${encodeURIComponent(search)}` : ''), signal)

/** The data's own words on an image; null where it is none of the data's. */
export const imageOf = async (id, signal) => {
  if (published) return published.find(id)
  const [split, number] = id.split('/')
  const { images: found } = await images({ split, from: Number(number), count: 1 }, signal)
  return found.find(image => image.id === id) ?? null
}
/** Whether the data's image can be looked at, so far as that is known. */
export const hasImage = id => !published || published.find(id) !== null
/** The first image of a published page. @returns {string | null} */
export const publishedImage = () => published?.images[0]?.id ?? null

/** `camera` for one of many frames, of which only the last few are kept. */
export const upload = async (/** @type {Blob} */ blob, signal, camera = false) =>
  (await ask(camera ? 'upload?camera=1' : 'upload', { method: 'POST', body: blob, signal })).json()

/** Puts a picture into the run's report. @returns {Promise<{kept: number}>} */
export const keep = async (/** @type {Blob} */ png, words) =>
  (await ask('keep?' + new URLSearchParams(words), { method: 'POST', body: png, headers: { 'Content-Type': 'image/png', 'zfnet-instance': own.instance } })).json()

/** A picture, decoded. */
export const bitmap = async (address, signal) => {
  const response = await ask(address, { signal })
  return read(response.blob().then(createImageBitmap))
}

/** A frame: JSON, then numbers. */
const frame = async (address, signal) => {
  const buffer = await read(bytes(await ask(address, { signal })))
  const length = buffer.byteLength < 4 ? Infinity : new DataView(buffer).getUint32(0, true)
  if (4 + length > buffer.byteLength) throw isPublished ? new Refused(404, NOT_PUBLISHED) : new Refused(0, 'The answer is cut short.')
  return { buffer, at: 4 + length, head: JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length))) }
}

/** The maps of a layer: `head` as in the interface, `values` i8 [maps, rows, columns]. */
export const maps = async (address, signal) => {
  const { head, buffer, at } = await frame(address, signal)
  const count = head.maps * head.rows * head.columns
  if (at + count > buffer.byteLength) throw new Refused(0, 'The maps are cut short.')
  return { of: address, head, values: new Int8Array(buffer, at, count) }
}

/** The projection of a unit: `values` f32 [rows, columns, channels]. */
export const project = async (address, signal) => {
  const { head, buffer, at } = await frame(address, signal)
  // A unit that did not fire has no values.
  const count = head.activation > 0 ? head.rows * head.columns * head.channels : 0
  if (at + 4 * count > buffer.byteLength) throw new Refused(0, 'The projection is cut short.')
  return { of: address, head, values: new Float32Array(buffer, at, count) }
}

/** A preferred image as far as it has come: `values` u8 [rows, columns, 3]. */
export const preferred = async (address, signal) => {
  const { head, buffer, at } = await frame(address, signal)
  const count = head.rows * head.columns * 3
  if (at + count > buffer.byteLength) throw new Refused(0, 'The picture is cut short.')
  return { of: address, head, values: new Uint8Array(buffer, at, count) }
}

/**
 * One kind of request: at most one in flight. While a hand moves (`follow`) the one in flight may finish,
 * so that something is seen on the way, and only the newest of those behind it waits; a jump to
 * something else aborts it.
 */
export class Lane {
  constructor() {
    this.controller = null
    this.waiting = null
    /** @type {string | null} What was asked for last. */
    this.of = null
  }

  get busy() { return this.controller !== null }

  /** @param {(signal: AbortSignal) => Promise<void>} job handles its own answer and errors */
  ask(job, follow = false) {
    if (this.controller && follow) {
      this.waiting = job
      return
    }
    this.stop()
    this.run(job)
  }

  stop() {
    this.waiting = null
    this.controller?.abort()
    this.controller = null
  }

  async run(job) {
    const controller = new AbortController()
    this.controller = controller
    try {
      await job(controller.signal)
    } catch (error) {
      if (!controller.signal.aborted) throw error
    } finally {
      // An aborted one has been replaced: the lane is no longer its own.
      if (this.controller === controller) {
        this.controller = null
        const next = this.waiting
        this.waiting = null
        if (next) this.run(next)
      }
    }
  }
}
