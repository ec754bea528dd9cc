import { describe, expect, test } from 'vitest'
import {
  dataSync,
  deltaRule,
  expr as e,
  gatedLinearAttention,
  grad,
  gradcheck,
  type LinearForm,
  linearAttention,
  manualSeed,
  matmul,
  program,
  rand,
  randn,
  reference,
  retention,
  type Tensor,
  tensor,
  tril,
} from '../src/index.ts'

/**
 * Linear attention and its relatives in float64, forward and gradients, in every form, against recurrences written out
 * in plain loops with their backward pass by hand.
 *
 * Float64 sums of up to 1000 · 128 terms of order 1, with states that grow to some 10³, keep twelve digits of the
 * largest element.
 */
const TOLERANCE = 1e-11

const FLOAT64 = { dtype: 'float64', device: reference } as const
const FORMS: readonly (LinearForm | undefined)[] = ['quadratic', 'chunked', 'recurrent', undefined]

function expectClose(got: Tensor, want: Float64Array, what: string): void {
  const values = dataSync(got)
  expect(values.length, what).toBe(want.length)
  const largest = want.reduce((m, x) => Math.max(m, Math.abs(x)), 1)
  let worst = 0
  for (let i = 0; i < want.length; i++) {
    const off = Math.abs((values[i] as number) - (want[i] as number))
    worst = Math.max(worst, off)
  }
  expect(worst / largest, what).toBeLessThan(TOLERANCE)
}

interface Steps {
  /** (BH, T, D), (BH, T, D), (BH, T, Dv) */
  q: Float64Array
  k: Float64Array
  v: Float64Array
  /** α (BH, T, D) */
  alpha: Float64Array
  /** (BH, T); none: no delta rule. */
  beta: Float64Array | null
  /** (BH, D, Dv) */
  state: Float64Array
  dout: Float64Array
  dstate: Float64Array
  sizes: readonly [heads: number, steps: number, d: number, dv: number]
}

/**
 * P = diag(α) S, u = v or β (v − k P), S = P + kᵀu, out = q S, and the gradients of Σ out · dout + S_T · dstate, step
 * by step.
 */
function written({ q, k, v, alpha, beta, state, dout, dstate, sizes: [heads, T, D, V] }: Steps) {
  const like = (x: Float64Array): Float64Array => new Float64Array(x.length)
  const out = like(dout)
  const last = like(state)
  const g = {
    q: like(q),
    k: like(k),
    v: like(v),
    log: like(alpha),
    beta: new Float64Array(heads * T),
    state: like(state),
  }
  const at = (x: Float64Array, i: number): number => x[i] as number
  const plus = (x: Float64Array, i: number, y: number): void => {
    x[i] = at(x, i) + y
  }
  for (let h = 0; h < heads; h++) {
    const states = [state.slice(h * D * V, (h + 1) * D * V)]
    const [decayed, rest, writes]: Float64Array[][] = [[], [], []]
    for (let t = 0; t < T; t++) {
      const [row, vrow] = [(h * T + t) * D, (h * T + t) * V]
      const P = states[t]!.map((x, i) => x * at(alpha, row + Math.floor(i / V)))
      const r = v.slice(vrow, vrow + V)
      if (beta)
        for (let d = 0; d < D; d++) for (let j = 0; j < V; j++) plus(r, j, -at(k, row + d) * at(P, d * V + j))
      const u = beta ? r.map((x) => x * at(beta, h * T + t)) : r
      const S = P.map((x, i) => x + at(k, row + Math.floor(i / V)) * at(u, i % V))
      for (let d = 0; d < D; d++)
        for (let j = 0; j < V; j++) plus(out, vrow + j, at(q, row + d) * at(S, d * V + j))
      states.push(S)
      decayed.push(P)
      rest.push(r)
      writes.push(u)
    }
    last.set(states[T]!, h * D * V)
    const dS = dstate.slice(h * D * V, (h + 1) * D * V)
    for (let t = T - 1; t >= 0; t--) {
      const [row, vrow] = [(h * T + t) * D, (h * T + t) * V]
      const [S, P, r, u] = [states[t + 1]!, decayed[t]!, rest[t]!, writes[t]!]
      const du = new Float64Array(V)
      for (let d = 0; d < D; d++) {
        for (let j = 0; j < V; j++) {
          const i = d * V + j
          plus(dS, i, at(q, row + d) * at(dout, vrow + j))
          plus(g.q, row + d, at(S, i) * at(dout, vrow + j))
          plus(g.k, row + d, at(dS, i) * at(u, j))
          plus(du, j, at(dS, i) * at(k, row + d))
        }
      }
      const rate = beta ? at(beta, h * T + t) : 1
      for (let j = 0; j < V; j++) {
        plus(g.beta, h * T + t, at(du, j) * at(r, j))
        plus(g.v, vrow + j, rate * at(du, j))
      }
      for (let d = 0; d < D; d++) {
        for (let j = 0; j < V; j++) {
          const i = d * V + j
          if (beta) {
            plus(dS, i, -at(k, row + d) * rate * at(du, j))
            plus(g.k, row + d, -at(P, i) * rate * at(du, j))
          }
          plus(g.log, row + d, at(dS, i) * at(P, i))
          dS[i] = at(dS, i) * at(alpha, row + d)
        }
      }
    }
    g.state.set(dS, h * D * V)
  }
  return { out, last, g }
}

