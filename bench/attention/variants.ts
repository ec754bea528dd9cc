/** The ways to attend that are measured. All are causal; q, k and v are (B, H, T, D). */
import {
  type AttentionOptions,
  createBlockMask,
  deltaRule,
  gatedLinearAttention,
  linearAttention,
  matmul,
  ones,
  rand,
  retention,
  retentionDecays,
  scaledDotProductAttention,
  scope,
  softmax,
  type Tensor,
  tensor,
  topkBlocks,
} from '@tilegrad/core'
import { alibiSlopes } from '@tilegrad/nn'
import { denseAttention, denseLinearAttention, recurrence } from './definitions.ts'

export type Attend = (q: Tensor, k: Tensor, v: Tensor, ...more: Tensor[]) => Tensor

export interface Prepared {
  readonly attend: Attend
  readonly held?: { dispose(): void }
}

export interface Variant {
  readonly name: string
  /** The operator whose path is reported; null where attention is written out. */
  readonly op: string | null
  /** Inputs beside q, k and v, for shape (B, H, T, D). */
  more?(b: number, h: number, t: number, d: number): Tensor[]
  /** Makes once for a shape what is then run, and what that holds. */
  prepare(h: number, t: number): Prepared
  /** The same in plain operators, with a T × T matrix or step by step. */
  readonly defined: Attend
}

export const WINDOW = 256
export const GLOBALS = 64
export const BLOCK = 64
/** Blocks of keys that each block of queries chooses. */
export const KEEP = 8

const isCausal = true
const block = (position: number): number => Math.floor(position / BLOCK)
const scaleOf = (q: Tensor): number => 1 / Math.sqrt(q.shape[3])

/** Each block of queries sees itself and others before it, spread evenly: a tenth of those that causality allows. */
export function tenth(q: number, k: number): boolean {
  if (k >= q) return k === q
  const others = Math.max(1, Math.round((q + 1) / 10)) - 1
  return Math.floor(((k + 1) * others) / q) > Math.floor((k * others) / q)
}

const OP = 'scaled_dot_product_attention'
const sdpa =
  (options: AttentionOptions = {}): Attend =>
  (q, k, v) =>
    scaledDotProductAttention(q, k, v, { isCausal, ...options })
const dense =
  (visible: (i: number, j: number, head: number) => boolean): Attend =>
  (q, k, v) =>
    denseAttention(q, k, v, (i, j, head) => j <= i && visible(i, j, head))
const everything = dense(() => true)
/** Logs of decays between 0.9 and 1. */
const decays = (...shape: number[]): Tensor => scope(() => rand(shape).mul(0.1).add(0.9).log())
const unit = (x: Tensor): Tensor => x.div(x.square().sum(-1, { keepdim: true }).sqrt())
const chosen = (q: Tensor, k: Tensor) => topkBlocks(q, k, { blockSize: BLOCK, keep: KEEP, isCausal })

export const variants: readonly Variant[] = [
  { name: 'softmax', op: OP, prepare: () => ({ attend: sdpa() }), defined: everything },
  {
    name: 'softmax written out',
    op: null,
    prepare(_, t) {
      const ahead = scope(() => ones([t, t]).tril().eq(0))
      const attend: Attend = (q, k, v) => {
        const scores = matmul(q, k.transpose(-2, -1)).mul(scaleOf(q))
        return matmul(softmax(scores.maskedFill(ahead, Number.NEGATIVE_INFINITY), -1), v)
      }
      return { attend, held: ahead }
    },
    defined: everything,
  },
  {
    name: 'alibi',
    op: OP,
    prepare(h) {
      const alibi = tensor(alibiSlopes(h))
      return { attend: sdpa({ alibi }), held: alibi }
    },
    defined(q, k, v) {
      const slopes = alibiSlopes(q.shape[1])
      const bias = (i: number, j: number, head: number): number => -slopes[head] * Math.abs(i - j)
      return denseAttention(q, k, v, (i, j) => j <= i, bias)
    },
  },
  {
    name: 'window',
    op: OP,
    prepare: () => ({ attend: sdpa({ window: WINDOW }) }),
    defined: dense((i, j) => j > i - WINDOW),
  },
  {
    name: 'window + globals',
    op: OP,
    prepare: () => ({ attend: sdpa({ window: WINDOW, globalTokens: GLOBALS }) }),
    defined: dense((i, j) => j > i - WINDOW || j < GLOBALS || i < GLOBALS),
  },
  {
    name: 'blocks',
    op: OP,
    prepare(_, t) {
      const blockMask = createBlockMask(tenth, { blockSize: BLOCK, qLen: t, kvLen: t })
      return { attend: sdpa({ blockMask }), held: blockMask }
    },
    defined: dense((i, j) => tenth(block(i), block(j))),
  },
  {
    name: 'dynamic',
    op: OP,
    prepare: () => ({
      attend: (q, k, v) => scaledDotProductAttention(q, k, v, { isCausal, blockMask: chosen(q, k) }),
    }),
    defined(q, k, v) {
      const { visible } = chosen(q, k)
      const [, , nq, nk] = visible.shape
      const seen = visible.dataSync()
      return dense((i, j, head) => seen[(head * nq + block(i)) * nk + block(j)] !== 0)(q, k, v)
    },
  },
  {
    name: 'linear',
    op: 'linear_attention',
    prepare: () => ({ attend: (q, k, v) => linearAttention(q, k, v, { isCausal }) }),
    defined: denseLinearAttention,
  },
  {
    name: 'linear written out',
    op: null,
    prepare: () => ({ attend: (q, k, v) => linearAttention(q, k, v, { isCausal, form: 'chunked' }) }),
    defined: denseLinearAttention,
  },
  {
    name: 'retention',
    op: 'gated_linear_attention',
    prepare: () => ({ attend: (q, k, v) => retention(q, k, v, { scale: scaleOf(q) }) }),
    defined(q, k, v) {
      const [b, h, t] = q.shape
      const logs = tensor(retentionDecays(h).map(Math.log), [1, h, 1, 1], {
        device: q.backend,
        dtype: q.dtype,
      })
      return recurrence(q.mul(scaleOf(q)), k, v, { logDecay: logs.expand([b, h, t, 1]) })
    },
  },
  {
    name: 'scalar gates',
    op: 'gated_linear_attention',
    more: (b, h, t) => [decays(b, h, t)],
    prepare: () => ({ attend: (q, k, v, log) => gatedLinearAttention(q, k, v, log, { scale: scaleOf(q) }) }),
    defined: (q, k, v, log) => recurrence(q.mul(scaleOf(q)), k, v, { logDecay: log.unsqueeze(-1) }),
  },
  {
    name: 'vector gates',
    op: 'gated_linear_attention',
    more: (b, h, t, d) => [decays(b, h, t, d)],
    prepare: () => ({
      attend: (q, k, v, logs) => gatedLinearAttention(q, k, v, logs, { scale: scaleOf(q) }),
    }),
    defined: (q, k, v, logs) => recurrence(q.mul(scaleOf(q)), k, v, { logDecay: logs }),
  },
  {
    name: 'delta rule',
    op: 'delta_rule',
    more: (b, h, t) => [rand([b, h, t]), decays(b, h, t)],
    prepare: () => ({
      attend: (q, k, v, beta, logDecay) => deltaRule(q, unit(k), v, beta, { logDecay, scale: scaleOf(q) }),
    }),
    defined: (q, k, v, beta, log) =>
      recurrence(q.mul(scaleOf(q)), unit(k), v, { beta, logDecay: log.unsqueeze(-1) }),
  },
]
