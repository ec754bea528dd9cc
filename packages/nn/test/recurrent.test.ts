import {
  autocast,
  cat,
  checkLeaks,
  checkpoint,
  compile,
  grad,
  gradcheck,
  manualSeed,
  memory,
  noGrad,
  ones,
  randn,
  reference,
  ShapeError,
  scope,
  stack,
  type Tensor,
  tensor,
  ValueError,
  withBackend,
  zeros,
} from '@tilegrad/core'
import { GRU, GRUCell, init, LSTM, LSTMCell, type Module, RNN, RNNCell } from '@tilegrad/nn'
import { beforeEach, describe, expect, it } from 'vitest'
import { expectClose, gradcheckModule, values } from './helpers.ts'

// float64 against the same formula in another order of operations: a few roundings of 1e-16, in gradients over some steps.
const EXACT = { atol: 1e-12, rtol: 1e-11 }

beforeEach(() => manualSeed(16))

/** The states after a step, written with operators that everybody has. */
type Step = (x: Tensor, states: readonly Tensor[], w: readonly (Tensor | undefined)[]) => Tensor[]

const product = (x: Tensor, w?: Tensor, b?: Tensor): Tensor => {
  const y = x.matmul((w as Tensor).transpose(0, 1))
  return b ? y.add(b) : y
}
const plain =
  (act: (x: Tensor) => Tensor): Step =>
  (x, [h], [wi, wh, bi, bh]) => [act(product(x, wi, bi).add(product(h, wh, bh)))]

const steps = {
  tanh: plain((x) => x.tanh()),
  relu: plain((x) => x.relu()),
  lstm: (x, [h, c], [wi, wh, bi, bh]) => {
    const [i, f, g, o] = product(x, wi, bi)
      .add(product(h, wh, bh))
      .chunk(4, -1) as [Tensor, Tensor, Tensor, Tensor]
    const next = f.sigmoid().mul(c).add(i.sigmoid().mul(g.tanh()))
    return [o.sigmoid().mul(next.tanh()), next]
  },
  gru: (x, [h], [wi, wh, bi, bh]) => {
    const [xr, xz, xn] = product(x, wi, bi).chunk(3, -1) as [Tensor, Tensor, Tensor]
    const [hr, hz, hn] = product(h, wh, bh).chunk(3, -1) as [Tensor, Tensor, Tensor]
    const z = xz.add(hz).sigmoid()
    const n = xn.add(xr.add(hr).sigmoid().mul(hn)).tanh()
    return [z.mul(h).add(z.neg().add(1).mul(n))]
  },
} satisfies Record<string, Step>

interface Made {
  readonly layer: RNN | LSTM | GRU
  readonly step: Step
  readonly states: 1 | 2
}
type Options = ConstructorParameters<typeof LSTM>[2]

const kinds: Record<string, (input: number, hidden: number, options?: Options) => Made> = {
  'RNN tanh': (i, h, options) => ({ layer: new RNN(i, h, options), step: steps.tanh, states: 1 }),
  'RNN relu': (i, h, options) => ({
    layer: new RNN(i, h, { ...options, nonlinearity: 'relu' }),
    step: steps.relu,
    states: 1,
  }),
  LSTM: (i, h, options) => ({ layer: new LSTM(i, h, options), step: steps.lstm, states: 2 }),
  GRU: (i, h, options) => ({ layer: new GRU(i, h, options), step: steps.gru, states: 1 }),
}

/** Output and last states of a layer in one list, whatever it is. */
function run(layer: RNN | LSTM | GRU, x: Tensor, states?: readonly Tensor[]): Tensor[] {
  if (layer instanceof LSTM)
    return layer.forward(x, states && [states[0] as Tensor, states[1] as Tensor]).flat()
  return layer.forward(x, states?.[0])
}

