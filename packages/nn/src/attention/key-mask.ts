import { DTypeError, ShapeError, show, type Tensor, ValueError } from '@tilegrad/core'

/** What masks used to be called where true meant hidden, here and in PyTorch: a wrong guess must not pass in silence. */
const old = 'keyPaddingMask'

/**
 * The option `keyMask` of a call, checked: bool of a shape (B, S), true where a key may be attended to.
 *
 * @throws ValueError for `keyPaddingMask`, in which true would mean the opposite; DTypeError, ShapeError for another mask.
 */
export function keyMaskOf(
  op: string,
  options: { readonly keyMask?: Tensor | null },
  shape: readonly (number | undefined)[],
): Tensor | null {
  if ((options as Record<string, unknown>)[old])
    throw new ValueError(
      `${op}: takes no ${old}; in keyMask, as in every mask, true is a key that may be attended to: give keyMask: ${old}.logicalNot()`,
    )
  const { keyMask = null } = options
  if (!keyMask) return null
  const { dtype } = keyMask
  if (dtype !== 'bool')
    throw new DTypeError(
      `${op}: keyMask must be bool, true for keys that may be attended to, not ${dtype}; convert a tokenizer's 0 and 1 with .to('bool')`,
    )
  if (keyMask.shape.join() !== shape.join())
    throw new ShapeError(
      `${op}: keyMask must be (B, S) = ${show(shape as readonly number[])}, got ${show(keyMask.shape)}`,
    )
  return keyMask
}
