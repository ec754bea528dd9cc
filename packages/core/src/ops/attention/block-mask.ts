import { noGrad } from '../../autograd/tape.ts'
import { expectFloat, expectOptions } from '../../checks.ts'
import type { Backend } from '../../dispatch/backend.ts'
import { DTypeError, ShapeError, show, ValueError } from '../../errors.ts'
import * as e from '../../expr/expr.ts'
import { program } from '../../expr/program.ts'
import { elementwise } from '../../primitives/elementwise.ts'
import { expandView, reshapeView, transposeView } from '../../primitives/views.ts'
import type { Nested } from '../../tensor/from-arrays.ts'
import { scope } from '../../tensor/memory.ts'
import { Printable } from '../../tensor/printing.ts'
import { Tensor } from '../../tensor/tensor.ts'
import { arange, tensor, to, zeros } from '../create.ts'
import { scatterAdd } from '../indexing.ts'
import { matmul } from '../linalg.ts'
import { minimum, where } from '../pointwise.ts'
import { mean, sort, sum, topk } from '../reduction.ts'
import { cat, narrow } from '../shape.ts'

/** The tensors of a block mask, in the order in which attention takes them. */
export const blockTensors = ['visible', 'kvNumBlocks', 'kvIndices', 'qNumBlocks', 'qIndices'] as const

/** The names of the tensors of a block mask. */
export type BlockTensor = (typeof blockTensors)[number]

/**
 * Which blocks of keys each block of queries sees (PyTorch's `flex_attention.BlockMask`, whose names these are), as a
 * list per block of queries and, for the gradients of keys and values, a list per block of keys. Leading dims, none,
 * (H) or (B, H), broadcast. Made by `createBlockMask` and `topkBlocks`.
 */
export class BlockMask extends Printable {
  /** The size of a block: so many queries by so many keys. */
  readonly blockSize: number
  /** How many blocks the queries make. */
  readonly queryBlocks: number
  /** How many blocks the keys make. */
  readonly keyBlocks: number
  /** The share of visible blocks, null where only the device knows it. */
  readonly density: number | null
  /** The blocks that are visible, (…, nQ, nK), bool. */
  readonly visible: Tensor
  /** The numbers of entries of `kvIndices` that count, (…, nQ), int32. */
  readonly kvNumBlocks: Tensor
  /** The blocks of keys that each block of queries sees, upwards, (…, nQ, most), int32. */
  readonly kvIndices: Tensor
  /** The numbers of entries of `qIndices` that count, (…, nK), int32. */
  readonly qNumBlocks: Tensor
  /** The blocks of queries that see each block of keys, upwards, (…, nK, nQ), int32. */
  readonly qIndices: Tensor

  /** `most`: no block of queries sees more. @internal */
  constructor(visible: Tensor, blockSize: number, most: number, density: number | null) {
    super()
    this.blockSize = blockSize
    this.visible = visible
    this.density = density
    ;[this.queryBlocks, this.keyBlocks] = visible.shape.slice(-2)
    ;[this.kvNumBlocks, this.kvIndices] = lists(visible, most)
    ;[this.qNumBlocks, this.qIndices] = lists(
      transposeView(visible, visible.rank - 2, visible.rank - 1),
      this.queryBlocks,
    )
  }

  /** The mask as text: its blocks, and the share of them that is visible. */
  toString(): string {
    const share = this.density === null ? '' : `, density=${Number(this.density.toPrecision(4))}`
    return `BlockMask(blockSize=${this.blockSize}, visible=${show(this.visible.shape)}${share})`
  }

