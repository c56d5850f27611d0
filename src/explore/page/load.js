// What the present state needs from the server, asked for as soon as the state changes: one lane for each kind
// of request. Answers go into the state under the address that they came from (`of`), so that a part knows
// whether what it draws is of the present state or still of the last.

import * as api from './api.js'
import { short } from './dom.js'
import { counterpart } from './nets.js'
import { isComplete, saysMore } from './progress.js'
import { NOT_PUBLISHED, isPublished, publishedUnit } from './published.js'
import { any, change, fail, layerOf, listen, state } from './state.js'

/** Answers that are worth keeping: going back to a layer or flipping the weights should cost nothing. */
class Kept {
  constructor(most) {
    this.most = most
    this.answers = new Map()
  }

  get(key) {
    const answer = this.answers.get(key)
    if (answer) {
      this.answers.delete(key)
      this.answers.set(key, answer)
    }
    return answer
  }

  set(key, answer) {
    this.answers.set(key, answer)
    if (this.answers.size > this.most) this.answers.delete(this.answers.keys().next().value)
  }
}

const keptMaps = new Kept(12)
const keptPictures = new Kept(36)

const lanes = { input: new api.Lane(), classes: new api.Lane(), open: new api.Lane(), maps: new api.Lane(), heldMaps: new api.Lane(), picture: new api.Lane(), info: new api.Lane(), otherClasses: new api.Lane(), otherMaps: new api.Lane() }
/** @type {Map<string, api.Lane>} One for each rule of each network. */
const pictureLanes = new Map()

/** The pictures of the unit that are wanted, in their order. */
export const pictureKeys = () => {
  const rules = state.all ? state.network.rules : [state.rule]
  const kinds = ['trained', ...(state.random ? ['random'] : []), ...(state.compared ? ['compared'] : [])]
  return kinds.flatMap(kind => rules.map(rule => ({ key: `${rule}:${kind}`, rule, kind })))
}

/** The address of a picture in the present state, or null where no unit is chosen. */
export const pictureAddress = ({ rule, kind }) => {
  if (!state.image || !state.layer || state.map === null || !state.unit) return null
  if (kind === 'compared') {
    const there = counterpart()
    return there?.unit ? api.projectAt(there.shown, there.layer.name, there.map, there.unit, rule) : null
  }
  const shown = kind === 'random' ? { ...state, net: { ...state.net, untrained: true } } : state
  return api.projectAt(shown, state.layer, state.map, state.unit, rule)
}

export const inputAddress = () => (state.image ? api.inputAt(state) : null)
export const classesAddress = () => (state.image ? api.classesAt(state) : null)
export const mapsAddress = () => (state.image && state.layer ? api.mapsAt(state, state.layer) : null)
export const topAddress = () => (state.layer !== null && state.map !== null ? api.topAt(state.net, state.layer, state.map) : null)

export const otherClassesAddress = () => {
  const there = counterpart()
  return there ? api.classesAt(there.shown) : null
}
export const otherMapsAddress = () => {
  const there = counterpart()
  return there && there.map !== null ? api.mapsAt(there.shown, there.layer.name) : null
}

/** The maps, if they are those of the present layer (even of a square or image just left). */
export const mapsHere = () => (state.maps?.layer === state.layer && state.maps.checkpoint === state.net.checkpoint ? state.maps : null)

/** The compared network's, of the layer that answers to the present one. */
export const otherMapsHere = () => {
  const { otherMaps: maps, compared } = state
  return maps && compared && maps.checkpoint === compared.checkpoint && maps.layer === counterpart()?.layer?.name ? maps : null
}

/**
 * Runs the request for an address in its lane, unless that is on its way (null: in any case); errors are said in the
 * part's place.
 */