type Kind = 'none' | 'scalar' | 'vector' | 'delta' | 'gated delta'

interface Sizes {
  T: number
  D: number
  Dv?: number
  B?: number
  H?: number
  /** Largest −log α of a step. */
  strength?: number
}

const leaf = (shape: readonly number[], scale: number): Tensor => {
  const t = randn(shape, FLOAT64).mul(scale)
  const x = tensor(dataSync(t), shape, FLOAT64)
  x.requiresGrad = true
  return x
}

function check(kind: Kind, { T, D, Dv = D, B = 1, H = 1, strength = 1 }: Sizes, forms = FORMS): void {
  const delta = kind === 'delta' || kind === 'gated delta'
  const q = leaf([B, H, T, D], 1)
  const k = leaf([B, H, T, D], delta ? 0.7 / Math.sqrt(D) : 1)
  const v = leaf([B, H, T, Dv], 1)
  const state = leaf([B, H, D, Dv], 1)
  const gates = kind === 'none' || kind === 'delta' ? 0 : kind === 'vector' ? D : 1
  const uniform = (shape: readonly number[]): Tensor => tensor(dataSync(rand(shape, FLOAT64)), shape, FLOAT64)
  const log = tensor(
    dataSync(uniform([B, H, T, Math.max(gates, 1)]).mul(gates === 0 ? 0 : -strength)),
    [B, H, T, Math.max(gates, 1)],
    FLOAT64,
  )
  log.requiresGrad = gates > 0
  const beta = uniform([B, H, T])
  beta.requiresGrad = true
  const [dout, dstate] = [randn([B, H, T, Dv], FLOAT64), randn([B, H, D, Dv], FLOAT64)]
  const flat = (t: Tensor): Float64Array => Float64Array.from(dataSync(t))
  const want = written({
    q: flat(q),
    k: flat(k),
    v: flat(v),
    alpha: flat(log.exp().expand([B, H, T, D])),
    beta: delta ? flat(beta) : null,
    state: flat(state),
    dout: flat(dout),
    dstate: flat(dstate),
    sizes: [B * H, T, D, Dv],
  })
  // One gate for all rows of the state: its gradient is their sum.
  const dlog = gates === 1 ? flat(tensor(want.g.log, [B, H, T, D], FLOAT64).sum(-1)) : want.g.log
  for (const form of forms) {
    const options = { initialState: state, returnState: true, ...(form && { form }) } as const
    const [out, last] = delta
      ? deltaRule(q, k, v, beta, { ...options, logDecay: gates > 0 ? log : null })
      : gatedLinearAttention(q, k, v, gates > 0 ? log : null, options)
    const what = `${kind} ${form} T ${T} D ${D}`
    expectClose(out, want.out, `${what}: out`)
    expectClose(last, want.last, `${what}: state`)
    const leaves = { q, k, v, state, ...(gates > 0 && { log }), ...(delta && { beta }) }
    const grads = grad([out, last], Object.values(leaves), { gradOutputs: [dout, dstate] })
    Object.keys(leaves).forEach((name, i) => {
      const exact = name === 'log' ? dlog : want.g[name as 'q' | 'k' | 'v' | 'beta' | 'state']
      expectClose(grads[i] as Tensor, exact, `${what}: gradient of ${name}`)
    })
  }
}

const KINDS: readonly Kind[] = ['none', 'scalar', 'vector', 'delta', 'gated delta']