/** The same, step by step. */
function written({ layer, step }: Made, input: Tensor, given: readonly Tensor[]): Tensor[] {
  const all = layer.stateDict()
  let x = layer.batchFirst ? input.transpose(0, 1) : input
  const [count] = x.shape as [number, number, number]
  const last: Tensor[][] = given.map(() => [])
  for (let l = 0; l < layer.numLayers; l++) {
    const sides: Tensor[] = []
    for (const end of layer.bidirectional ? [`l${l}`, `l${l}_reverse`] : [`l${l}`]) {
      const weights = ['weight_ih', 'weight_hh', 'bias_ih', 'bias_hh'].map((name) => all[`${name}_${end}`])
      let states = given.map((s) => s.select(0, last[0]?.length ?? 0))
      const outputs: Tensor[] = []
      for (let s = 0; s < count; s++) {
        const t = end.endsWith('reverse') ? count - 1 - s : s
        states = step(x.select(0, t), states, weights)
        outputs[t] = states[0] as Tensor
      }
      for (const [i, s] of states.entries()) last[i]?.push(s)
      sides.push(stack(outputs))
    }
    x = cat(sides, 2)
  }
  return [layer.batchFirst ? x.transpose(0, 1) : x, ...last.map((list) => stack(list))]
}

/** A number that depends on every element of several tensors by a weight of its own. */
const weighed = (tensors: readonly Tensor[]): Tensor =>
  tensors
    .map((t, k) => {
      const weights = Float64Array.from({ length: t.numel }, (_, i) => Math.cos(2 * i + k) + 1.3)
      return t.mul(tensor(weights, t.shape)).sum()
    })
    .reduce((a, b) => a.add(b))

const sizes: [name: string, options: Options, batch: number, steps: number][] = [
  ['one layer', {}, 3, 4],
  ['one step of one sequence', {}, 1, 1],
  ['without biases', { bias: false }, 2, 3],
  ['three layers', { numLayers: 3 }, 2, 3],
  ['both directions', { bidirectional: true }, 2, 4],
  [
    'two layers in both directions, batch first',
    { numLayers: 2, bidirectional: true, batchFirst: true },
    3,
    5,
  ],
  ['batch first', { batchFirst: true }, 2, 3],
  ['many steps, for which weights are turned', {}, 2, 10],
]

