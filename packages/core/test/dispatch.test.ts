import { beforeEach, describe, expect, test } from 'vitest'
import {
  apply,
  type Backend,
  type DType,
  dataSync,
  type FusedKernels,
  type GradientAttrs,
  grad,
  gradcheck,
  type KernelOf,
  layerNorm,
  type Op,
  profile,
  reference,
  softmax,
  type Tensor,
  tensor,
  ValueError,
  type View,
} from '../src/index.ts'

/** A backend of the reference's memory with fused kernels for `twice_exp`: y = scale · eˣ. */
interface Attrs {
  scale: number
}
declare module '../src/dispatch/kernels.ts' {
  interface FusedKernels {
    readonly scaled_exp?: KernelOf<Attrs>
    readonly scaled_expBackward?: KernelOf<GradientAttrs<Attrs>>
  }
}
const dataOf = (v: View): Float32Array => (v.buffer as { data: Float32Array }).data
const log: string[] = []
const forward: KernelOf<Attrs> = {
  supports: (_, { scale }) => scale !== 13,
  run([y, saved], [x], { scale }) {
    log.push('forward')
    for (let i = 0; i < y.shape[0]; i++) {
      dataOf(saved)[i] = Math.exp(dataOf(x)[x.offset + i * x.strides[0]])
      dataOf(y)[i] = scale * dataOf(saved)[i]
    }
  },
}
const backward: KernelOf<GradientAttrs<Attrs>> = {
  run([dx], [, , saved, dy, rest], { scale, needs, adds }) {
    log.push(`backward ${needs.join()}${adds ? ' adds' : ''}`)
    for (let i = 0; i < dx.shape[0]; i++) {
      const more = adds ? dataOf(rest)[rest.offset + i] : 0
      dataOf(dx)[i] = dataOf(dy)[dy.offset + i * dy.strides[0]] * scale * dataOf(saved)[i] + more
    }
  },
}
const OP: Op<Attrs> = {
  name: 'scaled_exp',
  kernel: (kernels) => kernels.scaled_exp,
  gradient: (kernels) => kernels.scaled_expBackward,
  validate: ([x]) => {
    if (x.rank !== 1) throw new Error('scaled_exp: rank 1 only')
  },
  infer: ([x]) => [
    { shape: x.shape, dtype: x.dtype },
    { shape: x.shape, dtype: x.dtype },
  ],
  compose: ([x], { scale }) => [x.exp().mul(scale)],
}
const backendWith = (kernels: FusedKernels): Backend => ({
  ...reference,
  name: 'fused',
  kernels: { ...reference.kernels, ...kernels },
})
const both = backendWith({ scaled_exp: forward, scaled_expBackward: backward })
const adding = backendWith({ scaled_exp: forward, scaled_expBackward: { ...backward, adds: true } })
const onlyForward = backendWith({ scaled_exp: forward })

const scaledExp = (x: Tensor, scale = 2): Tensor => apply(OP, [x], { scale })[0]
const make = (device: Backend): Tensor => tensor([0, 1, -1], { device, requiresGrad: true })
const want = [0, 1, -1].map((v) => 2 * Math.exp(v))

beforeEach(() => {
  log.length = 0
})

/** float32 exponentials on both sides: 1e-6 relative is a few roundings. */
function close(t: Tensor, expected: readonly number[]): void {
  const got = dataSync(t)
  expected.forEach((v, i) => expect(Math.abs(got[i] - v)).toBeLessThanOrEqual(1e-6 * Math.abs(v)))
}

