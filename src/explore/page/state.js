// What the page shows: one object, one way to change it, and those who want to know.
//
// The first block is in the link (link.js), the second is the page's own, the third came from the server.
// A part reads what it likes and writes through `change` alone, so that every picture can be made again
// from this object, and a further part needs fields here and a listener.

export const state = {
  /** @type {import('./api.js').Net} The network that is looked into: the newest weights of a checkpoint. */
  net: { checkpoint: 0, step: null, untrained: false, version: '' },
  /** @type {import('./api.js').Net | null} The network beside it. */ compared: null,
  /** @type {string | null} */ image: null,
  /** @type {number[] | null} The part shown to the network: x, y, side; see api.js. */ view: null,
  /** @type {number[] | null} x0, y0, x1, y1 in pixels of the network's input. */ cover: null,
  fill: 'mean',
  /** @type {string | null} */ layer: null,
  /** @type {number | null} */ map: null,
  /** @type {number[] | null} y, x; null is the map's strongest unit, once the map is known. */ unit: null,
  rule: 'deconvnet',
  /** All rules side by side. */ all: false,
  /** Untrained weights beside the trained ones. */ random: false,
  /** One scale for all rules. */ shared: false,
  gain: 1,
  /** Pictures cut to the receptive field. */ cut: true,
  /** The chosen map laid over the image. */ overlay: false,
  /** @type {{layer: string, map: number, y: number, x: number} | null} */ held: null,
  /** @type {number | null} The class that is studied. */ study: null,
  /** @type {string | null} LAYER/MAP whose preferred image is wanted. */ preferredOf: null,
  /** The dialog of the run is open. */ training: false,

  /** What a drag upon the image does. @type {'look' | 'cover' | 'crop'} */ mode: 'look',
  /** @type {number | null} The map under the pointer. */ hover: null,
  camera: false,
  /** All maps in one scale, or each in its own. */ ownScale: false,
  /** Strongest maps first, or by number. @type {'strength' | 'number'} */ order: 'strength',
  /** Only maps that fire. */ firing: true,
  /** @type {any} A run of the covered square over the whole input (sweep.js). */ sweep: null,
  sweepOver: true,

  /** @type {any} api/network of the network looked into */ network: null,
  /** @type {Record<number, any>} api/network, by checkpoint, as far as they were needed. */ networks: {},
  /** @type {Record<number, any>} api/run, by checkpoint. */ runs: {},
  /** @type {{id: string, name: string, class: number} | null} The data's own words on the image. */ info: null,
  /** @type {{of: string, bitmap: ImageBitmap} | null} */ input: null,
  /** @type {{of: string, bitmap: ImageBitmap} | null} The whole stored picture. */ picture: null,
  /** @type {{of: string, classes: any[]} | null} */ classes: null,
  /** @type {{of: string, classes: any[]} | null} The classes of the same view with nothing covered. */ open: null,
  /** @type {any} */ maps: null,
  /** @type {{of: string, classes: any[]} | null} The compared network's. */ otherClasses: null,
  /** @type {any} The compared network's. */ otherMaps: null,
  /** @type {any} Maps of the held unit's layer where that is another. */ heldMaps: null,
  /** @type {Record<string, any>} By rule and weights, see `pictureKeys` in load.js. */ pictures: {},
  /** @type {any} */ top: null,
  /** @type {any} api/class */ studied: null,
  /** @type {any} api/histogram */ histogram: null,
  /** @type {any} api/preferred */ preferred: null,
  /** @type {Record<string, string>} What went wrong, by part. */ errors: {},
}

/** @typedef {{push?: boolean, follow?: boolean}} How  push: a new entry of the history; follow: a hand moves. */

const listeners = []

/** Listeners run in the order of their registration: what asks the server comes before what draws. */
export const listen = listener => { listeners.push(listener) }

const same = (a, b) => a === b
  || (Array.isArray(a) && Array.isArray(b) && a.length === b.length && a.every((v, i) => v === b[i]))

/**
 * Writes fields and tells whoever listens which of them are new.
 * @param {Partial<typeof state>} patch
 * @param {How} [how]
 */
export const change = (patch, how = {}) => {
  const changed = new Set()
  for (const [name, value] of Object.entries(patch)) {
    if (same(state[name], value)) continue
    state[name] = value
    changed.add(name)
  }
  if (changed.size) for (const listener of listeners) listener(changed, how)
}

/** Whether any of these names is among the changed. */
export const any = (changed, ...names) => names.some(name => changed.has(name))

export const layerOf = name => state.network?.layers.find(layer => layer.name === name) ?? null

/** How large a layer's receptive field is: one number of a square. */
export const fieldOf = ({ field: [columns, rows] }) => (columns === rows ? `${columns}` : `${columns} × ${rows}`)

/** The class that a map of the last layer stands for, or nothing. */
export const classOf = (layer, map) => {
  const { layers, classes } = state.network
  return layers.at(-1).name === layer && layers.at(-1).maps === classes.length ? classes[map] ?? null : null
}

/** Says or clears what went wrong in a part. */
export const fail = (part, error) => {
  // Nothing is wrong: the new weights are asked for.
  if (error?.isOutdated) return
  if (!error && !(part in state.errors)) return
  const errors = { ...state.errors }
  if (error) errors[part] = error.message ?? String(error)
  else delete errors[part]
  change({ errors })
}