for (const [kind, make] of Object.entries(kinds))
  describe(kind, () => {
    for (const [name, options, batch, count] of sizes)
      it(`is the composition, with its gradients: ${name}`, () => {
        const made = make(3, 5, options)
        const { layer, states } = made
        layer.to('float64')
        const shape = [layer.numLayers * (layer.bidirectional ? 2 : 1), batch, 5]
        const leaf = (shape: readonly number[]): Tensor =>
          randn(shape, { dtype: 'float64', requiresGrad: true })
        const x = leaf(layer.batchFirst ? [batch, count, 3] : [count, batch, 3])
        const given = Array.from({ length: states }, () => leaf(shape))
        const [actual, expected] = [run(layer, x, given), written(made, x, given)]
        expect(actual.length).toBe(expected.length)
        actual.forEach((y, i) => expectClose(y, expected[i] as Tensor, EXACT))
        const wanted = [x, ...given, ...layer.parameters()]
        const [got, right] = [actual, expected].map((ys) => grad(weighed(ys), wanted))
        got?.forEach((d, i) => expectClose(d, right?.[i] as Tensor, EXACT))
        // Without states they are zeros.
        const none = given.map(() => zeros(shape, { dtype: 'float64' }))
        run(layer, x).forEach((y, i) => expectClose(y, run(layer, x, none)[i] as Tensor, EXACT))
      })

    it('has right gradients, of each output alone as well', () => {
      for (const [k, options] of [[0, {}] as const, [1, { bidirectional: true }] as const]) {
        const { layer } = make(2, 3, options)
        gradcheckModule(layer, [randn([3, 2, 2])], (m, x) => run(m, x)[k] as Tensor)
      }
    })

    it('can be differentiated twice', () => {
      const { layer, states } = make(2, 2)
      layer.to({ dtype: 'float64', device: reference })
      const squared = (x: Tensor, ...given: Tensor[]): Tensor => {
        const wanted = [x, ...given, ...layer.parameters()]
        const gradients = grad(weighed(run(layer, x, given)), wanted, { createGraph: true })
        return gradients.map((d) => d.square().sum()).reduce((a, b) => a.add(b))
      }
      expect(
        gradcheck(squared, [randn([3, 1, 2]), ...Array.from({ length: states }, () => randn([1, 1, 2]))]),
      ).toBe(true)
    })

    it('takes a sequence that is no batch, with states that are none', () => {
      const { layer, states } = make(3, 5, { numLayers: 2, batchFirst: true })
      const x = randn([4, 3])
      const given = Array.from({ length: states }, () => randn([2, 5]))
      const alone = run(layer, x, given)
      const batched = run(
        layer,
        x.unsqueeze(0),
        given.map((s) => s.unsqueeze(1)),
      )
      expect(alone.map((t) => t.shape)).toEqual([[4, 5], ...given.map(() => [2, 5])])
      alone.forEach((t, i) => expect(values(t)).toEqual(values(batched[i])))
    })

    it('goes on from its states: two halves give what the whole gives', () => {
      const { layer } = make(3, 5, { numLayers: 2 })
      const x = randn([6, 2, 3])
      const whole = run(layer, x)
      const [first, ...states] = run(layer, x.narrow(0, 0, 2)) as [Tensor, ...Tensor[]]
      const [second, ...end] = run(layer, x.narrow(0, 2, 4), states) as [Tensor, ...Tensor[]]
      // Steps are computed one by one, but the inputs' products are of other sizes: a few roundings of 6e-8.
      expectClose(cat([first, second], 0), whole[0] as Tensor, { atol: 1e-6, rtol: 1e-5 })
      end.forEach((s, i) => expectClose(s, whole[i + 1] as Tensor, { atol: 1e-6, rtol: 1e-5 }))
    })

    it('drops elements between layers while training, and only there', () => {
      const { layer } = make(3, 64, { numLayers: 2, dropout: 0.5 })
      const x = randn([2, 2, 3])
      const [output, hn] = run(layer, x) as [Tensor, Tensor]
      // What the first layer gives is whole, and what the last one gives.
      expect(values(hn.select(0, 1))).toEqual(values(output.select(0, 1)))
      const calm = run(layer.eval(), x) as [Tensor, Tensor]
      expect(values(hn.select(0, 0))).toEqual(values(calm[1].select(0, 0)))
      expect(values(output)).not.toEqual(values(calm[0]))
      expect(values(run(layer, x)[0])).toEqual(values(calm[0]))
      // All dropped, the second layer reads zeros.
      const deaf = make(3, 4, { numLayers: 2, dropout: 1 }).layer
      const [one, other] = [run(deaf, x)[0], run(deaf, x.add(1))[0]]
      expect(values(one)).toEqual(values(other))
    })

    it('starts uniform within ±1/√hiddenSize, under PyTorch’s names', () => {
      const { layer } = make(3, 4, { numLayers: 2, bidirectional: true })
      const gates = { 'RNN tanh': 1, 'RNN relu': 1, LSTM: 4, GRU: 3 }[kind] as number
      const shapes = Object.entries(layer.stateDict()).map(([name, t]) => [name, ...t.shape])
      const rows = gates * 4
      expect(shapes).toEqual(
        [
          ['l0', 3],
          ['l0_reverse', 3],
          ['l1', 8],
          ['l1_reverse', 8],
        ].flatMap(([end, width]) => [
          [`weight_ih_${end}`, rows, width],
          [`weight_hh_${end}`, rows, 4],
          [`bias_ih_${end}`, rows],
          [`bias_hh_${end}`, rows],
        ]),
      )
      const all = layer.parameters().flatMap(values)
      expect(Math.max(...all)).toBeLessThanOrEqual(0.5)
      expect(Math.min(...all)).toBeGreaterThanOrEqual(-0.5)
      // Of at least 176 numbers within ±½ some are near both ends.
      expect(Math.max(...all)).toBeGreaterThan(0.4)
      expect(Math.min(...all)).toBeLessThan(-0.4)
    })

    it('loads what another one saved', () => {
      const [one, other] = [
        make(3, 4, { bidirectional: true }).layer,
        make(3, 4, { bidirectional: true }).layer,
      ]
      const x = randn([3, 2, 3])
      expect(values(run(one, x)[0])).not.toEqual(values(run(other, x)[0]))
      expect(other.loadStateDict(one.stateDict())).toEqual({ missing: [], unexpected: [] })
      expect(values(run(one, x)[0])).toEqual(values(run(other, x)[0]))
      expect(() => other.loadStateDict(make(3, 4).layer.stateDict())).toThrow(/_reverse/)
    })

    it('leaves nothing behind, trained or going on step by step', () => {
      const { layer } = make(3, 4, { numLayers: 2, bidirectional: true })
      const x = randn([5, 2, 3])
      checkLeaks(() =>
        scope(() => {
          weighed(run(layer, x)).backward()
          layer.zeroGrad()
        }),
      )
      const one = make(3, 4).layer
      let states: Tensor[] | undefined
      const step = (): void => {
        const next = scope(() => noGrad(() => run(one, x.narrow(0, 0, 1), states).slice(1)))
        for (const s of states ?? []) s.dispose()
        states = next
      }
      step()
      const before = memory().tensors
      for (let i = 0; i < 5; i++) step()
      expect(memory().tensors).toBe(before)
    })

    it('runs compiled, in checkpoints and in autocast', () => {
      const { layer } = make(3, 4, { numLayers: 2, bidirectional: true })
      const x = randn([3, 2, 3])
      const plain = (x: Tensor): Tensor => run(layer, x)[0] as Tensor
      const step =
        (forward: (x: Tensor) => Tensor) =>
        (x: Tensor): Tensor => {
          layer.zeroGrad()
          const loss = weighed([forward(x)])
          loss.backward()
          return loss
        }
      const gradients = (): number[][] => layer.parameters().map((p) => values(p.grad))
      const loss = values(step(plain)(x))
      const right = gradients()
      const compiled = compile(step(plain), { fuse: false })
      // The first call of what is compiled records, the others replay.
      for (const fn of [compiled, compiled, compiled, step((x) => checkpoint(plain, x))]) {
        expect(values(fn(x))).toEqual(loss)
        expect(gradients()).toEqual(right)
      }
      layer.zeroGrad()
      const whole = run(layer, x)
      const mixed = autocast('bfloat16', () => run(layer, x))
      // The inputs' products have 8 bits, states 24: as wide as PyTorch's are not.
      mixed.forEach((y, i) => {
        expect(y.dtype).toBe('float32')
        expectClose(y, whole[i] as Tensor, { atol: 0.02, rtol: 0 })
      })
      weighed(mixed).backward()
      for (const p of layer.parameters()) expect(p.grad?.dtype).toBe('float32')
      const half = layer.to('bfloat16')
      expect(run(half, x.to('bfloat16')).map((y) => y.dtype)).toEqual(whole.map(() => 'bfloat16'))
    })
  })

