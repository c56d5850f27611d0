// The page without a server (`zfnet explore --static`): which of its answers were computed beforehand, and where they are.

/** Whether this page is one that was published: its HTML says so. */
export const isPublished = document.documentElement.hasAttribute('data-published')

/** What is said in the place of what was not computed. */
export const NOT_PUBLISHED = 'Not published: this needs the program (zfnet explore).'

/** The file with the answer to an address, as the program names it. Addresses are ASCII. */
export const fileOf = address => {
  const what = address.split(/[/?]/)[0]
  const ending = ['thumb', 'picture'].includes(what) ? '.jpg' : ['input', 'field', 'filters'].includes(what) ? '.png' : '.gz'
  return address.replace(/[^\w,/-]/g, c => '~' + c.charCodeAt(0).toString(16).padStart(2, '0')) + ending
}

/** The layers of a network that can be looked at. */
export const layersShown = ({ layers, published }) => (published ? layers.filter(({ name }) => published.layers.includes(name)) : layers)

/** The units of a layer whose projections are published, by map: of the strongest maps, the strongest. */
const unitsOf = new WeakMap()

/**
 * The published unit of a map in the image that these maps are of; null where it has none.
 * @param {{head: {peaks: number[][]}}} maps
 * @returns {number[] | null} y, x
 */
export const publishedUnit = (maps, map, { published }) => {
  if (!published || !maps) return null
  if (!unitsOf.has(maps)) {
    const fired = maps.head.peaks.map(([value, y, x], i) => ({ value, i, unit: [y, x] })).filter(({ value }) => value > 0)
    fired.sort((a, b) => b.value - a.value || a.i - b.i)
    unitsOf.set(maps, new Map(fired.slice(0, published.maps).map(({ i, unit }) => [i, unit])))
  }
  return unitsOf.get(maps).get(map) ?? null
}

/** The published images, as `api/images` lists them; `names` are those of the data's classes. */
export class Images {
  constructor(images, names) {
    Object.assign(this, { images, names })
  }

  splits() {
    const counts = new Map()
    for (const { id } of this.images) {
      const name = id.split('/')[0]
      counts.set(name, (counts.get(name) ?? 0) + 1)
    }
    return [...counts].map(([name, count]) => ({ name, count }))
  }

  find(id) { return this.images.find(image => image.id === id) ?? null }

  list({ split, from, count, class: kind = null, search = '' }) {
    const wanted = search.toLowerCase()
    const found = this.images.filter(image => image.id.startsWith(split + '/') && (kind === null || image.class === kind)
      && [image.name, this.names[image.class] ?? ''].some(text => text.toLowerCase().includes(wanted)))
    return { total: found.length, images: found.slice(from, from + count) }
  }
}
