import {
  arange,
  DisposedError,
  memory,
  ones,
  randn,
  reference,
  scope,
  type Tensor,
  tensor,
  zeros,
} from '@tilegrad/core'
import { buffer, Dropout, Embedding, GPT, Linear, Module, parameter, ReLU, Sequential } from '@tilegrad/nn'
import { describe, expect, it } from 'vitest'
import { collected } from '../../core/test/support/collected.ts'
import { values } from './helpers.ts'

class Net extends Module {
  first = new Linear(3, 4)
  list = [new Linear(4, 4, { bias: false }), new Sequential(new Linear(4, 4), new ReLU())]
  byName = { out: new Linear(4, 2), drop: new Dropout(0.5) }
  scale = parameter(ones([2]))
  loose = ones([7])
  running = buffer(zeros([2]))
  table = buffer(arange(5), { persistent: false })
  numbers = [1, 2, 3]
  nothing = null
  self: Module = this
  bag: unknown[] = []

  forward(x: Tensor): Tensor {
    return this.byName.out.forward(x).mul(this.scale)
  }
}

const parameterNames = [
  'first.weight',
  'first.bias',
  'list.0.weight',
  'list.1.0.weight',
  'list.1.0.bias',
  'byName.out.weight',
  'byName.out.bias',
  'scale',
]

describe('Module', () => {
  it('finds parameters in properties, arrays, plain objects and modules, in order', () => {
    const net = new Net()
    expect(net.namedParameters().map(([name]) => name)).toEqual(parameterNames)
    expect(net.parameters()).toEqual(net.namedParameters().map(([, p]) => p))
    expect(net.parameters().every((p) => p.requiresGrad && p.isLeaf && p.kept)).toBe(true)
    expect(net.numParameters()).toBe(12 + 4 + 16 + 16 + 4 + 8 + 2 + 2)
  })

  it('tells buffers from parameters and ignores other tensors', () => {
    const net = new Net()
    expect(net.namedBuffers().map(([name]) => name)).toEqual(['running', 'table'])
    expect(Object.keys(net.stateDict())).toEqual([...parameterNames, 'running'])
    expect(net.running.requiresGrad).toBe(false)
  })

  it('survives cycles: a module that holds itself, an array that holds itself', () => {
    const net = new Net()
    net.bag.push(net.bag, net)
    expect(net.namedParameters().length).toBe(parameterNames.length)
    expect(net.toString()).toContain('(byName.out): Linear(inFeatures=4, outFeatures=2, bias=true)')
  })

  it('lists modules, parents first, and children', () => {
    const net = new Net()
    expect(net.namedModules().map(([name]) => name)).toEqual([
      '',
      'first',
      'list.0',
      'list.1',
      'list.1.0',
      'list.1.1',
      'byName.out',
      'byName.drop',
    ])
    expect(net.namedChildren().map(([name]) => name)).toEqual([
      'first',
      'list.0',
      'list.1',
      'byName.out',
      'byName.drop',
    ])
    expect(net.children()).toEqual([net.first, ...net.list, net.byName.out, net.byName.drop])
  })

  it('applies a function to children before parents', () => {
    const seen: string[] = []
    const net = new Sequential(new Sequential(new ReLU()), new Linear(1, 1))
    expect(net.apply((m) => seen.push(m.constructor.name))).toBe(net)
    expect(seen).toEqual(['Linear', 'ReLU', 'Sequential', 'Sequential'])
  })

  it('switches the mode of all modules below', () => {
    const net = new Net()
    expect(net.modules().every((m) => m.training)).toBe(true)
    expect(net.eval()).toBe(net)
    expect(net.modules().some((m) => m.training)).toBe(false)
    net.list[1].train()
    expect(net.modules().filter((m) => m.training).length).toBe(3)
  })

  it('yields a tied parameter once, under its first name, and saves it under both', () => {
    const net = new Sequential(new Embedding(5, 3), new Linear(3, 5, { bias: false }))
    ;(net[1] as Linear).weight = (net[0] as Embedding).weight
    expect(net.namedParameters().map(([name]) => name)).toEqual(['0.weight'])
    expect(net.numParameters()).toBe(15)
    expect(Object.keys(net.stateDict())).toEqual(['0.weight', '1.weight'])
    const given = randn([5, 3])
    expect(net.loadStateDict({ '1.weight': given })).toEqual({ missing: [], unexpected: [] })
    expect(values((net[0] as Embedding).weight)).toEqual(values(given))
  })

  it('counts a shared module once', () => {
    const shared = new Linear(2, 2)
    const net = new Sequential(shared, shared)
    expect(net.parameters().length).toBe(2)
    expect(net.children().length).toBe(1)
    expect(Object.keys(net.stateDict())).toEqual(['0.weight', '0.bias', '1.weight', '1.bias'])
  })

  it('frees gradients', () => {
    const net = new Linear(2, 1)
    net
      .forward(ones([1, 2]))
      .sum()
      .backward()
    const grad = net.weight.grad as Tensor
    net.zeroGrad()
    expect(net.weight.grad).toBeNull()
    expect(grad.disposed).toBe(true)
  })

  it('freezes and thaws: frozen parameters stay parameters and get no gradient', () => {
    const net = new Linear(2, 1).requiresGrad_(false)
    expect(net.parameters().map((p) => p.requiresGrad)).toEqual([false, false])
    expect(net.forward(ones([1, 2])).requiresGrad).toBe(false)
    expect(net.requiresGrad_().weight.requiresGrad).toBe(true)
  })

  it('shows a tree', () => {
    const net = new Sequential(new Linear(2, 3), new Sequential(new ReLU()))
    expect(String(net)).toBe(
      'Sequential(\n  (0): Linear(inFeatures=2, outFeatures=3, bias=true)\n  (1): Sequential(\n    (0): ReLU()\n  )\n)',
    )
  })

  it('makes a leaf of a differentiated result', () => {
    const source = parameter(ones([2]))
    const p = parameter(source.mul(3))
    expect([p.isLeaf, p.requiresGrad, p.kept]).toEqual([true, true, true])
    expect(values(p)).toEqual([3, 3])
  })

  it('survives the scope it was made in', () => {
    const net = scope(() => {
      const made = new Linear(2, 2)
      return { weight: () => made.weight }
    })
    expect(net.weight().disposed).toBe(false)
  })
})