describe('cells', () => {
  const cells: [Module, Step, number][] = [
    [new RNNCell(3, 5), steps.tanh, 1],
    [new RNNCell(3, 5, { nonlinearity: 'relu', bias: false }), steps.relu, 1],
    [new LSTMCell(3, 5), steps.lstm, 2],
    [new LSTMCell(3, 5, { bias: false }), steps.lstm, 2],
    [new GRUCell(3, 5), steps.gru, 1],
    [new GRUCell(3, 5, { bias: false }), steps.gru, 1],
  ]
  const call = (cell: Module, x: Tensor, states?: Tensor[]): Tensor[] => {
    if (cell instanceof LSTMCell) return cell.forward(x, states && [states[0] as Tensor, states[1] as Tensor])
    return [(cell as RNNCell | GRUCell).forward(x, states?.[0])]
  }
  for (const [cell, step, states] of cells)
    it(`${cell} is the composition, with its gradients`, () => {
      cell.to('float64')
      const leaf = (...shape: number[]): Tensor => randn(shape, { dtype: 'float64', requiresGrad: true })
      const x = leaf(2, 3)
      const given = Array.from({ length: states }, () => leaf(2, 5))
      const all = cell.stateDict()
      const names = ['weight_ih', 'weight_hh', 'bias_ih', 'bias_hh']
      expect(names.slice(0, Object.keys(all).length)).toEqual(Object.keys(all))
      const [actual, expected] = [
        call(cell, x, given),
        step(
          x,
          given,
          names.map((name) => all[name]),
        ),
      ]
      actual.forEach((y, i) => expectClose(y, expected[i] as Tensor, EXACT))
      const wanted = [x, ...given, ...cell.parameters()]
      const [got, right] = [actual, expected].map((ys) => grad(weighed(ys), wanted))
      got?.forEach((d, i) => expectClose(d, right?.[i] as Tensor, EXACT))
      // Without a batch, and without states.
      const none = given.map(() => zeros([5], { dtype: 'float64' }))
      const alone = call(cell, x.select(0, 0))
      expect(alone.map((t) => t.shape)).toEqual(given.map(() => [5]))
      alone.forEach((t, i) => expect(values(t)).toEqual(values(call(cell, x.select(0, 0), none)[i])))
    })
})