describe('a composed operator', () => {
  test('runs as its composition where there is no kernel', () => {
    const { result, rows } = profile(() => scaledExp(make(reference)))
    close(result, want)
    expect(rows.map((r) => `${r.op} ${r.path} ${r.calls}`).sort()).toEqual([
      'exp primitive 1',
      'mul primitive 1',
      'scaled_exp composed 1',
    ])
  })

  test('runs as the fused kernel where there is one, forward and backward', () => {
    const x = make(both)
    const { result, rows } = profile(() => {
      const y = scaledExp(x)
      return [y.detach(), ...grad(y, [x], { gradOutputs: [tensor([1, 10, 100], { device: both })] })]
    })
    close(result[0], want)
    close(
      result[1],
      want.map((v, i) => v * 10 ** i),
    )
    expect(log).toEqual(['forward', 'backward true'])
    expect(rows.map((r) => `${r.op} ${r.path} ${r.backend} ${r.calls}`).sort()).toEqual([
      'scaled_exp fused fused 1',
      'scaled_expBackward fused fused 1',
    ])
  })

  test('differentiates the composition where the backward kernel is missing, and says so', () => {
    const x = make(onlyForward)
    const { result, rows } = profile(() => grad(scaledExp(x).sum(), [x]))
    close(result[0], want)
    expect(rows.find((r) => r.op === 'scaled_expBackward')?.path).toBe('composed')
  })

  test('does not use a kernel that declines, without silence in the profile', () => {
    const { rows } = profile(() => scaledExp(make(both), 13))
    expect(log).toEqual([])
    expect(rows.find((r) => r.op === 'scaled_exp')?.path).toBe('composed')
  })

  test('asks a kernel for no other dtypes than it lists, input by input, the last one for all that follow', () => {
    const asked: string[] = []
    const listed = (dtypes: readonly (readonly DType[])[]): Backend =>
      backendWith({
        scaled_exp: { ...forward, dtypes, supports: ([x]) => Boolean(asked.push(x.dtype)) },
      })
    const pathOf = (dtypes: readonly (readonly DType[])[], dtype: DType, more: readonly DType[] = []) => {
      const device = listed(dtypes)
      const inputs = [dtype, ...more].map((d) => tensor([0, 1, -1], { device, dtype: d }))
      const { rows } = profile(() => apply(OP, inputs, { scale: 2 }))
      return rows.find((r) => r.op === 'scaled_exp')?.path
    }
    expect(pathOf([['float32']], 'float64')).toBe('composed')
    expect(asked).toEqual([])
    expect(pathOf([['float32']], 'float32', ['float32', 'float32'])).toBe('fused')
    expect(pathOf([['float32']], 'float32', ['float32', 'int32'])).toBe('composed')
    expect(pathOf([['float32'], ['int32', 'bool']], 'float32', ['int32', 'bool'])).toBe('fused')
    expect(pathOf([['float32'], ['int32', 'bool']], 'float32', ['int32', 'float32'])).toBe('composed')
    expect(asked).toEqual(['float32', 'float32'])
  })

  test('a kernel that is named instead of picked is an error that says how to pick it', () => {
    for (const more of [{ kernel: 'scaled_exp' }, { gradient: 'scaled_expBackward' }]) {
      const op = { ...OP, ...more } as unknown as Op<Attrs>
      const x = make(both)
      expect(() => grad(apply(op, [x], { scale: 2 })[0].sum(), [x])).toThrow(ValueError)
      expect(() => grad(apply(op, [x], { scale: 2 })[0].sum(), [x])).toThrow(
        /^scaled_exp: a kernel is picked by a function, \(kernels\) => kernels.softmax, not 'scaled_exp/,
      )
    }
  })

  test('has second derivatives through its fused backward', () => {
    const x = make(both)
    const [g] = grad(scaledExp(x).sum(), [x], { createGraph: true })
    expect(log).toEqual(['forward', 'backward true'])
    const [gg] = grad(g.mul(tensor([1, 2, 3], { device: both })).sum(), [x])
    close(
      gg,
      want.map((v, i) => v * (i + 1)),
    )
  })

  test('adds what its input has received already, where its kernel can', () => {
    const weights = [1, 10, 100]
    /** h, which feeds the operator and goes past it, and the gradients of both. */
    const run = (device: Backend, { second = false, before = (h: Tensor) => void h } = {}) => {
      log.length = 0
      const x = make(device)
      const h = x.mul(1)
      before(h)
      const y = scaledExp(h).add(h)
      const gradOutputs = [tensor(weights, { device })]
      const { result, rows } = profile(() => grad(y, [x, h], { gradOutputs, createGraph: second }))
      for (const g of result)
        close(
          g,
          want.map((v, i) => (v + 1) * weights[i]),
        )
      return [log.at(-1), rows.find((r) => r.op === 'add')?.calls ?? 0]
    }
    expect(run(both)).toEqual(['backward true', 1])
    expect(run(adding)).toEqual(['backward true adds', 0])
    // Hooks see the sum, and so does what is retained.
    const seen: (readonly number[])[] = []
    const hooked = run(adding, {
      before: (h) => void h.registerHook((g) => void seen.push([...dataSync(g)])),
    })
    expect(hooked).toEqual(['backward true adds', 0])
    expect(seen).toHaveLength(1)
    seen[0].forEach((g, i) => expect(g).toBeCloseTo((want[i] + 1) * weights[i], 4))
    // A recorded pass computes every sum by itself.
    expect(run(adding, { second: true })).toEqual(['backward true', 1])
  })

  test('leaves gradients that are no dense tensors to the engine; adds those of leaves, too', () => {
    const sums = (f: (h: Tensor) => Tensor, leaf = false): unknown => {
      log.length = 0
      const x = make(adding)
      const h = leaf ? x : x.mul(1)
      grad(f(h), [x])
      return log.at(-1)
    }
    expect(sums((h) => scaledExp(h).mul(h).sum())).toBe('backward true adds')
    // The sum's gradient is one number, expanded.
    expect(sums((h) => h.sum().add(scaledExp(h).sum()))).toBe('backward true')
    expect(sums((h) => scaledExp(h).mul(h).sum(), true)).toBe('backward true adds')
  })

  test('is validated before any kernel runs', () => {
    expect(() => scaledExp(tensor([[1]], { device: both }))).toThrow('rank 1 only')
    expect(log).toEqual([])
  })

  test('takes views', () => {
    const x = tensor([0, 9, 1, 9, -1, 9], { device: both, requiresGrad: true })
    const y = scaledExp(x.slice(0, 6, { step: 2 }))
    close(y, want)
    const [g] = grad(y.sum(), [x], { retainGraph: true })
    close(g, [want[0], 0, want[1], 0, want[2], 0])
  })

  test('that returns its input gives a tensor of its own', () => {
    const same: Op<Record<never, never>> = { name: 'same', compose: ([x]) => [x] }
    const x = make(reference)
    const [y] = apply(same, [x], {})
    expect(y).not.toBe(x)
    expect(y.storage).toBe(x.storage)
    expect([...dataSync(grad(y.sum(), [x])[0])]).toEqual([1, 1, 1])
  })

  test('may have a rule of its own', () => {
    const ruled: Op<Record<never, never>> = {
      name: 'ruled',
      compose: ([x]) => [x.square()],
      backward: (node, [d]) => [d ? d.mul(node.input(0)).mul(2) : null],
    }
    gradcheck((x) => apply(ruled, [x], {})[0], [tensor([0.5, -2])])
    const x = make(reference)
    expect(apply(ruled, [x], {})[0].gradFn?.name).toBe('ruled')
  })
})

describe('profile', () => {
  test('counts calls and time per operator, the most expensive first', () => {
    const x = tensor(new Float32Array(2000))
    const { rows } = profile(() => {
      for (let i = 0; i < 3; i++) x.exp()
      x.add(1)
    })
    expect(rows.find((r) => r.op === 'exp')).toMatchObject({
      calls: 3,
      path: 'primitive',
      backend: 'reference',
    })
    expect(rows.map((r) => r.ms)).toEqual(rows.map((r) => r.ms).sort((a, b) => b - a))
  })

  test('sees composed operators with their parts', () => {
    const { rows } = profile(() =>
      layerNorm(
        softmax(
          tensor([
            [1, 2],
            [3, 4],
          ]),
          1,
        ),
        [2],
      ),
    )
    const composed = rows.filter((r) => r.path === 'composed').map((r) => r.op)
    expect(composed.sort()).toEqual(['layer_norm', 'softmax'])
  })

  test('ends with its function, also when that throws', () => {
    expect(() =>
      profile(() => {
        throw new Error('stop')
      }),
    ).toThrow('stop')
    const { rows } = profile(() => {})
    tensor([1]).exp()
    expect(rows).toEqual([])
  })
})
