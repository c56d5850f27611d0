// From a click on a unit to its pixels: `zfnet:click` marks the first, the measure `zfnet:unit` ends with the second.

let waiting = false

export const clicked = () => {
  performance.clearMarks('zfnet:click')
  performance.mark('zfnet:click')
  waiting = true
}

/** The pixels that the last click asked for are on their canvas. */
export const drawn = () => {
  if (!waiting) return
  waiting = false
  performance.measure('zfnet:unit', 'zfnet:click')
}