describe.each(KINDS)('%s', (kind) => {
  test.each<Sizes>([
    { T: 1, D: 16 },
    { T: 63, D: 16, Dv: 5, B: 2, H: 2 },
    { T: 127, D: 60, Dv: 20 },
    { T: 130, D: 3, H: 2 },
  ])('%o: every form is the recurrence, with its gradients', (sizes) => {
    manualSeed(sizes.T)
    check(kind, sizes)
  })

  test.each<Sizes>([
    { T: 500, D: 64, Dv: 16 },
    { T: 1000, D: 16 },
    { T: 200, D: 128, Dv: 8 },
  ])('%o: chunks', (sizes) => {
    manualSeed(sizes.T)
    check(kind, sizes, ['chunked'])
  })

  test('gradients agree with finite differences', () => {
    manualSeed(4)
    const delta = kind === 'delta' || kind === 'gated delta'
    const shape = [1, 2, 5, 3]
    const log = rand(kind === 'vector' ? shape : [1, 2, 5]).log()
    const inputs = [
      randn(shape),
      randn(shape).mul(0.5),
      randn([1, 2, 5, 2]),
      log,
      rand([1, 2, 5]),
      randn([1, 2, 3, 2]),
    ]
    const run = ([q, k, v, g, beta, initialState]: readonly Tensor[], form: LinearForm): Tensor[] => {
      const options = { initialState: initialState as Tensor, returnState: true, form, chunkSize: 2 } as const
      const decay = kind === 'none' || kind === 'delta' ? null : (g as Tensor)
      return delta
        ? deltaRule(q!, k!, v!, beta!, { ...options, logDecay: decay })
        : gatedLinearAttention(q!, k!, v!, decay, options)
    }
    for (const form of ['quadratic', 'chunked', 'recurrent'] as const)
      gradcheck((...xs) => run(xs, form), inputs)
  })
})

test.each(['scalar', 'vector', 'gated delta'] as const)('strong %s gates stay finite', (kind) => {
  // α down to e⁻⁶⁰: e^g of a chunk underflows and e^−g would overflow.
  manualSeed(9)
  check(kind, { T: 100, D: 6, strength: 60 })
})

test('a sequence in parts, each from the state of the one before, is the sequence', () => {
  manualSeed(5)
  const [q, k, v] = [0, 1, 2].map(() => randn([2, 2, 150, 4], FLOAT64)) as [Tensor, Tensor, Tensor]
  const [g, beta] = [rand([2, 2, 150], FLOAT64).log(), rand([2, 2, 150], FLOAT64)]
  const cuts = [0, 70, 71, 150]
  type Run = (take: (x: Tensor) => Tensor, initialState: Tensor | null) => [Tensor, Tensor]
  const runs: Run[] = [
    (f, initialState) =>
      linearAttention(f(q), f(k), f(v), { isCausal: true, initialState, returnState: true }),
    (f, initialState) => retention(f(q), f(k), f(v), { initialState, returnState: true }),
    (f, initialState) =>
      gatedLinearAttention(f(q).exp(), f(k).exp(), f(v), f(g), {
        initialState,
        returnState: true,
        normalize: true,
      }),
    (f, initialState) =>
      deltaRule(f(q), f(k).mul(0.3), f(v), f(beta), { logDecay: f(g), initialState, returnState: true }),
  ]
  for (const run of runs) {
    const whole = run((x) => x, null)
    let state: Tensor | null = null
    for (let i = 0; i < 3; i++) {
      const take = (x: Tensor): Tensor => x.narrow(2, cuts[i]!, cuts[i + 1]! - cuts[i]!)
      const [out, next] = run(take, state)
      expectClose(out, Float64Array.from(dataSync(take(whole[0]))), `part ${i}`)
      state = next
    }
    expectClose(state as Tensor, Float64Array.from(dataSync(whole[1])), 'the last state')
  }
})

test('retention is its decay matrix, written out', () => {
  manualSeed(6)
  const [q, k, v] = [0, 1, 2].map(() => randn([1, 3, 70, 8], FLOAT64)) as [Tensor, Tensor, Tensor]
  const got = retention(q, k, v, { scale: 0.5 })
  const [x, y, z] = [q, k, v].map((t) => Float64Array.from(dataSync(t))) as Float64Array[]
  const want = new Float64Array(3 * 70 * 8)
  for (let h = 0; h < 3; h++)
    for (let i = 0; i < 70; i++)
      for (let j = 0; j <= i; j++) {
        let s = 0
        for (let d = 0; d < 8; d++) s += x![(h * 70 + i) * 8 + d]! * y![(h * 70 + j) * 8 + d]!
        const weight = 0.5 * s * (1 - 2 ** (-5 - h)) ** (i - j)
        for (let d = 0; d < 8; d++) want[(h * 70 + i) * 8 + d]! += weight * z![(h * 70 + j) * 8 + d]!
      }
  expectClose(got, want, 'retention')
})