const want = (lane, of, part, follow, job) => {
  if (of && lane.busy && lane.of === of) return
  lane.of = of
  lane.ask(async signal => {
    try {
      await job(signal)
      fail(part, null)
    } catch (error) {
      if (signal.aborted) return
      fail(part, error)
      if (error.status === 0) againSoon()
      // A fault of the page itself belongs on the console too.
      if (!(error instanceof api.Refused)) reportError(error)
    }
  }, follow)
}

/** The server is away, perhaps for a moment: what is missing is asked for again until it is back. */
let againTimer = 0
const againSoon = () => {
  clearTimeout(againTimer)
  againTimer = setTimeout(() => {
    if (!state.image) return
    wantInput(false)
    wantClasses(false)
    wantMaps(false)
    wantPictures(false)
    wantHeld(false)
    wantOther(false)
  }, 2000)
}

const wantInput = follow => {
  const of = inputAddress()
  want(lanes.input, of, 'input', follow, async signal => {
    const bitmap = await api.bitmap(of, signal)
    change({ input: { of, bitmap } })
  })
}

const wantClasses = follow => {
  const of = classesAddress()
  const { cover } = state
  want(lanes.classes, of, 'classes', follow, async signal => {
    const { classes } = await api.classes(of, signal)
    change(cover ? { classes: { of, classes } } : { classes: { of, classes }, open: { of, classes } })
  })
  // What the network thought before the square is what makes the bars worth looking at.
  const open = { ...state, cover: null }
  const openAt = api.classesAt(open)
  if (!cover) lanes.open.stop()
  else if (state.open?.of !== openAt && !(follow && lanes.open.busy)) {
    lanes.open.ask(async signal => {
      const { classes } = await api.classes(openAt, signal).catch(() => ({ classes: null }))
      if (classes) change({ open: { of: openAt, classes } })
    })
  }
}

const wantMaps = follow => {
  const of = mapsAddress()
  const { layer, image, net: { checkpoint } } = state
  const kept = keptMaps.get(of)
  if (kept) {
    lanes.maps.stop()
    fail('maps', null)
    change({ maps: kept })
    choose(kept)
    return
  }
  want(lanes.maps, of, 'maps', follow, async signal => {
    const maps = { ...(await api.maps(of, signal)), layer, image, checkpoint }
    keptMaps.set(of, maps)
    change({ maps })
    choose(maps)
  })
}

/** What the compared network thinks, and its layer's maps; its pictures are among the unit's. */
const wantOther = follow => {
  const classes = otherClassesAddress(), of = otherMapsAddress()
  if (!classes) lanes.otherClasses.stop()
  else if (state.otherClasses?.of !== classes || lanes.otherClasses.busy) {
    want(lanes.otherClasses, classes, 'otherClasses', follow, async signal => {
      change({ otherClasses: { of: classes, ...(await api.classes(classes, signal)) } })
    })
  }
  const kept = of && keptMaps.get(of)
  if (!of) lanes.otherMaps.stop()
  else if (kept) {
    lanes.otherMaps.stop()
    fail('otherMaps', null)
    change({ otherMaps: kept })
  } else {
    const { layer, shown: { image, net: { checkpoint } } } = counterpart()
    want(lanes.otherMaps, of, 'otherMaps', follow, async signal => {
      const maps = { ...(await api.maps(of, signal)), layer: layer.name, image, checkpoint }
      keptMaps.set(of, maps)
      change({ otherMaps: maps })
    })
  }
}

/** Where a link or a new image leaves the unit open, it is the map's strongest; without a map, the layer's. */
const choose = maps => {
  if (maps.layer !== state.layer || maps.image !== state.image) return
  const { peaks } = maps.head
  let { map } = state
  // A map that the last image made fire may be silent here, or its projection not published.
  const shows = map !== null && (isPublished ? publishedUnit(maps, map, state.network) !== null : peaks[map][0] > 0)
  if (!shows && !state.unit && !state.held && !state.camera && lastMapsImage !== null && lastMapsImage !== maps.image) map = null
  lastMapsImage = maps.image
  if (map === null) {
    map = 0
    peaks.forEach(([value], i) => { if (value > peaks[map][0]) map = i })
  }
  const peak = [peaks[map][1], peaks[map][2]]
  if (state.camera && !state.held) {
    change({ map, unit: peak }, { follow: true })
    wantPictures(true)
  } else if (map !== state.map || !state.unit) change({ map, unit: peak })
}
let lastMapsImage = null

