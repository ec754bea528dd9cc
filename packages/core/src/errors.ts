import { showBytes } from './tensor/show-bytes.ts'

/** Base of every error tilegrad throws on purpose. Messages name the operator first, then what was given, what was expected, and the fix. */
export class TilegradError extends Error {
  override name = 'TilegradError'
}

/** Shapes, dims or indices that do not fit the operator. */
export class ShapeError extends TilegradError {
  override name = 'ShapeError'
}

/** A dtype the operator or the backend cannot take. */
export class DTypeError extends TilegradError {
  override name = 'DTypeError'
}

/** Tensors on different backends, a missing backend, or one that cannot do what was asked. */
export class DeviceError extends TilegradError {
  override name = 'DeviceError'
}

/** An operator, argument or combination that is not supported. */
export class UnsupportedOpError extends TilegradError {
  override name = 'UnsupportedOpError'
}

/** Misuse of autograd: a freed graph, a tensor modified in place, no path to differentiate. */
export class GradError extends TilegradError {
  override name = 'GradError'
}

/** A tensor used after its memory was freed. */
export class DisposedError extends TilegradError {
  override name = 'DisposedError'
}

/** A value out of the range an argument allows. */
export class ValueError extends TilegradError {
  override name = 'ValueError'
}

/** Thrown when a device's memory is used up: what was asked for, is in use, may be used at all, and who holds most. */
export class OutOfMemoryError extends TilegradError {
  override name = 'OutOfMemoryError'
  /** How many bytes were asked for. */
  readonly requestedBytes: number
  /** How many bytes were in use. */
  readonly liveBytes: number
  /** How many bytes may be in use; Infinity where the device does not say. */
  readonly limitBytes: number

  /**
   * `limitBytes` is Infinity where the device does not say. `pieces` is for fragmented memory: how many bytes are free,
   * and how many of them in one piece at most.
   */
  constructor(
    requestedBytes: number,
    liveBytes: number,
    limitBytes: number,
    pieces?: { free: number; largest: number },
  ) {
    const limit = Number.isFinite(limitBytes) ? ` of at most ${showBytes(limitBytes)} are` : ' are'
    const refused = Number.isFinite(limitBytes) ? '' : 'the device has no more, and '
    super(
      `memory: ${showBytes(requestedBytes)} asked for, but ${refused}${showBytes(liveBytes)}${limit} in use` +
        (pieces
          ? `, and the ${showBytes(pieces.free)} that are free lie in pieces of at most ${showBytes(pieces.largest)} (fragmentation)`
          : '') +
        '; free tensors (scope(), dispose()), or use smaller batches',
    )
    this.requestedBytes = requestedBytes
    this.liveBytes = liveBytes
    this.limitBytes = limitBytes
  }
}

/**
 * `[2, 3]`, as shapes are printed in every message.
 *
 * @example
 * show([2, 3]) // → [2, 3]
 */
export const show = (shape: readonly number[]): string => `[${shape.join(', ')}]`

/** What `compile` cannot record: a read in the middle, or a function that does something else each time. */
export class CompileError extends TilegradError {
  override name = 'CompileError'
}