describe('what does not fit is refused', () => {
  const lstm = new LSTM(3, 5, { numLayers: 2 })
  const cases: [string, () => unknown, new (...args: never[]) => Error, RegExp][] = [
    ['sizes', () => new LSTM(0, 5), ValueError, /LSTM: inputSize must be a positive integer, got 0/],
    ['layers', () => new GRU(3, 5, { numLayers: 1.5 }), ValueError, /GRU: numLayers/],
    ['dropout', () => new RNN(3, 5, { dropout: 2 }), ValueError, /RNN: dropout must lie within 0 … 1, got 2/],
    ['options', () => new LSTM(3, 5, { num_layers: 2 } as object), ValueError, /did you mean 'numLayers'/],
    [
      'nonlinearities',
      () => new RNN(3, 5, { nonlinearity: 'gelu' as 'relu' }),
      ValueError,
      /RNN: nonlinearity must be 'tanh' or 'relu', got 'gelu'/,
    ],
    [
      'inputs',
      () => lstm.forward(randn([4, 2, 4])),
      ShapeError,
      /LSTM: the input \[4, 2, 4\].*inputSize = 3/,
    ],
    ['ranks', () => lstm.forward(randn([3])), ShapeError, /LSTM: the input \[3\]/],
    ['no steps', () => lstm.forward(zeros([0, 2, 3])), ShapeError, /no steps/],
    [
      'states that are no pair',
      () => lstm.forward(randn([4, 2, 3]), ones([2, 2, 5]) as never),
      ValueError,
      /\[h, c\]/,
    ],
    [
      'states of other layers',
      () => lstm.forward(randn([4, 2, 3]), [ones([1, 2, 5]), ones([2, 2, 5])]),
      ShapeError,
      /LSTM: the state h is \[1, 2, 5\]; expected \[2, 2, 5\]/,
    ],
    [
      'states without a batch',
      () => new GRU(3, 5).forward(randn([4, 2, 3]), ones([1, 5])),
      ShapeError,
      /GRU: the state h is \[1, 5\]; expected \[1, 2, 5\]/,
    ],
    [
      'inputs of cells',
      () => new LSTMCell(3, 5).forward(randn([2, 4])),
      ShapeError,
      /LSTMCell: the input \[2, 4\]/,
    ],
    [
      'states of cells',
      () => new GRUCell(3, 5).forward(randn([2, 3]), ones([5])),
      ShapeError,
      /GRUCell: the state h is \[5\]; expected \[2, 5\]/,
    ],
  ]
  for (const [name, fn, type, message] of cases)
    it(name, () => {
      expect(fn).toThrow(type)
      expect(fn).toThrow(message)
    })
})

it('learns to remember: an LSTM repeats the first of eight tokens', () => {
  withBackend(reference, () => {
    const lstm = new LSTM(2, 8, { batchFirst: true })
    for (const p of lstm.parameters()) init.uniform_(p, -0.5, 0.5)
    const loss = (): number =>
      scope(() => {
        const first = tensor([0, 1, 1, 0], [4, 1, 1])
        const x = cat([cat([first, ones([4, 1, 1])], 2), zeros([4, 7, 2])], 1)
        const [, [hn]] = lstm.forward(x)
        const wrong = hn.select(0, 0).narrow(1, 0, 1).sub(first.select(2, 0)).square().mean()
        wrong.backward()
        noGrad(() => {
          for (const p of lstm.parameters()) p.sub_((p.grad as Tensor).mul(2))
        })
        lstm.zeroGrad()
        return wrong.itemSync()
      })
    const start = loss()
    let end = start
    for (let i = 0; i < 200; i++) end = loss()
    expect(start).toBeGreaterThan(0.1)
    expect(end).toBeLessThan(0.01)
  })
})