describe('state dict', () => {
  it('round trip: another module computes the same', () => {
    const [a, b] = [new Net(), new Net()]
    const x = randn([5, 4])
    expect(values(a.forward(x))).not.toEqual(values(b.forward(x)))
    a.running.fill_(3)
    expect(b.loadStateDict(a.stateDict())).toEqual({ missing: [], unexpected: [] })
    // Copies, not shared memory.
    expect(b.first.weight).not.toBe(a.first.weight)
    expect(values(b.forward(x))).toEqual(values(a.forward(x)))
    expect(values(b.running)).toEqual([3, 3])
  })

  it('names what is missing, unexpected and misshapen, and changes nothing', () => {
    const net = new Linear(2, 3)
    const before = values(net.weight)
    const load = () => net.loadStateDict({ weight: ones([3, 2]), wieght: ones([3, 2]) })
    expect(load).toThrow(/Linear; nothing was changed/)
    expect(load).toThrow(/missing: bias\n/)
    expect(load).toThrow(/unexpected: wieght\n/)
    expect(load).toThrow(/strict: false/)
    expect(() => net.loadStateDict({ weight: ones([3, 2]), bias: ones([2]) })).toThrow(
      /bias is \[3\] in the module, \[2\] in the dict/,
    )
    expect(values(net.weight)).toEqual(before)
  })

  it('loads what fits where not strict, but never a wrong shape', () => {
    const net = new Linear(2, 3)
    const result = net.loadStateDict({ bias: ones([3]), extra: ones([1]) }, { strict: false })
    expect(result).toEqual({ missing: ['weight'], unexpected: ['extra'] })
    expect(values(net.bias)).toEqual([1, 1, 1])
    expect(() => net.loadStateDict({ bias: ones([4]) }, { strict: false })).toThrow(/shapes differ/)
  })

  it('converts dtypes and leaves no temporaries', async () => {
    await collected()
    const net = new Linear(2, 1)
    const dict = { weight: tensor([[1, 2]], { dtype: 'float64' }), bias: tensor([3], { dtype: 'int32' }) }
    const before = memory().tensors
    net.loadStateDict(dict)
    expect(memory().tensors).toBe(before)
    expect([net.weight.dtype, net.bias?.dtype]).toEqual(['float32', 'float32'])
    expect([...values(net.weight), ...values(net.bias)]).toEqual([1, 2, 3])
  })
})

describe('Module.to and dispose', () => {
  it('replaces floating tensors, keeps ties, gradients and integers, frees the old ones', async () => {
    await collected()
    const net = new GPT({ vocabSize: 5, blockSize: 4, numLayers: 1, numHeads: 1, embedDim: 4 })
    const old = net.wte.weight
    net.forward(tensor([[1, 2]], { dtype: 'int32' }), tensor([[2, 3]], { dtype: 'int32' })).loss.backward()
    const grad = values(old.grad)
    const before = memory().tensors
    expect(net.to({ dtype: 'float64', device: reference })).toBe(net)
    expect(memory().tensors).toBe(before)
    expect(net.wte.weight.dtype).toBe('float64')
    expect(net.lm_head.weight).toBe(net.wte.weight)
    expect(net.wte.weight.requiresGrad && net.wte.weight.kept).toBe(true)
    expect(values(net.wte.weight.grad)).toEqual(grad)
    expect(() => old.add(1)).toThrow(DisposedError)
    expect(net.namedParameters()[0][0]).toBe('wte.weight')

    const mixed = new Net().to('float64')
    expect(mixed.table.dtype).toBe('int32')
    expect(mixed.running.dtype).toBe('float64')
  })

  it('does nothing where nothing changes', () => {
    const net = new Linear(2, 2)
    const { weight } = net
    expect(net.to('float32').weight).toBe(weight)
    expect(weight.disposed).toBe(false)
  })

  it('frees everything', async () => {
    await collected()
    const before = memory()
    scope(() => {
      using net = new Net()
      net
        .forward(ones([1, 4]))
        .sum()
        .backward()
    })
    expect([memory().tensors, memory().bytes]).toEqual([before.tensors, before.bytes])
  })
})