const wantPictures = follow => {
  for (const wanted of pictureKeys()) {
    const of = pictureAddress(wanted)
    if (!of) continue
    if (!pictureLanes.has(wanted.key)) pictureLanes.set(wanted.key, new api.Lane())
    const lane = pictureLanes.get(wanted.key)
    if (state.pictures[wanted.key]?.of === of && !lane.busy) continue
    const kept = keptPictures.get(of)
    if (kept) {
      lane.stop()
      arrive(wanted.key, kept)
      continue
    }
    // What is known to be missing need not be asked for.
    const maps = mapsHere()
    if (isPublished && maps?.of === mapsAddress() && String(publishedUnit(maps, state.map, state.network)) !== String(state.unit)) {
      lane.stop()
      fail('unit', null)
      arrive(wanted.key, { of, refused: NOT_PUBLISHED, silent: true })
      continue
    }
    want(lane, of, 'unit', follow, async signal => {
      let picture
      try {
        picture = await api.project(of, signal)
        // A unit that did not fire is an answer, and belongs where its picture would be.
        if (!(picture.head.activation > 0)) picture = { of, refused: `This unit did not fire: its activation is ${short(picture.head.activation)}.`, silent: true }
      } catch (error) {
        if (signal.aborted || !(error instanceof api.Refused) || error.status === 0 || error.isOutdated) throw error
        picture = { of, refused: error.message, silent: false }
      }
      if (!picture.refused || picture.silent) keptPictures.set(of, picture)
      arrive(wanted.key, picture)
    })
  }
}

const arrive = (key, picture) => change({ pictures: { ...state.pictures, [key]: picture } })

/** The receptive field of the chosen unit, x0, y0, x1, y1 in pixels of the input, which it may exceed. */
export const fieldHere = () => {
  const layer = layerOf(state.layer)
  if (!layer || !state.unit) return null
  const [y, x] = state.unit
  const [x0, y0] = [layer.offset[0] + x * layer.stride[0], layer.offset[1] + y * layer.stride[1]]
  return [x0, y0, x0 + layer.field[0], y0 + layer.field[1]]
}

/** The map's strongest over the data; asked again while the search goes on and somebody looks. */
let topTimer = 0
let topSeen = false
/** @type {api.Net | null} The network whose search was begun: other weights need another. */
let searchedOf = null
const topLane = new api.Lane()
const wantTop = () => {
  clearTimeout(topTimer)
  topTimer = 0
  const { net } = state
  const of = topAddress()
  if (!of || !topSeen || document.hidden) return
  if (isPublished && !state.network.published.tops[state.layer]?.includes(state.map)) {
    topLane.stop()
    fail('top', new api.Refused(404, NOT_PUBLISHED))
    return
  }
  topLane.ask(async signal => {
    try {
      if (searchedOf !== net && !isPublished) {
        await api.search(net.checkpoint, signal)
        searchedOf = net
      }
      const found = { ...(await api.top(of, signal)), of }
      if (found.failed) searchedOf = null // to be begun again, which the program puts off for a while
      if (saysMore(found, state.top)) change({ top: found })
      fail('top', null)
      if (!isComplete(found)) topTimer = setTimeout(wantTop, 1000)
    } catch (error) {
      if (signal.aborted) return
      fail('top', error)
      if (!isPublished) topTimer = setTimeout(wantTop, 5000)
    }
  })
}
/** Whether they are on the screen: else they are not asked for. */
export const isTopSeen = () => topSeen
export const topOnScreen = seen => {
  if (seen === topSeen) return
  topSeen = seen
  if (seen) wantTop()
  else clearTimeout(topTimer)
}
document.addEventListener('visibilitychange', () => { if (!document.hidden) wantTop() })