  /** Frees its tensors. */
  dispose(): void {
    for (const name of blockTensors) this[name].dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}

/** Lists where the last dim is true: how often, and the positions, upwards, filled up with the last position. */
function lists(visible: Tensor, most: number): [counts: Tensor, positions: Tensor] {
  const n = visible.shape[visible.rank - 1]
  const device = visible.backend
  const places = where(visible, arange(0, n, 1, { dtype: 'int32', device }), n)
  const [sorted] = sort(places, -1)
  return [sum(visible, -1, { dtype: 'int32' }), minimum(narrow(sorted, -1, 0, most), Math.max(0, n - 1))]
}

/** Spreads blocks over queries and keys, (…, nQ, nK) → (…, T, S), for the composition. */
export function spreadBlocks(visible: Tensor, blockSize: number, shape: readonly number[]): Tensor {
  const [b, h, t, s] = shape
  const [nq, nk] = visible.shape.slice(-2)
  const wide = expandView('block_mask', reshapeView(visible, [b, h, nq, 1, nk, 1]), [
    b,
    h,
    nq,
    blockSize,
    nk,
    blockSize,
  ])
  return narrow(narrow(reshapeView(wide, [b, h, nq * blockSize, nk * blockSize]), 2, 0, t), 3, 0, s)
}

function checkSize(op: string, blockSize: number): void {
  if (!Number.isInteger(blockSize) || blockSize < 16 || blockSize % 16 !== 0)
    throw new ValueError(`${op}: blockSize must be a multiple of 16, got ${blockSize}`)
}

/** Makes a mask and lets go of what it took to make it. */
const build = (make: () => BlockMask): BlockMask => noGrad(() => scope(make))

/** Options of `createBlockMask`. */
export interface BlockMaskOptions {
  /** Queries and keys per block, a multiple of 16; default 64. */
  blockSize?: number
  /** The number of queries T, for a predicate. */
  qLen?: number
  /** The number of keys S, for a predicate. */
  kvLen?: number
  /** The device of the mask. Default: where the tensor is, else the default backend. */
  device?: Backend | string
}

/**
 * A mask of blocks for `scaledDotProductAttention`, which leaves hidden blocks uncomputed: time and memory fall with
 * the share of visible ones.
 *
 * @param mask (nQ, nK), (H, nQ, nK) or (B, H, nQ, nK) booleans, true: visible, as a bool tensor or nested arrays; or
 *   a predicate of the numbers of a block of queries and a block of keys, with `qLen` and `kvLen`.
 *   nQ = ⌈T / blockSize⌉, nK = ⌈S / blockSize⌉.
 * @throws ValueError for a block size that is no multiple of 16 or a predicate without lengths; ShapeError, DTypeError
 *   for another mask.
 * @example
 * // Every block sees itself and the first one.
 * const mask = createBlockMask((q, k) => k === q || k === 0, { blockSize: 16, qLen: 50, kvLen: 50 })
 * const x = randn([1, 2, 50, 8])
 * scaledDotProductAttention(x, x, x, { blockMask: mask, isCausal: true }).shape // → 1,2,50,8
 * mask.density // → 0.4375
 */
export function createBlockMask(
  mask: Tensor | Nested | ((qBlock: number, kvBlock: number) => boolean),
  options: BlockMaskOptions = {},
): BlockMask {
  const {
    blockSize = 64,
    qLen,
    kvLen,
    device,
  } = expectOptions('create_block_mask', options, { blockSize: 1, qLen: 1, kvLen: 1, device: 1 })
  const op = 'create_block_mask'
  checkSize(op, blockSize)
  const where = device === undefined ? {} : { device }
  if (mask instanceof Tensor) {
    if (mask.dtype !== 'bool') throw new DTypeError(`${op}: takes a bool tensor, not ${mask.dtype}`)
    checkShape(op, mask.shape)
    const keys = mask.shape[mask.rank - 1]
    return build(() => new BlockMask(to(mask, device ?? mask.backend).detach(), blockSize, keys, null))
  }
  if (typeof mask === 'function') {
    if (qLen === undefined || kvLen === undefined)
      throw new ValueError(`${op}: a predicate needs the lengths qLen and kvLen`)
    const [nq, nk] = [Math.ceil(qLen / blockSize), Math.ceil(kvLen / blockSize)]
    const flags = Uint8Array.from({ length: nq * nk }, (_, i) => Number(mask(Math.floor(i / nk), i % nk)))
    return fromFlags(flags, [nq, nk], blockSize, where)
  }
  const flags: number[] = []
  const collect = (x: Nested): void => {
    if (Array.isArray(x)) for (const item of x) collect(item)
    else flags.push(Number(Boolean(x)))
  }
  collect(mask)
  const shape: number[] = []
  for (let at: Nested | undefined = mask; Array.isArray(at); at = at[0]) shape.push(at.length)
  return fromFlags(Uint8Array.from(flags), shape, blockSize, where)
}

function checkShape(op: string, shape: readonly number[]): void {
  if (shape.length < 2 || shape.length > 4)
    throw new ShapeError(`${op}: expected (nQ, nK), (H, nQ, nK) or (B, H, nQ, nK), got ${show(shape)}`)
}

/** The host knows how many blocks are visible. */
function fromFlags(
  flags: Uint8Array<ArrayBuffer>,
  shape: readonly number[],
  blockSize: number,
  where: { device?: Backend | string },
): BlockMask {
  checkShape('create_block_mask', shape)
  const keys = shape[shape.length - 1]
  let [most, all] = [0, 0]
  for (let row = 0; row < flags.length; row += keys) {
    let count = 0
    for (let i = 0; i < keys; i++) count += flags[row + i]
    most = Math.max(most, count)
    all += count
  }
  return build(
    () =>
      new BlockMask(
        tensor(flags, shape, { ...where, dtype: 'bool' }),
        blockSize,
        most,
        all / Math.max(1, flags.length),
      ),
  )
}

/** Block scores; those out of sight are never chosen, those on the diagonal always. Params: causal offset, block size. */
const CHOOSE = program(
  'topk_blocks.choose',
  1,
  ([s], [offset, size]) => {
    const first = e.add(e.mul(e.coord(-2), size), offset)
    const last = e.add(first, e.sub(size, 1))
    const key = e.mul(e.coord(-1), size)
    const own = e.ge(e.add(key, e.sub(size, 1)), first)
    return e.select(e.gt(key, last), -Infinity, e.select(own, Infinity, s))
  },
  2,
)
const CHOSEN = program('topk_blocks.chosen', 1, ([s]) => e.gt(s, 0))
const SEEN = program('topk_blocks.seen', 1, ([s]) => e.cast('float32', e.gt(s, -Infinity)))

/** Options of `topkBlocks`. */
export interface TopkBlocksOptions {
  /** Queries and keys per block, a multiple of 16; default 64. */
  blockSize?: number
  /** How many blocks of keys each block of queries keeps. */
  keep: number
  /** The causality of the attention that will use the mask: blocks out of sight are not chosen, the diagonal always is. */
  isCausal?: boolean | 'none' | 'top-left' | 'bottom-right'
}

/**
 * A block mask chosen from the input: for each block of queries the `keep` blocks of keys with the largest products of
 * mean query and mean key (compare Lu et al. 2025, who choose for each query by itself). It is made on the device, and
 * the choice is not differentiated.
 *
 * @param q (B, H, T, D)
 * @param k (B, Hk, S, D), Hk a divisor of H.
 * @throws ShapeError, DTypeError for other operands; ValueError unless keep ≥ 1 and blockSize is a multiple of 16.
 * @example
 * const [q, k] = [randn([1, 2, 256, 8]), randn([1, 2, 256, 8])]
 * const blockMask = topkBlocks(q, k, { blockSize: 32, keep: 3, isCausal: true })
 * blockMask.kvIndices.shape // → 1,2,8,3
 * scaledDotProductAttention(q, k, k, { blockMask, isCausal: true }).shape // → 1,2,256,8
 */
export function topkBlocks(q: Tensor, k: Tensor, options: TopkBlocksOptions): BlockMask {
  const {
    blockSize = 64,
    keep,
    isCausal = false,
  } = expectOptions('topk_blocks', options, { blockSize: 1, keep: 1, isCausal: 1 })
  const op = 'topk_blocks'
  checkSize(op, blockSize)
  if (!Number.isInteger(keep) || keep < 1) throw new ValueError(`${op}: keep must be at least 1, got ${keep}`)
  for (const t of [q, k]) expectFloat(op, t.dtype)
  if (
    q.rank !== 4 ||
    k.rank !== 4 ||
    q.shape[0] !== k.shape[0] ||
    q.shape[3] !== k.shape[3] ||
    q.shape[1] % k.shape[1] !== 0
  ) {
    throw new ShapeError(
      `${op}: q ${show(q.shape)} and k ${show(k.shape)} do not fit; expected (B, H, T, D) and (B, Hk, S, D), Hk a divisor of H`,
    )
  }
  const [b, h, t, d] = q.shape
  const [hk, s] = [k.shape[1], k.shape[2]]
  return build(() => {
    const [queries, keys] = [means(q.detach(), blockSize), means(k.detach(), blockSize)]
    const [nq, nk] = [queries.shape[2], keys.shape[2]]
    // The query heads of one key head as further rows.
    const rows = reshapeView(queries, [b, hk, (h / hk) * nq, d])
    let scores = reshapeView(matmul(rows, transposeView(keys, 2, 3)), [b, h, nq, nk])
    if (isCausal !== false && isCausal !== 'none')
      scores = elementwise(CHOOSE, [scores], [isCausal === 'bottom-right' ? s - t : 0, blockSize])
    const most = Math.min(keep, nk)
    const [values, indices] = topk(scores, most)
    const none = zeros([b, h, nq, nk], { device: q.backend })
    const visible = elementwise(CHOSEN, [scatterAdd(none, 3, indices, elementwise(SEEN, [values]))])
    return new BlockMask(visible, blockSize, most, most / Math.max(1, nk))
  })
}

/** Means over blocks of positions, (B, H, T, D) → (B, H, ⌈T / blockSize⌉, D); the last may be of fewer. */
function means(x: Tensor, blockSize: number): Tensor {
  const [b, h, t, d] = x.shape
  const whole = Math.floor(t / blockSize)
  const parts: Tensor[] = []
  if (whole > 0 || t === 0) {
    const blocks = narrow(x, 2, 0, whole * blockSize)
    parts.push(mean(reshapeView(blocks, [b, h, whole, blockSize, d]), 3))
  }
  if (whole * blockSize < t)
    parts.push(mean(narrow(x, 2, whole * blockSize, t - whole * blockSize), 2, { keepdim: true }))
  return parts.length === 1 ? parts[0] : cat(parts, 2)
}
