/** Softmax attention and its gradients written out in float64, pair by pair, for any rule of what is seen. */

export interface Sizes {
  readonly B: number
  readonly H: number
  readonly Hk: number
  readonly T: number
  readonly S: number
  readonly D: number
  readonly Dv: number
}

/** What happens to the pair of query i and key j in a head. */
export interface Rules {
  seen(b: number, h: number, i: number, j: number): boolean
  /** Added to the score. */
  bias?(b: number, h: number, i: number, j: number): number
  /** Dropout's factor of the weight. */
  keep?(b: number, h: number, i: number, j: number): number
}

type Floats = Float32Array | Float64Array

/** Of one type, so that the loops are compiled for it alone. */
const wide = (x: Floats): Float64Array => (x instanceof Float64Array ? x : Float64Array.from(x))

/** out, dq, dk, dv; all dense, scores scaled by 1 / √D. */
export function written(
  { B, H, Hk, T, S, D, Dv }: Sizes,
  data: readonly [Floats, Floats, Floats, Floats],
  { seen, bias = () => 0, keep = () => 1 }: Rules,
): [out: Float64Array, dq: Float64Array, dk: Float64Array, dv: Float64Array] {
  const [q, k, v, dout] = [wide(data[0]), wide(data[1]), wide(data[2]), wide(data[3])]
  const dot = (x: Float64Array, at: number, y: Float64Array, from: number, n: number): number => {
    let sum = 0
    for (let d = 0; d < n; d++) sum += (x[at + d] as number) * (y[from + d] as number)
    return sum
  }
  const add = (
    x: Float64Array,
    at: number,
    factor: number,
    y: Float64Array,
    from: number,
    n: number,
  ): void => {
    for (let d = 0; d < n; d++) x[at + d] = (x[at + d] as number) + factor * (y[from + d] as number)
  }
  const out = new Float64Array(B * H * T * Dv)
  const dq = new Float64Array(B * H * T * D)
  const dk = new Float64Array(B * Hk * S * D)
  const dv = new Float64Array(B * Hk * S * Dv)
  // Of the keys that a query sees: which, the weight, its factor, and its gradient.
  const at = new Int32Array(S)
  const [p, factor, dp] = [new Float64Array(S), new Float64Array(S), new Float64Array(S)]
  for (let b = 0; b < B; b++) {
    for (let h = 0; h < H; h++) {
      const head = b * Hk + Math.floor((h * Hk) / H)
      for (let i = 0; i < T; i++) {
        const row = (b * H + h) * T + i
        let pairs = 0
        let top = -Infinity
        for (let j = 0; j < S; j++) {
          if (!seen(b, h, i, j)) continue
          const score = dot(q, row * D, k, (head * S + j) * D, D) / Math.sqrt(D) + bias(b, h, i, j)
          at[pairs] = j
          p[pairs] = score
          factor[pairs++] = keep(b, h, i, j)
          top = Math.max(top, score)
        }
        if (top === -Infinity) continue
        let total = 0
        for (let n = 0; n < pairs; n++) {
          p[n] = Math.exp((p[n] as number) - top)
          total += p[n] as number
        }
        let delta = 0
        for (let n = 0; n < pairs; n++) {
          const value = (head * S + (at[n] as number)) * Dv
          const weight = (p[n] as number) / total
          const kept = weight * (factor[n] as number)
          p[n] = weight
          dp[n] = (factor[n] as number) * dot(dout, row * Dv, v, value, Dv)
          delta += weight * (dp[n] as number)
          add(out, row * Dv, kept, v, value, Dv)
          add(dv, value, kept, dout, row * Dv, Dv)
        }
        for (let n = 0; n < pairs; n++) {
          const ds = ((p[n] as number) * ((dp[n] as number) - delta)) / Math.sqrt(D)
          const key = (head * S + (at[n] as number)) * D
          add(dq, row * D, ds, k, key, D)
          add(dk, key, ds, q, row * D, D)
        }
      }
    }
  }
  return [out, dq, dk, dv]
}