const wantInfo = () => {
  if (state.info?.id === state.image) return
  if (state.image.startsWith('upload/')) {
    lanes.info.stop()
    change({ info: null })
    return
  }
  const id = state.image
  lanes.info.ask(async signal => {
    const info = await api.imageOf(id, signal).catch(() => null)
    if (state.image === id) change({ info })
  })
}

/** The whole stored picture, for choosing a part of it. @returns {Promise<void>} */
export const wantPicture = () => new Promise(resolve => {
  const of = api.pictureAt(state.image)
  if (state.picture?.of === of) return resolve()
  want(lanes.picture, null, 'input', false, async signal => {
    const bitmap = await api.bitmap(of, signal)
    if (of === api.pictureAt(state.image)) change({ picture: { of, bitmap } })
    resolve()
  })
})

const wantHeld = follow => {
  if (!state.held || !state.image || state.held.layer === state.layer) {
    lanes.heldMaps.stop()
    return
  }
  const of = api.mapsAt(state, state.held.layer)
  const { image, held: { layer }, net: { checkpoint } } = state
  const kept = state.heldMaps?.of === of ? state.heldMaps : keptMaps.get(of)
  if (kept) {
    lanes.heldMaps.stop()
    return change({ heldMaps: kept })
  }
  want(lanes.heldMaps, of, 'held', follow, async signal => {
    const maps = { ...(await api.maps(of, signal)), layer, image, checkpoint }
    keptMaps.set(of, maps)
    change({ heldMaps: maps })
  })
}

/** The held unit's activation as shown now: null while it is not known. */
export const heldMapsHere = () => {
  const of = state.held && state.image ? api.mapsAt(state, state.held.layer) : null
  return [state.maps, state.heldMaps].find(maps => maps?.of === of) ?? null
}

const busy = () => [lanes.input, lanes.classes, lanes.maps, lanes.heldMaps, lanes.otherClasses, lanes.otherMaps, ...pictureLanes.values()].some(lane => lane.busy)
/** When all that is asked for now has come (or failed). */
export const settled = async () => {
  do await new Promise(resolve => setTimeout(resolve, 10))
  while (busy())
}

export const startLoading = () => listen((changed, how) => {
  if (!state.image) return
  const shown = any(changed, 'image', 'view', 'cover', 'fill', 'net')
  const other = any(changed, 'compared', 'networks')
  // Under a running camera a unit that is not held follows its map's strongest place, which comes with the maps.
  const later = state.camera && !state.held && changed.has('image')
  if (!later && (shown || other || any(changed, 'map', 'unit', 'layer', 'rule', 'all', 'random'))) wantPictures(how.follow)
  if (shown) {
    wantInput(how.follow)
    wantClasses(how.follow)
  }
  if (shown || changed.has('layer')) wantMaps(how.follow)
  if (shown || any(changed, 'held', 'layer')) wantHeld(how.follow)
  // A little later: the projection asked for by the same click comes first, and maps passed by are left out.
  // A link that leaves the unit open, to maps that are here already.
  else if (any(changed, 'map', 'unit') && !state.unit && state.maps?.of === mapsAddress()) choose(state.maps)
  if (changed.has('compared') || state.compared && (shown || any(changed, 'networks', 'layer', 'map', 'unit'))) wantOther(how.follow)
  if (any(changed, 'layer', 'map', 'net')) {
    clearTimeout(topTimer)
    topTimer = setTimeout(wantTop, 150)
  }
  if (changed.has('image')) wantInfo()
  if (changed.has('mode') && state.mode === 'crop' || changed.has('image') && state.mode === 'crop') wantPicture()
})

/** Goes to an image. The unit stays where it is held; else it moves to the map's strongest place. */
export const goTo = (image, info = null, how = { push: true }) => {
  change({ image, info, view: null, cover: null, ...(state.held ? {} : { unit: null }) }, how)
}
