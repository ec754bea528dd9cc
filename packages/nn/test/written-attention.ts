import type { Tensor } from '@tilegrad/core'
import type { Linear, MultiHeadAttention, RMSNorm } from '@tilegrad/nn'
import { values } from './helpers.ts'

/** What the layer was told, and what it was called with, in numbers. */
export interface Written {
  /** Angle per position of each pair. */
  frequencies?: readonly number[]
  interleaved?: boolean
  slopes?: readonly number[]
  window?: number
  scale?: number
  causal?: boolean
  /** May query t of sequence b see key s? */
  sees?: (b: number, t: number, s: number) => boolean
}

type Row = number[]

const rows = (t: Tensor): Row[][] => {
  const [b, n, d] = t.shape
  const flat = values(t)
  return Array.from({ length: b }, (_, i) =>
    Array.from({ length: n }, (_, j) => flat.slice((i * n + j) * d, (i * n + j + 1) * d)),
  )
}

const project = (x: Row, { weight, bias }: Pick<Linear, 'weight' | 'bias'>): Row => {
  const [w, n] = [values(weight), x.length]
  return Array.from({ length: weight.shape[0] }, (_, o) =>
    x.reduce((sum, value, i) => sum + value * w[o * n + i], bias ? values(bias)[o] : 0),
  )
}

function normed(head: Row, norm: RMSNorm | null): Row {
  if (!norm) return head
  const gain = values(norm.weight)
  const size = Math.sqrt(head.reduce((sum, v) => sum + v * v, 0) / head.length + (norm.eps as number))
  return head.map((v, i) => (v / size) * gain[i])
}

function turned(head: Row, position: number, { frequencies = [], interleaved }: Written): Row {
  const out = [...head]
  frequencies.forEach((f, i) => {
    const [a, b] = interleaved ? [2 * i, 2 * i + 1] : [i, i + frequencies.length]
    const [c, s] = [Math.cos(position * f), Math.sin(position * f)]
    out[a] = head[a] * c - head[b] * s
    out[b] = head[b] * c + head[a] * s
  })
  return out
}

/** A layer of separate projections, in plain numbers: one query, one head, one key after the other. */
export function writtenAttention(
  layer: MultiHeadAttention,
  x: Tensor,
  context: Tensor,
  told: Written = {},
): number[] {
  const { numHeads, numKvHeads, headDim: d } = layer
  const { scale = 1 / Math.sqrt(d), slopes, window = 0, causal = false, sees = () => true } = told
  const head = (row: Row, h: number): Row => row.slice(h * d, (h + 1) * d)
  const heads = (row: Row, position: number, norm: RMSNorm | null, n: number): Row[] =>
    Array.from({ length: n }, (_, h) => turned(normed(head(row, h), norm), position, told))
  return rows(x).flatMap((sequence, b) => {
    const source = rows(context)[b]
    const keys = source.map((row, s) =>
      heads(project(row, layer.k_proj as Linear), s, layer.k_norm, numKvHeads),
    )
    const vals = source.map((row) => project(row, layer.v_proj as Linear))
    return sequence.flatMap((row, t) => {
      const queries = heads(project(row, layer.q_proj as Linear), t, layer.q_norm, numHeads)
      const mixed = queries.flatMap((q, h) => {
        const kv = Math.floor((h * numKvHeads) / numHeads)
        const weights = keys.map((key, s) => {
          if ((causal && s > t) || (window > 0 && s <= t - window) || !sees(b, t, s)) return 0
          const product = q.reduce((sum, v, i) => sum + v * key[kv][i], 0)
          return Math.exp(product * scale - (slopes ? slopes[h] * Math.abs(t - s) : 0))
        })
        const total = weights.reduce((sum, w) => sum + w, 0)
        return Array.from({ length: d }, (_, i) =>
          total === 0 ? 0 : weights.reduce((sum, w, s) => sum + w * head(vals[s], kv)[i], 0) / total,
        )
      })
      return project(mixed, layer.outProj)
    })
  })
}