describe('linear attention', () => {
  const square = program('square_map', 1, ([x]) => e.mul(x, x))
  const maps = {
    elu: (x: Tensor) => x.elu().add(1),
    relu: (x: Tensor) => x.relu(),
    exp: (x: Tensor) => x.exp(),
    identity: (x: Tensor) => x,
  }
  const cases: [string, Parameters<typeof linearAttention>[3] & object, (x: Tensor) => Tensor][] = [
    ...(Object.keys(maps) as (keyof typeof maps)[]).map(
      (name) => [name, { featureMap: name }, maps[name]] as [string, object, (x: Tensor) => Tensor],
    ),
    ['a program', { featureMap: square }, (x) => x.square()],
    ['a function', { featureMap: (x: Tensor) => x.square().add(1) }, (x) => x.square().add(1)],
  ]
  describe.each(cases)('φ: %s', (_, options, phi) => {
    test.each([
      [true, 130, 130],
      [true, 1, 1],
      [false, 63, 127],
      [false, 127, 20],
    ])(
      'causal: %s, %i queries, %i keys: every form is the quadratic one, with its gradients',
      (isCausal, T, S) => {
        manualSeed(T)
        const q = leaf([1, 2, T, 6], 1)
        const k = leaf([1, 2, S, 6], 1)
        const v = leaf([1, 2, S, 3], 1)
        const dout = randn([1, 2, T, 3], FLOAT64)
        const scores = matmul(phi(q), phi(k).transpose(2, 3))
        const s = isCausal ? tril(scores) : scores
        // The identity's sums may be near zero: an eps away from all of them.
        const eps = 1e4
        const want = matmul(s, v).div(s.sum(-1, { keepdim: true }).add(eps))
        const wants = [want, ...grad(want, [q, k, v], { gradOutputs: [dout] })]
        for (const form of FORMS) {
          const out = linearAttention(q, k, v, { ...options, isCausal, eps, ...(form && { form }) })
          const got = [out, ...grad(out, [q, k, v], { gradOutputs: [dout] })]
          got.forEach((t, i) => expectClose(t.mul(eps), flat(wants[i]!.mul(eps)), `${form} ${i}`))
        }
      },
    )
  })
  const flat = (t: Tensor): Float64Array => Float64Array.from(dataSync(t))

  test('the state of all keys serves queries that come later', () => {
    manualSeed(2)
    const [q, k, v] = [
      randn([1, 2, 4, 3], FLOAT64),
      randn([1, 2, 9, 3], FLOAT64),
      randn([1, 2, 9, 5], FLOAT64),
    ]
    const half = (x: Tensor, i: number): Tensor => x.narrow(2, 4 * i, i ? 5 : 4)
    const [, initialState] = linearAttention(q, half(k, 0), half(v, 0), { returnState: true })
    for (const form of [undefined, 'quadratic'] as const) {
      const out = linearAttention(q, half(k, 1), half(v, 1), { initialState, ...(form && { form }) })
      expectClose(out, flat(linearAttention(q, k, v)), `${form}`)
    }
  })
})

test('keys that are all alike: the inverse of their triangle stays exact in float32', () => {
  // Powers of the triangle hold binomials up to 10¹⁸, the inverse only ±1.
  const float32 = { device: reference }
  const k = tensor(new Float32Array(128).fill(Math.SQRT1_2), [1, 1, 64, 2], float32)
  const v = tensor(
    Float32Array.from({ length: 64 }, (_, i) => i),
    [1, 1, 64, 1],
    float32,
  )
  const one = tensor(new Float32Array(64).fill(1), [1, 1, 64], float32)
  // With β = 1 each step recalls exactly what it wrote: its own value.
  expect([...dataSync(deltaRule(k, k, v, one))].map((x) => Math.round(x * 1e4) / 1e4)).toEqual(
    Array.from({ length: 64 }, (_, i) => i),
  )
})

describe('errors', () => {
  const q = randn([1, 2, 5, 4])
  const bad: [string, () => unknown, RegExp][] = [
    [
      'gates',
      () => gatedLinearAttention(q, q, q, randn([1, 2, 5, 3])),
      /logDecay \[1, 2, 5, 3\] must be .B, H, T./,
    ],
    ['rates', () => deltaRule(q, q, q, q), /beta \[1, 2, 5, 4\] must be \(B, H, T\) = \[1, 2, 5\]/],
    [
      'steps',
      () => retention(q, q.narrow(2, 0, 4), q.narrow(2, 0, 4)),
      /as many keys as queries, got 4 and 5/,
    ],
    ['decays', () => retention(q, q, q, { decays: [0.5] }), /decays must be 2 numbers in \(0, 1\]/],
    [
      'state',
      () => retention(q, q, q, { initialState: q }),
      /initial state \[1, 2, 5, 4\] must be .* \[1, 2, 4, 4\]/,
    ],
    ['chunk', () => retention(q, q, q, { chunkSize: 48 }), /chunkSize must be a power of two, got 48/],
    ['form', () => retention(q, q, q, { form: 'fast' as LinearForm }), /form must be .*, got 'fast'/],
    [
      'map',
      () => linearAttention(q, q, q, { featureMap: 'tanh' as 'elu' }),
      /'tanh' is not one of elu, relu/,
    ],
  ]
  test.each(bad)('%s', (_, run, message) => expect(run).toThrow(message))
})
