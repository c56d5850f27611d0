// The camera: one frame after the other is uploaded and looked at, the next only when all of the last is shown.

import * as api from './api.js'
import { $, press } from './dom.js'
import { settled } from './load.js'
import { change, listen, state } from './state.js'

/** At most so many frames a second, however fast the server is. */
const RATE = 15
const SIDE = 640

/** @type {MediaStream | null} */
let stream = null
/** The image that the camera itself has put there: any other was chosen by the reader, and ends the run. */
let last = null
/** The picture behind it: the server keeps but the last few. @type {Blob | null} */
let lastBlob = null
/** Whether the browser is being asked for one. */
let starting = false

const stopCamera = () => {
  stream?.getTracks().forEach(track => track.stop())
  stream = null
  if (state.camera) change({ camera: false })
}

/** The camera's picture behind an image, if that is its last. */
export const frameOf = image => (image === last ? lastBlob : null)

const blobOf = canvas => new Promise(resolve => canvas.toBlob(resolve, 'image/jpeg', 0.9))

const run = async tell => {
  const video = document.createElement('video')
  video.muted = true
  video.playsInline = true
  video.srcObject = stream
  const own = stream
  await video.play()
  const canvas = document.createElement('canvas')
  while (stream === own && own.active) {
    const begun = performance.now()
    if (document.hidden || !video.videoWidth) {
      await new Promise(resolve => setTimeout(resolve, 100))
      continue
    }
    const k = Math.min(1, SIDE / Math.max(video.videoWidth, video.videoHeight))
    canvas.width = Math.round(video.videoWidth * k)
    canvas.height = Math.round(video.videoHeight * k)
    canvas.getContext('2d').drawImage(video, 0, 0, canvas.width, canvas.height)
    const blob = await blobOf(canvas)
    const { id } = await api.upload(blob, undefined, true)
    if (stream !== own) return
    last = id
    lastBlob = blob
    change({ image: id, info: null }, { follow: true })
    await settled()
    await new Promise(resolve => setTimeout(resolve, Math.max(0, 1000 / RATE - (performance.now() - begun))))
  }
  if (stream === own) {
    stopCamera()
    tell('The camera was switched off.')
  }
}

/** @param {(text: string) => void} tell */
export const toggleCamera = async tell => {
  if (state.camera) return stopCamera()
  if (starting) return
  if (!navigator.mediaDevices?.getUserMedia) {
    return tell(isSecureContext ? 'This browser has no camera for pages.' : `Browsers give pages the camera only over HTTPS or on this machine. Open the explorer as http://localhost${location.port ? `:${location.port}` : ''}/ where it runs, or through a tunnel.`)
  }
  starting = true
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 }, facingMode: 'environment' }, audio: false })
  } catch (error) {
    return tell({ NotAllowedError: 'The camera was not allowed. The permission is in the browser, beside the address.', NotFoundError: 'There is no camera here.' }[error.name] ?? `The camera could not be opened: ${error.message}`)
  } finally {
    starting = false
  }
  tell('')
  last = lastBlob = null
  change({ camera: true, view: null })
  run(tell).catch(error => { stopCamera(); tell(error.message) })
}

/** @param {(text: string) => void} tell */
export const startCamera = tell => {
  $('camera').addEventListener('click', () => toggleCamera(tell))
  listen(changed => {
    if (changed.has('image') && state.camera && last !== null && state.image !== last) stopCamera()
    if (changed.has('camera')) {
      press($('camera'), state.camera)
      $('camera').textContent = state.camera ? 'Stop camera' : 'Camera'
    }
  })
}
