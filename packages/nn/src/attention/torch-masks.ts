import { DTypeError, isFloat, ShapeError, show, type Tensor } from '@tilegrad/core'

/** The masks of a call as PyTorch's layers take them: true hides, a float is added to the scores. */
export interface TorchMasks {
  /** (T, S), or (B · H, T, S): which keys a query must not see. */
  readonly attnMask?: Tensor | null | undefined
  /** (B, S), or (S) without a batch: which keys nobody must see. */
  readonly keyPaddingMask?: Tensor | null | undefined
  /** Whether each query sees only keys up to its own place. */
  readonly isCausal?: boolean | undefined
}

function expectMask(op: string, name: string, mask: Tensor): void {
  if (mask.dtype === 'bool' || isFloat(mask.dtype)) return
  throw new DTypeError(
    `${op}: ${name} must be bool (true: hidden, as in PyTorch) or floating (added to the scores), not ${mask.dtype}; convert a mask of 0 and 1 with .to('bool')`,
  )
}

/**
 * PyTorch's masks as one of `scaledDotProductAttention`, where true is visible: bool if both are, broadcasting to
 * (B, H, T, S).
 *
 * @internal
 */
export function maskOf(
  op: string,
  { attnMask, keyPaddingMask }: TorchMasks,
  [b, h, t, s]: readonly [number, number, number, number],
): Tensor | null {
  let mask: Tensor | null = null
  if (attnMask) {
    expectMask(op, 'attnMask', attnMask)
    const shape = show(attnMask.shape)
    if (shape === show([b * h, t, s])) mask = attnMask.unflatten(0, [b, h])
    else if (shape === show([t, s])) mask = attnMask
    else
      throw new ShapeError(
        `${op}: attnMask must be (T, S) = ${show([t, s])} or (B·H, T, S) = ${show([b * h, t, s])}, got ${shape}`,
      )
  }
  if (keyPaddingMask) {
    expectMask(op, 'keyPaddingMask', keyPaddingMask)
    if (show(keyPaddingMask.shape) !== show([b, s]))
      throw new ShapeError(
        `${op}: keyPaddingMask must be (B, S) = ${show([b, s])}, got ${show(keyPaddingMask.shape)}`,
      )
    const padding = keyPaddingMask.unsqueeze(1).unsqueeze(1)
    mask = mask ? either(mask, padding) : padding
  }
  return mask?.dtype === 'bool' ? mask.logicalNot() : mask
}

/** What either mask hides, with what both add. */
function either(a: Tensor, b: Tensor): Tensor {
  if (a.dtype !== 'bool') return b.dtype === 'bool' ? a.maskedFill(b, -Infinity) : a.add(b)
  return b.dtype === 'bool' ? a.logicalOr(b) : b.maskedFill(a, -Infinity)
}
