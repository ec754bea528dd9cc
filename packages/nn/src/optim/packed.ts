import { dtypeInfo, scope, type Tensor, zeros } from '@tilegrad/core'
import { wide } from '../module/parameter.ts'

/** The elements of which each tensor begins at a multiple, so that no two share a cache line. */
const alignment = 16
/** Elements of a piece of memory: 64 MiB of float32, half of what every GPU can bind. */
const most = 2 ** 24
/** The bytes that may be lost to rounding. */
const slack = 2 ** 20

const aligned = (n: number): number => alignment * Math.ceil(n / alignment)

/**
 * Zeros of the given shapes, on the backends of `like`, and of its dtypes, float32 for those of 16 bits, in as few pieces of memory as is sensible, in that order: a GPU
 * binds pieces of memory, not tensors, and so takes more of them at once; elsewhere each has its own. Kept; a piece is freed
 * with the last of its tensors.
 */
export function packedZeros(like: readonly Tensor[], shapes: readonly (readonly number[])[]): Tensor[] {
  const sizes = shapes.map((shape) => shape.reduce((n, d) => n * d, 1))
  const made = new Array<Tensor>(like.length)
  const left = new Set(like.keys())
  for (const first of left) {
    const { backend, dtype } = like[first]
    const same = [...left].filter((i) => like[i]?.backend === backend && like[i]?.dtype === dtype)
    for (const i of same) left.delete(i)
    let from = 0
    while (from < same.length) {
      const rest = same.slice(from)
      const piece = rest.slice(
        0,
        lengthOfPiece(
          like[first],
          rest.map((i) => sizes[i]),
        ),
      )
      const starts: number[] = []
      let size = 0
      for (const i of piece) {
        starts.push(size)
        size += aligned(sizes[i])
      }
      scope(() => {
        const whole = zeros([size], { device: backend, dtype: wide(dtype) })
        piece.forEach((i, k) => {
          made[i] = whole.narrow(0, starts[k], sizes[i]).reshape(shapes[i]).keep()
        })
      })
      from += piece.length
    }
  }
  return made
}

/** Finds how many tensors to put together. Backends round sizes up, which may cost a little more than apart. */
function lengthOfPiece({ backend, dtype }: Tensor, sizes: readonly number[]): number {
  let [together, apart, length] = [0, 0, 1]
  if (!backend.operands) return length
  const bytes = (n: number): number => {
    const exact = n * dtypeInfo[wide(dtype)].bytes
    return backend.sizeOf?.(exact) ?? exact
  }
  for (const [i, size] of sizes.entries()) {
    together += aligned(size)
    apart += bytes(size)
    if (i > 0 && together > most) break
    if (bytes(together) <= (17 / 16) * apart + slack) length = i + 1
  }
  return length
}
